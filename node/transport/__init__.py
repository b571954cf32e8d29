"""The two listeners of a node, and its streams to the other members.

*Peer listener*: mutual TLS. The trust bundle holds the CA certificates of the current members and
changes with them, without a restart. A chain that verifies only proves that some member signed
it, so every stream is tied to one node by `verify_leaf` before its first message is read.
*Public listener*: server TLS only; what arrives authenticates itself by signature.

Source: design §11; docs/spec/identity.md.
"""

from node.transport.certificates import NodeCertificates
from node.transport.listening import advertise
from node.transport.outbound import Member
from node.transport.peers import PeerTransport
from node.transport.public import PublicListener

__all__ = ["Member", "NodeCertificates", "PeerTransport", "PublicListener", "advertise"]
