"""Loading the key that a client pays with."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from iemas.core.errors import ConfigurationError
from iemas.core.identity import Identity

Key = Identity | str | os.PathLike[str]
"""An identity, or the path of a key file as `iemas-node keygen` writes it (PKCS#8 PEM)."""


def load_identity(key: Key) -> Identity:
    """Give the identity of a key.

    Raises: ConfigurationError that names the file and the fix.
    """
    if isinstance(key, Identity):
        return key
    path = Path(key).expanduser()
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(
                f"the key file {path} is open to other users: run `chmod 600 {path}`", path=path
            )
        private_key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no key file {path}: create one with `iemas-node keygen {path}`", path=path
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the key file {path} ({error.strerror}): check its path and owner",
            path=path,
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{path} is no unencrypted private key in PEM (PKCS#8): create one with "
            "`iemas-node keygen PATH`",
            path=path,
        ) from error
    if not isinstance(private_key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{path} holds a key that is not Ed25519: create one with `iemas-node keygen PATH`",
            path=path,
        )
    return Identity(private_key.private_bytes_raw())
