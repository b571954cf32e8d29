"""TLS identities: addresses, certificates, and how a stranger is checked before it is trusted.

A node's name is the SHA-256 of its Ed25519 public key. TLS stacks do not handshake with Ed25519
certificates, so the node's key is a certificate authority of its own (self-signed, always the same
bytes) and signs a short-lived P-256 leaf, which is what the listeners show. The leaf carries its
authority's certificate in an extension, as libp2p's TLS certificates carry the host key: whoever
knows an address ``nodeid@host:port`` fetches the leaf, finds the authority in it, checks that its
key hashes to the node id, and pins it as the only root for that node.

All members' authorities stand in one trust bundle, so a chain that verifies only says that *some*
member signed the leaf. `verify_leaf` is what ties a leaf to one node, and every listener calls it.
Source: design §11; docs/spec/identity.md.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from cryptography import x509
from cryptography.exceptions import InternalError as OpenSSLError
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from iemas.core.errors import (
    APIConnectionError,
    APITimeoutError,
    InvalidInputError,
    MalformedMessageError,
)
from iemas.core.identity import Identity, compute_node_id
from iemas.core.types import ID_BYTES, NodeId, short_id

LEAF_LIFETIME = timedelta(days=7)
LEAF_BACKDATING = timedelta(hours=1)
"""Leaves start in the past, so that a peer whose clock is behind accepts a new one."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Bound of any one gRPC message: a cache digest of four million blocks fits twice."""

CA_EXTENSION = x509.ObjectIdentifier("2.25.326966866772883856279718901962893514508")
"""Holds the DER of the signing CA certificate in a leaf (a UUID under X.667's free arc)."""

_CA_NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
_CA_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280 §4.1.2.5: no end
_CONNECT_TIMEOUT_MS = 5_000
_KEEPALIVE_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000

ChannelOptions = list[tuple[str, int | str]]


class InvalidCertificateError(InvalidInputError):
    """A certificate does not prove the node that it should."""


# --- addresses ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens and which key must answer there: ``nodeid@host:port``.

    Example:
        >>> address = parse_address("ab" * 32 + "@[::1]:7470")
        >>> address.host, address.port, address.target
        ('::1', 7470, '[::1]:7470')

    """

    node_id: NodeId
    host: str
    port: int

    @property
    def target(self) -> str:
        """``host:port`` as gRPC dials it."""
        return join_host_port(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.node_id.hex()}@{self.target}"


def split_host_port(text: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host stands in brackets. Port 0 is "any free one".

    Raises: MalformedMessageError that says what is wrong.
    """
    host, colon, digits = text.rpartition(":")
    if not colon or not host:
        raise MalformedMessageError(f"{text!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise MalformedMessageError(f"an IPv6 host stands in brackets, as in [::1]:7470: {text!r}")
    if not host or any(character.isspace() or character in "@/[]" for character in host):
        raise MalformedMessageError(f"{text!r} names no host")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) < 65_536):
        raise MalformedMessageError(f"the port in {text!r} is not a number in 0..65535")
    return host, int(digits)


def join_host_port(host: str, port: int) -> str:
    """Write ``host:port``, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> Address:
    """Read ``nodeid@host:port``, the node id as 64 hex digits.

    Raises: MalformedMessageError that says what is wrong.
    """
    node_hex, at, location = text.strip().partition("@")
    if not at:
        raise MalformedMessageError(f"{text!r} is not nodeid@host:port: the node id is missing")
    try:
        node_id = bytes.fromhex(node_hex)
    except ValueError:
        node_id = b""
    if len(node_id) != ID_BYTES or len(node_hex) != 2 * ID_BYTES:
        raise MalformedMessageError(
            f"the node id in {text!r} is not 64 hex digits (`iemas-node keygen` prints it)"
        )
    host, port = split_host_port(location)
    if port == 0:
        raise MalformedMessageError(f"nobody can be reached at port 0: {text!r}")
    return Address(NodeId(node_id), host, port)


def server_name(node_id: NodeId) -> str:
    """Give the DNS name in a node's leaf: the id in two labels, as a label has at most 63 bytes."""
    digits = node_id.hex()
    return f"{digits[:32]}.{digits[32:]}.iemas"


def parse_server_name(name: str) -> NodeId:
    """Give the node that a leaf's DNS name speaks of.

    Raises: InvalidCertificateError if it is no such name.
    """
    try:
        node_id = NodeId(bytes.fromhex(name.removesuffix(".iemas").replace(".", "")))
    except ValueError:
        node_id = NodeId(b"")
    if len(node_id) != ID_BYTES or server_name(node_id) != name:
        raise InvalidCertificateError(f"{name!r} is no node's server name", name=name)
    return node_id


# --- certificates ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeafCredentials:
    """A leaf with its private key: what a listener, or a member's outbound channel, shows.

    `chain_pem` is the leaf followed by its CA certificate.
    """

    private_key_pem: bytes = field(repr=False)
    chain_pem: bytes
    expires_at: datetime

    def is_due(self, now: datetime) -> bool:
        """Tell whether half of its lifetime is over, which is when it should be renewed."""
        return now >= self.expires_at - LEAF_LIFETIME / 2


def _get_subject(node_id: NodeId) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id.hex())])


def _get_key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def create_ca_certificate(identity: Identity) -> bytes:
    """Create a node's self-signed CA certificate (DER).

    It says nothing but the key, so it has no dates that matter and is the same bytes every time:
    a pinned copy stays good across restarts.
    """
    public_key = identity.private_key.public_key()
    subject = _get_subject(identity.node_id)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public_key)
        .serial_number(int.from_bytes(identity.node_id[:16], "big") | 1)
        .not_valid_before(_CA_NOT_BEFORE)
        .not_valid_after(_CA_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_get_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(identity.private_key, algorithm=None)
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def _build_leaf(
    public_key: ec.EllipticCurvePublicKey, node_id: NodeId, ca_certificate: bytes, now: datetime
) -> x509.CertificateBuilder:
    """Describe the leaf of a node, as yet unsigned."""
    issuer_key = x509.load_der_x509_certificate(ca_certificate).public_key()
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    name = x509.DNSName(server_name(node_id))
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_get_key_usage(authority=False), True),
        (x509.ExtendedKeyUsage(purposes), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(_require_ed25519(issuer_key)), False),
        # Critical, as RFC 5280 §4.2.1.6 asks where the subject is empty.
        (x509.SubjectAlternativeName([name]), True),
        (x509.UnrecognizedExtension(CA_EXTENSION, ca_certificate), False),
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(_get_subject(node_id))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LEAF_BACKDATING)
        .not_valid_after(now + LEAF_LIFETIME)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder


def create_leaf(identity: Identity, now: datetime) -> LeafCredentials:
    """Create a fresh P-256 key and have the node's CA sign its leaf, for 7 days from `now`."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    ca_certificate = create_ca_certificate(identity)
    leaf = _build_leaf(private_key.public_key(), identity.node_id, ca_certificate, now).sign(
        identity.private_key, algorithm=None
    )
    return LeafCredentials(
        private_key_pem=private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        chain_pem=leaf.public_bytes(serialization.Encoding.PEM) + to_pem(ca_certificate),
        expires_at=leaf.not_valid_after_utc,
    )


def to_pem(certificate: bytes) -> bytes:
    """Convert a DER certificate to PEM."""
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


@contextmanager
def _refusing_malformed(reason: str) -> Iterator[None]:
    """Name what parsing a stranger's certificate can raise, at any of its lazily read fields."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        InvalidSignature,
        OpenSSLError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise InvalidCertificateError(reason) from error


def _load_certificate(data: bytes) -> x509.Certificate:
    with _refusing_malformed("the certificate does not parse"):
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)


def _require_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    with _refusing_malformed("the certificate is not signed by this node's key"):
        certificate.verify_directly_issued_by(issuer)


def _require_valid_at(certificate: x509.Certificate, now: datetime) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        raise InvalidCertificateError(f"the certificate is not valid before {start}")
    if now > end:
        raise InvalidCertificateError(f"the certificate expired at {end}")


def _require_ed25519(public_key: object) -> Ed25519PublicKey:
    if not isinstance(public_key, Ed25519PublicKey):
        raise InvalidCertificateError("the CA certificate's key is not Ed25519")
    return public_key


def verify_ca_certificate(certificate: bytes, node_id: NodeId) -> None:
    """Check that a CA certificate (DER) is the given node's own.

    Its Ed25519 key must hash to the node id and have signed it, its subject must be the node id
    (the trust bundle finds issuers by name), and it must not allow authorities below itself.

    Raises: InvalidCertificateError.
    """
    ca = _load_certificate(certificate)
    with _refusing_malformed("the CA certificate does not parse"):
        public_key = _require_ed25519(ca.public_key()).public_bytes_raw()
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
        is_named = ca.subject == _get_subject(node_id)
    actual = compute_node_id(public_key)
    if actual != node_id:
        raise InvalidCertificateError(
            f"this is node {short_id(actual)}, not {short_id(node_id)}",
            node_id=node_id,
            actual_node_id=actual,
        )
    if not is_named or not constraints.ca or constraints.path_length != 0:
        raise InvalidCertificateError("the CA certificate is not of the form that nodes create")
    _require_issued_by(ca, ca)


def extract_server_name(leaf: bytes) -> str:
    """Give the one DNS name in a leaf (PEM or DER). Raises: InvalidCertificateError."""
    return _extract_server_name(_load_certificate(leaf))


def _extract_server_name(leaf: x509.Certificate) -> str:
    with _refusing_malformed("the leaf names no server"):
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = list(extension.value)
    if len(names) != 1 or not isinstance(names[0], x509.DNSName):
        raise InvalidCertificateError("the leaf must name exactly one server")
    return names[0].value


def _extract_ca_certificate(leaf: x509.Certificate) -> bytes:
    with _refusing_malformed("the leaf does not carry its CA certificate"):
        extension = leaf.extensions.get_extension_for_oid(CA_EXTENSION).value
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise InvalidCertificateError("the leaf does not carry its CA certificate")
    return extension.value


def verify_leaf(leaf: bytes, node_id: NodeId, now: datetime) -> bytes:
    """Check that a leaf (PEM or DER) was signed by the given node, for itself, and holds at `now`.

    Returns: the node's CA certificate (DER), to pin as the only root for this node.
    Raises: InvalidCertificateError.
    """
    certificate = _load_certificate(leaf)
    name = _extract_server_name(certificate)
    if name != server_name(node_id):
        raise InvalidCertificateError(
            f"the leaf speaks of {name}, not of node {short_id(node_id)}", name=name
        )
    ca_certificate = _extract_ca_certificate(certificate)
    with _refusing_malformed("the leaf does not parse"):
        public_key = certificate.public_key()
        _require_valid_at(certificate, now)
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(
        public_key.curve, ec.SECP256R1
    ):
        raise InvalidCertificateError("the leaf's key is not P-256")
    verify_ca_certificate(ca_certificate, node_id)
    _require_issued_by(certificate, _load_certificate(ca_certificate))
    return ca_certificate


def compute_fingerprint(certificate: bytes) -> str:
    """Give the SHA-256 fingerprint of a certificate (PEM or DER), as tools print it."""
    return _load_certificate(certificate).fingerprint(hashes.SHA256()).hex(":")


# --- connections -------------------------------------------------------------------------------


async def fetch_leaf(address: Address, timeout: float = 5.0) -> bytes:  # noqa: ASYNC109
    """Fetch the leaf (DER) that answers at an address, trusting nothing yet.

    Works on the peer listener too: its certificate is seen before it asks for ours.

    Raises: APIConnectionError, APITimeoutError after `timeout` seconds.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # What is fetched is checked by `verify_leaf`.
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(
                address.host,
                address.port,
                ssl=context,
                server_hostname=server_name(address.node_id),
            )
            leaf = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.transport.abort()
    except TimeoutError as error:
        raise APITimeoutError(f"{address.target} did not answer in {timeout:g} s") from error
    except OSError as error:
        raise APIConnectionError(f"cannot reach a node at {address.target}: {error}") from error
    if leaf is None:
        raise APIConnectionError(f"{address.target} showed no certificate")
    return bytes(leaf)


async def fetch_ca_certificate(address: Address, timeout: float = 5.0) -> bytes:  # noqa: ASYNC109
    """Fetch and check the CA certificate (DER) of the node at an address, to pin it.

    Raises: InvalidCertificateError if another node answers there; APIConnectionError,
    APITimeoutError.
    """
    leaf = await fetch_leaf(address, timeout)
    return verify_leaf(leaf, address.node_id, datetime.now(UTC))


def channel_credentials(
    ca_certificate: bytes, leaf: LeafCredentials | None = None
) -> grpc.ChannelCredentials:
    """Trust one node's CA certificate (DER) and, towards its peer listener, show our leaf."""
    return grpc.ssl_channel_credentials(
        root_certificates=to_pem(ca_certificate),
        private_key=leaf.private_key_pem if leaf else None,
        certificate_chain=leaf.chain_pem if leaf else None,
    )


def common_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> ChannelOptions:
    """Give the options that channels and servers share: message bounds and keepalive."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def channel_options(node_id: NodeId) -> ChannelOptions:
    """Give the options of a channel to a node: `common_options`, and the name to check for."""
    return [
        *common_options(),
        ("grpc.ssl_target_name_override", server_name(node_id)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name, it bounds how long a connection may take to be made.
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
    ]


def open_channel(
    address: Address,
    ca_certificate: bytes,
    leaf: LeafCredentials | None = None,
    extra_options: Sequence[tuple[str, int | str]] = (),
) -> grpc.aio.Channel:
    """Open a channel to a node whose CA certificate (DER) is known; it connects when used."""
    return grpc.aio.secure_channel(
        address.target,
        channel_credentials(ca_certificate, leaf),
        options=[*channel_options(address.node_id), *extra_options],
    )


async def connect(address: Address, timeout: float = 5.0) -> grpc.aio.Channel:  # noqa: ASYNC109
    """Check who answers at a public address, pin its CA certificate and open a channel to it.

    Raises: as `fetch_ca_certificate`.
    """
    return open_channel(address, await fetch_ca_certificate(address, timeout))
