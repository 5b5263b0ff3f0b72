"""Following the key file: a rotation takes effect in running daemons, and a key that is missing is told."""

from __future__ import annotations

from typing import Final

import trio

from daemon.errors import SettingsInvalid
from daemon.key_file import KeyFile, Stamp
from daemon.log import get
from daemon.sealing import KeyRing
from daemon.store import sealed
from daemon.store.pool import Pool

log = get("sealing_keys")

LOOK_S: Final = 0.5
QUERY_S: Final = 5.0


class SealingKeys:
    """Keeps `ring` as `file` has it; None where the keys are a credential, which changes at a start only."""

    def __init__(self, ring: KeyRing, file: KeyFile | None, pool: Pool) -> None:
        self._ring = ring
        self._file = file
        self._pool = pool
        self._stamp: Stamp | None = None
        self._told: set[bytes] = set()

    async def run(self) -> None:
        """Look twice a second. Raises DatabaseUnavailable."""
        while True:
            if self._file is not None and (stamp := self._file.stamp()) != self._stamp:
                await self._follow(self._file)
                self._stamp = stamp
            self._tell_missing()
            await trio.sleep(LOOK_S)

    async def _follow(self, file: KeyFile) -> None:
        try:
            fresh = file.ring()
        except (SettingsInvalid, FileNotFoundError) as e:
            log.warning("sealing_keys.refused", reason=str(e))
            return
        if fresh.key_ids == self._ring.key_ids:
            return
        async with self._pool.connection(QUERY_S) as conn:
            lacking = await sealed.missing(conn, fresh)
        if lacking:
            log.warning("sealing_keys.refused", reason=f"a key that is in use is not there: {sealed.say(lacking)}")
            return
        self._ring.adopt(fresh)
        log.info(
            "sealing_keys.adopted",
            seals_with=fresh.sealing_id.hex(),
            opens_with=[key_id.hex() for key_id in fresh.key_ids],
        )

    def _tell_missing(self) -> None:
        for key_id in self._ring.missing_ids:
            if key_id not in self._told:
                log.warning("sealing_key.missing", key_id=key_id.hex(), note="what needs it is held until it is given")
        self._told = set(self._ring.missing_ids)
