"""Key files: created once, for their owner only, and refused otherwise with the fix."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from iemas.core.errors import ConfigurationError
from iemas.keystore import generate_key, load_key


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def to_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def test_a_new_key_is_read_back(tmp_path: Path) -> None:
    created = generate_key(tmp_path / "deep" / "node.key")
    assert load_key(tmp_path / "deep" / "node.key") == created
    assert created.node_id != generate_key(tmp_path / "other.key").node_id


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_a_new_key_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "node.key"
    before = os.umask(umask)
    try:
        generate_key(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    created = generate_key(path)
    with pytest.raises(ConfigurationError, match=r"exists already.*choose another path"):
        generate_key(path)
    assert load_key(path) == created


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="exists already"):
        generate_key(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_path_that_cannot_be_written_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot write.*choose a path"):
        generate_key(tmp_path / "file" / "node.key")


def test_nothing_is_left_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigurationError, match="No space left"):
        generate_key(tmp_path / "node.key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    generate_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        load_key(path)


def test_a_missing_key_names_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="iemas-node keygen"):
        load_key(tmp_path / "node.key")


def claim_x448(seed: bytes) -> bytes:
    """Name another kind of key than the bytes are: OpenSSL fails in a way of its own."""
    pem = to_pem(ed25519.Ed25519PrivateKey.from_private_bytes(seed), b"")
    return pem.replace(b"K2VwBCIE", b"K2VvBCIE")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "no private key in PEM"),
        (lambda: b"\x00junk", "no private key in PEM"),
        (lambda: claim_x448(b"f" * 32), "no private key in PEM"),
        (lambda: to_pem(ec.generate_private_key(ec.SECP256R1()), b""), "not Ed25519"),
        (lambda: to_pem(ed25519.Ed25519PrivateKey.generate(), b"secret"), "encrypted"),
    ],
)
def test_other_files_are_no_keys(tmp_path: Path, make: Callable[[], bytes], reason: str) -> None:
    path = write(tmp_path / "node.key", make())
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load_key(path)
    assert caught.value.operands == {"path": path}


def test_a_directory_or_pipe_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read|not a regular file"):
        load_key(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        load_key(tmp_path / "pipe")
