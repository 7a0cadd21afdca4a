"""The server's TLS certificate, read again when its files change: a rotated one acts without a restart."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0


class Certificate:
    """A certificate and its key in two files; `context` always presents the newest good pair."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._seen: tuple[bytes, bytes] | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2

    def load(self) -> bool:
        """Read the files if they changed; True once there is a certificate to present."""
        try:
            content = self._certificate.read_bytes(), self._key.read_bytes()
            if content != self._seen:
                # On a trial context first: a half-written pair must not spoil what is presented now.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
                self.context.load_cert_chain(self._certificate, self._key)
                log.info("certificate %s: %s", self._certificate, "read" if self._seen is None else "renewed")
                self._seen = content
        except (OSError, ssl.SSLError) as error:
            log.debug("certificate %s not read: %s", self._certificate, error)
        return self._seen is not None

    async def first(self) -> None:
        """Wait until there is one: the operator may make it only after this server has started."""
        said = False
        while not await asyncio.to_thread(self.load):
            if not said:
                log.warning("waiting for a certificate in %s and its key in %s", self._certificate, self._key)
                said = True
            await asyncio.sleep(LOOK_SECONDS / 4)

    async def renew(self) -> None:
        """Keep reading, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.load)
