"""Who owns which shard at this moment, read from the server's locks."""

from __future__ import annotations

from typing import Final

from daemon.store.shards import OWN_CLASS, SHARDS
from tests.e2e.scene import Scene
from tests.support.daemon_process import until

SHARED_S: Final = 30.0
"""A shard moves when the last request of its customers has ended, which may take 10 s."""

OWNED: Final = """
    SELECT pid, array_agg(objid::int) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid::bigint = %s
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    GROUP BY pid
"""


def owned(scene: Scene) -> dict[int, set[int]]:
    """The shards by the backend that holds their locks."""
    return {pid: set(shards) for pid, shards in scene.rows(OWNED, [OWN_CLASS])}


def wait_until_shared(scene: Scene, daemons: int, *, within_s: float = SHARED_S) -> dict[int, set[int]]:
    """Wait until each of so many daemons has its share; the shards by the backend that holds their locks."""
    share = -(-SHARDS // daemons)

    def look() -> dict[int, set[int]]:
        now = owned(scene)
        counts = [len(shards) for shards in now.values()]
        return now if len(now) == daemons and sum(counts) == SHARDS and max(counts) <= share else {}

    return until(look, within_s=within_s, what=f"{SHARDS} shards, at most {share} for each of {daemons}")
