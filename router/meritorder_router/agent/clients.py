"""The tokens that a gateway's clients may show: read from their mounted Secret, handed to Envoy as hashes.

Each file of the directory holds one token. What kubelet brings anew is seen within half a second; Envoy
reads the hashes per request (`render.clients`). Tokens are kept nowhere and never logged, their number is.
"""

import asyncio
import hashlib
import logging
from collections.abc import Set
from pathlib import Path

from meritorder_router.agent.applier import replace_file
from meritorder_router.render.clients import LONGEST_TOKEN

log = logging.getLogger("meritorder.agent")

LOOK_SECONDS = 0.5
MOST = 256
"""Tokens; each request is compared with all."""


class Clients:
    """Keeps the hashes in step with the mounted directory."""

    def __init__(self, directory: Path, hashes: Path) -> None:
        """`hashes`: the file that Envoy reads."""
        self._directory = directory
        self._hashes = hashes
        self._seen: Set[str] | None = None
        self._told: str | None = None

    def look(self) -> None:
        """See what is mounted now; what cannot be read just now stays as it was."""
        try:
            found = read(self._directory)
            if found == self._seen:
                return
            if len(found) <= MOST:
                replace_file(self._hashes, "".join(f"{one}\n" for one in sorted(found)).encode())
        except FileNotFoundError:
            return  # it is changing
        except OSError as error:
            if self._told != error.strerror:
                log.error(f"the tokens of clients cannot be renewed: {error.strerror}; those before stay")
            self._told = error.strerror
            return
        self._seen, self._told = found, None
        if len(found) > MOST:
            log.error(
                f"{len(found)} tokens of clients are mounted; there must be at most {MOST}: those before "
                "stay, take some out of the Secret"
            )
        elif found:
            log.info(f"{len(found)} tokens of clients are accepted")
        else:
            log.warning("no token of a client is mounted: every request is answered 401")

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()


def read(directory: Path) -> Set[str]:
    """The hashes of the tokens in a directory, none where there is no such; raises OSError, FileNotFoundError
    while it is changing.
    """
    found: set[str] = set()
    if not directory.is_dir():
        return found
    # kubelet moves a symlink to the new content: what is read is all of one moment.
    pointer = directory / "..data"
    for path in sorted((pointer.resolve() if pointer.exists() else directory).iterdir()):
        if path.name.startswith(".."):
            continue
        with path.open("rb") as file:
            token = file.read(LONGEST_TOKEN + 64).strip()
        if 0 < len(token) <= LONGEST_TOKEN and all(32 < byte < 127 for byte in token):
            found.add(hashlib.sha256(token).hexdigest())
    return found
