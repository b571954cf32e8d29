"""The last verified header of a chain, kept between runs: where the next run goes on from.

One file a chain holds the light block itself: its header, its commit and who voted. So a damaged
file shows by its signatures, and one of another chain by its header. Whoever can write in the
user's folder could put a made-up block there; it could read the key as well.
Source: docs/spec/light_client.md §6.
"""

from __future__ import annotations

from pathlib import Path

import platformdirs

from iemas import wire
from iemas.consensus.light import check_light_block
from iemas.consensus.messages import LightBlock
from iemas.core.encoding import compute_hash
from iemas.core.errors import InvalidInputError, TrustFileError
from iemas.files import write_atomically

MAX_BYTES = 4 * 1024 * 1024


class TrustFileWarning(UserWarning):
    """The last verified header could not be read, or not be kept: the client goes on without."""


class TrustStore:
    """Keeps one block a chain.

    Args:
        folder: where; by default the user's folder for state.

    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or platformdirs.user_state_path("iemas") / "trusted"

    def load(self, chain_id: str) -> LightBlock | None:
        """Give the block that was kept of a chain; None if there is none.

        Raises: TrustFileError if the file is damaged, another chain's, or cannot be read.
        """
        path = self.get_path(chain_id)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrustFileError(f"{path} cannot be read ({error.strerror})", path=path) from error
        try:
            block = wire.decode(LightBlock, data)
            check_light_block(block, chain_id)
        except InvalidInputError as error:
            raise TrustFileError(
                f"{path} does not hold a verified header of this market ({error}): it is left out, "
                "and replaced by the next one",
                path=path,
            ) from error
        return block

    def save(self, chain_id: str, block: LightBlock) -> None:
        """Keep a block of a chain in place of the one before. Raises: TrustFileError."""
        path = self.get_path(chain_id)
        try:
            write_atomically(path, wire.encode(block))
        except OSError as error:
            raise TrustFileError(
                f"the last verified header cannot be kept in {path} ({error.strerror}): set "
                "state_dir to a folder that you may write to",
                path=path,
            ) from error

    def get_path(self, chain_id: str) -> Path:
        """Give a chain's file; a chain's id may hold what a file's name may not."""
        return self._folder / compute_hash(chain_id.encode()).hex()
