"""What every actor works with."""

from __future__ import annotations

from dataclasses import dataclass

from config.settings import Settings
from daemon.actors.fence import Fence
from daemon.actors.lanes import Lanes
from daemon.actors.recorder import Recorder
from daemon.observe import Observer
from daemon.sealing import KeyRing
from daemon.sender.endpoint import Sender
from daemon.tracing import Tracer


@dataclass(frozen=True, slots=True)
class Tools:
    """Made once by the engine; what they do is behind each field's own type."""

    settings: Settings
    ring: KeyRing
    sender: Sender
    lanes: Lanes
    fence: Fence
    recorder: Recorder
    observer: Observer
    tracer: Tracer | None
