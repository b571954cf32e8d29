"""The key file: a node's or account's Ed25519 seed as PKCS#8 PEM, readable by its owner only.

The file is created exclusively and synced with its directory before anything says that the key
exists, since money sent to a key that was lost is lost.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import InternalError as OpenSSLError
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from iemas.core.errors import ConfigurationError
from iemas.core.identity import Identity
from iemas.files import sync_directory

_MODE = 0o600
_MAX_BYTES = 16_384


def generate_key(path: Path) -> Identity:
    """Create a new key file with mode 0600 and give its identity.

    Raises: ConfigurationError if the file exists already or cannot be written.
    """
    private_key = Ed25519PrivateKey.generate()
    pem = private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        _write_exclusively(path, pem)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} exists already and a lost key cannot be replaced: "
            "choose another path, or move that file away first",
            path=path,
        ) from error
    except OSError as error:
        raise _cannot_write(path, error) from error
    return Identity(private_key.private_bytes_raw())


def _cannot_write(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot write the key file {path} ({error.strerror}): choose a path that you may write to",
        path=path,
    )


def _write_exclusively(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, _MODE)  # A umask may have taken bits from the owner.
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        sync_directory(path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def load_key(path: Path) -> Identity:
    """Read a key file that `generate_key` wrote.

    Raises: ConfigurationError if it is missing, readable by others, or no Ed25519 key.
    """
    pem = _read_private(path)
    try:
        private_key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ConfigurationError(
            f"{path} is encrypted with a password, which a node cannot type: decrypt it with "
            f"`openssl pkey -in {path} -out KEY_FILE`",
            path=path,
        ) from error
    except (ValueError, UnsupportedAlgorithm, OpenSSLError) as error:
        raise ConfigurationError(
            f"{path} is no private key in PEM (PKCS#8): create one with `iemas-node keygen PATH`",
            path=path,
        ) from error
    if not isinstance(private_key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{path} holds a key that is not Ed25519: create one with `iemas-node keygen PATH`",
            path=path,
        )
    return Identity(private_key.private_bytes_raw())


def _read_private(path: Path) -> bytes:
    """Read the file through one descriptor, so that what is checked is what is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError(f"the key file {path} is not a regular file", path=path)
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(
                    f"the key file {path} is open to other users "
                    f"(mode {stat.S_IMODE(status.st_mode):04o}): run `chmod 600 {path}`",
                    path=path,
                )
            return file.read(_MAX_BYTES)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no key file {path}: create one with `iemas-node keygen {path}`", path=path
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the key file {path} ({error.strerror}): check its path and owner",
            path=path,
        ) from error
