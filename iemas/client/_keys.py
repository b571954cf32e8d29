"""Loading the key that a client pays with."""

from __future__ import annotations

import os
from pathlib import Path

from iemas.core.identity import Identity
from iemas.keystore import load_key

Key = Identity | str | os.PathLike[str]
"""An identity, or the path of a key file as `iemas-node keygen` writes it (PKCS#8 PEM)."""


def load_identity(key: Key) -> Identity:
    """Give the identity of a key.

    Raises: ConfigurationError that names the file and the fix.
    """
    return key if isinstance(key, Identity) else load_key(Path(key).expanduser())
