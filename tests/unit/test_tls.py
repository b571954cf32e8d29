"""Certificates tie a TLS connection to one node, and to no other."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from iemas import tls
from iemas.core.errors import MalformedMessageError
from iemas.core.identity import Identity
from iemas.core.types import NodeId

NOW = datetime(2026, 5, 17, 12, 0, 0, tzinfo=UTC)
A, B = Identity(b"a" * 32), Identity(b"b" * 32)
CA_A, CA_B = tls.create_ca_certificate(A), tls.create_ca_certificate(B)
PEM = serialization.Encoding.PEM


def sign_leaf(
    *,
    signer: Identity = A,
    named: NodeId = A.node_id,
    carried: bytes = CA_A,
    change: Callable[[x509.CertificateBuilder], x509.CertificateBuilder] = lambda builder: builder,
) -> bytes:
    """Have `signer` sign a leaf that names one node and carries some CA certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = tls._build_leaf(key.public_key(), named, carried, NOW)
    return change(builder).sign(signer.private_key, None).public_bytes(PEM)


def drop(extension: type[x509.ExtensionType]) -> Callable[..., x509.CertificateBuilder]:
    """Leave an extension out."""

    def change(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        builder._extensions = [
            one for one in builder._extensions if not isinstance(one.value, extension)
        ]
        return builder

    return change


def name_servers(*names: x509.GeneralName) -> Callable[..., x509.CertificateBuilder]:
    """Give the leaf other server names."""

    def change(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
        kept = drop(x509.SubjectAlternativeName)(builder)
        return kept.add_extension(x509.SubjectAlternativeName(names), critical=True)

    return change


# --- leaves ------------------------------------------------------------------------------------


def test_a_leaf_proves_its_node() -> None:
    leaf = tls.create_leaf(A, NOW)
    assert tls.verify_leaf(leaf.chain_pem, A.node_id, NOW) == CA_A
    der = x509.load_pem_x509_certificate(leaf.chain_pem).public_bytes(serialization.Encoding.DER)
    assert tls.verify_leaf(der, A.node_id, NOW) == CA_A
    assert tls.parse_server_name(tls.extract_server_name(leaf.chain_pem)) == A.node_id


def test_the_leaf_is_p256_and_the_chain_ends_in_its_authority() -> None:
    leaf, authority = x509.load_pem_x509_certificates(tls.create_leaf(A, NOW).chain_pem)
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert authority.public_bytes(serialization.Encoding.DER) == CA_A
    leaf.verify_directly_issued_by(authority)


def test_a_leaf_of_another_node_is_refused() -> None:
    with pytest.raises(tls.InvalidCertificateError, match="speaks of"):
        tls.verify_leaf(tls.create_leaf(B, NOW).chain_pem, A.node_id, NOW)


def test_a_member_cannot_sign_a_leaf_that_names_another() -> None:
    """Every member's CA is in the bundle: only this check keeps A from speaking for B."""
    with_own_ca = sign_leaf(signer=A, named=B.node_id, carried=CA_A)
    with_others_ca = sign_leaf(signer=A, named=B.node_id, carried=CA_B)
    with pytest.raises(tls.InvalidCertificateError, match="this is node"):
        tls.verify_leaf(with_own_ca, B.node_id, NOW)
    with pytest.raises(tls.InvalidCertificateError, match="not signed by this node's key"):
        tls.verify_leaf(with_others_ca, B.node_id, NOW)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (tls.LEAF_LIFETIME + timedelta(seconds=1), "expired"),
        (-tls.LEAF_BACKDATING - timedelta(seconds=1), "not valid before"),
    ],
)
def test_a_leaf_outside_its_time_is_refused(after: timedelta, reason: str) -> None:
    leaf = tls.create_leaf(A, NOW).chain_pem
    with pytest.raises(tls.InvalidCertificateError, match=reason):
        tls.verify_leaf(leaf, A.node_id, NOW + after)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop(x509.UnrecognizedExtension), "does not carry its CA"),
        (drop(x509.SubjectAlternativeName), "names no server"),
        (name_servers(), "names no server|exactly one"),
        (name_servers(x509.DNSName("example.org")), "speaks of example.org"),
        (
            name_servers(
                x509.DNSName(tls.server_name(A.node_id)), x509.DNSName(tls.server_name(B.node_id))
            ),
            "exactly one",
        ),
        (name_servers(x509.RFC822Name("a@example.org")), "exactly one"),
    ],
)
def test_a_leaf_of_another_form_is_refused(
    change: Callable[..., x509.CertificateBuilder], reason: str
) -> None:
    leaf = sign_leaf(change=change)
    with pytest.raises(tls.InvalidCertificateError, match=reason):
        tls.verify_leaf(leaf, A.node_id, NOW)


def test_a_leaf_with_another_kind_of_key_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    leaf = tls._build_leaf(key.public_key(), A.node_id, CA_A, NOW).sign(A.private_key, None)
    with pytest.raises(tls.InvalidCertificateError, match="not P-256"):
        tls.verify_leaf(leaf.public_bytes(PEM), A.node_id, NOW)


@pytest.mark.parametrize("junk", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA"])
def test_junk_is_no_certificate(junk: bytes) -> None:
    with pytest.raises(tls.InvalidCertificateError, match="does not parse"):
        tls.verify_leaf(junk, A.node_id, NOW)


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_damaged_leaf_is_refused_by_name(position: int, bit: int) -> None:
    damaged = bytearray(
        x509.load_pem_x509_certificate(LEAF.chain_pem).public_bytes(serialization.Encoding.DER)
    )
    damaged[position % len(damaged)] ^= 1 << bit
    with pytest.raises(tls.InvalidCertificateError):
        tls.verify_leaf(bytes(damaged), A.node_id, NOW)


LEAF = tls.create_leaf(A, NOW)


def test_a_leaf_is_due_after_half_its_lifetime() -> None:
    assert LEAF.expires_at == NOW + tls.LEAF_LIFETIME
    assert not LEAF.is_due(NOW + tls.LEAF_LIFETIME / 2 - timedelta(seconds=1))
    assert LEAF.is_due(NOW + tls.LEAF_LIFETIME / 2)


def test_a_private_key_is_never_shown() -> None:
    assert "PRIVATE" not in repr(LEAF)


# --- CA certificates ---------------------------------------------------------------------------


def create_ca(
    *,
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey = A.private_key,
    subject: str = A.node_id.hex(),
    signer: Ed25519PrivateKey | ec.EllipticCurvePrivateKey | None = None,
    constraints: x509.BasicConstraints | None = None,
) -> bytes:
    """Create a CA certificate that differs from a node's in what is given."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    builder = builder.add_extension(
        constraints or x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    by = signer or key
    algorithm = hashes.SHA256() if isinstance(by, ec.EllipticCurvePrivateKey) else None
    return builder.sign(by, algorithm).public_bytes(serialization.Encoding.DER)


def test_a_ca_certificate_is_the_same_every_time() -> None:
    assert tls.create_ca_certificate(A) == CA_A
    tls.verify_ca_certificate(CA_A, A.node_id)
    assert len(CA_A) <= 4096


def test_a_ca_certificate_of_another_node_is_refused() -> None:
    with pytest.raises(tls.InvalidCertificateError, match="this is node") as caught:
        tls.verify_ca_certificate(CA_B, A.node_id)
    assert caught.value.operands == {"node_id": A.node_id, "actual_node_id": B.node_id}


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (create_ca(subject=B.node_id.hex()), "not of the form"),
        (create_ca(constraints=x509.BasicConstraints(ca=False, path_length=None)), "not of the"),
        (create_ca(constraints=x509.BasicConstraints(ca=True, path_length=None)), "not of the"),
        (create_ca(signer=B.private_key), "not signed by this node's key"),
        (create_ca(key=ec.generate_private_key(ec.SECP256R1())), "not Ed25519"),
        (b"junk", "does not parse"),
    ],
)
def test_a_ca_certificate_of_another_form_is_refused(certificate: bytes, reason: str) -> None:
    with pytest.raises(tls.InvalidCertificateError, match=reason):
        tls.verify_ca_certificate(certificate, A.node_id)


# --- names and addresses -----------------------------------------------------------------------


def test_a_server_name_has_labels_that_dns_allows() -> None:
    name = tls.server_name(A.node_id)
    assert [len(label) for label in name.split(".")] == [32, 32, 5]
    assert tls.parse_server_name(name) == A.node_id


@pytest.mark.parametrize(
    "name",
    [
        "",
        "example.org",
        tls.server_name(A.node_id).upper(),
        A.node_id.hex() + ".iemas",
        tls.server_name(A.node_id) + ".iemas",
        tls.server_name(A.node_id).removesuffix(".iemas"),
    ],
)
def test_other_names_are_no_nodes(name: str) -> None:
    with pytest.raises(tls.InvalidCertificateError):
        tls.parse_server_name(name)


@given(
    node_id=st.binary(min_size=32, max_size=32).map(NodeId),
    host=st.sampled_from(["127.0.0.1", "::1", "fe80::1", "node-1.example.org", "localhost"]),
    port=st.integers(1, 65_535),
)
def test_addresses_survive_being_written(node_id: NodeId, host: str, port: int) -> None:
    address = tls.Address(node_id, host, port)
    assert tls.parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "node id is missing"),
        ("127.0.0.1:7470", "node id is missing"),
        ("abcd@127.0.0.1:7470", "64 hex digits"),
        ("zz" * 32 + "@127.0.0.1:7470", "64 hex digits"),
        ("ab" * 31 + " ab@h:1", "64 hex digits"),
        ("ab" * 32 + "@127.0.0.1", "not host:port"),
        ("ab" * 32 + "@:7470", "not host:port"),
        ("ab" * 32 + "@[]:7470", "names no host"),
        ("ab" * 32 + "@::1:7470", "brackets"),
        ("ab" * 32 + "@host:http", "port"),
        ("ab" * 32 + "@host:65536", "port"),
        ("ab" * 32 + "@host:-1", "port"),
        ("ab" * 32 + "@host:٣", "port"),
        ("ab" * 32 + "@host:0", "port 0"),
        ("ab" * 32 + "@a b:1", "names no host"),
        ("ab" * 32 + "@x@y:1", "names no host"),
        ("ab" * 32 + "@http://host:1", "brackets|names no host"),
    ],
)
def test_malformed_addresses_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(MalformedMessageError, match=reason):
        tls.parse_address(text)


def test_a_fingerprint_is_what_tools_print() -> None:
    printed = x509.load_der_x509_certificate(CA_A).fingerprint(hashes.SHA256()).hex()
    assert tls.compute_fingerprint(CA_A).replace(":", "") == printed
