"""Who owns which shard at this moment, read from the server's locks."""

from __future__ import annotations

from typing import Final

from daemon.store.shards import OWN_CLASS
from tests.e2e.scene import Scene

OWNED: Final = """
    SELECT pid, array_agg(objid::int) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid::bigint = %s
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    GROUP BY pid
"""


def owned(scene: Scene) -> dict[int, set[int]]:
    """The shards by the backend that holds their locks."""
    return {pid: set(shards) for pid, shards in scene.rows(OWNED, [OWN_CLASS])}
