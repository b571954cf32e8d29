"""Files that are written whole or not at all, and what to do where the disk refuses."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iemas.core.errors import ConfigurationError

_FULL = (errno.ENOSPC, errno.EDQUOT)
ELSEWHERE = "choose another place"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by these bytes, readable by its owner only; its folder is made if need be.

    Whoever reads it, also after a crash, sees the old bytes or the new ones. Raises: OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}-")
    except OSError as error:
        error.filename = str(path)  # the one that the caller knows
        raise
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    sync_directory(path.parent)


@contextmanager
def naming_os_errors(elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Make what the system says of a file a ConfigurationError that names it and the fix.

    `elsewhere` says how to choose another file or folder. An OSError that names no file, as those
    of sockets do not, passes through, but for a full disk.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        raise explain_os_error(error, elsewhere) from error


def explain_os_error(
    error: OSError, elsewhere: str = ELSEWHERE, *, path: str | Path | None = None
) -> ConfigurationError:
    """Say which file the system refused, why, and what to do."""
    place = path or os.fsdecode(error.filename or "the disk")
    if error.errno in _FULL:
        fix = "free space on its disk"
    elif error.errno in (errno.EACCES, errno.EPERM):
        fix = f"let this user (uid {os.geteuid()}) read and write it, or {elsewhere}"
    elif error.errno == errno.EROFS:
        fix = f"make its disk writable, or {elsewhere}"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        fix = f"a file stands where a folder is needed: {elsewhere}"
    elif error.errno == errno.EISDIR:
        fix = "a folder stands where a file is needed: move it away"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        fix = "allow more open files (`ulimit -n`)"
    else:
        fix = elsewhere
    return ConfigurationError(f"cannot use {place} ({error.strerror}): {fix}", path=place)


def sync_directory(directory: Path) -> None:
    """Make what was created or renamed in a directory last. Raises: OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
