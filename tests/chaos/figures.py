"""The measured figures of each fault: one JSON line for each test, for the table in docs/reliability.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.oracle import Verdict
from tests.e2e.traffic import Emitter

OUT: Final = Path(__file__).parent / "out"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one fault did. `recovery_s` is the longest time from its end (for a death: from itself) to work going on."""

    case: str
    fault: str
    times: int
    events: int
    rolled_back: int
    deliveries: int
    lost: int
    duplicates: int
    bound: str
    recovery_s: float | None
    test: str


Enter = Callable[..., None]


@pytest.fixture
def enter(request: pytest.FixtureRequest) -> Enter:
    """Writes the test's entry, over the one of an earlier run."""
    test = request.node.nodeid.split("/")[-1]

    def write(
        case: str,
        fault: str,
        times: int,
        verdict: Verdict,
        *emitters: Emitter,
        bound: str = "0",
        recovery_s: float | None = None,
    ) -> None:
        entry = Entry(
            case=case,
            fault=fault,
            times=times,
            events=verdict.events,
            rolled_back=sum(len(emitter.events("rolled back")) for emitter in emitters),
            deliveries=verdict.duties,
            lost=verdict.lost,
            duplicates=verdict.duplicates,
            bound=bound,
            recovery_s=None if recovery_s is None else round(recovery_s, 2),
            test=test,
        )
        OUT.mkdir(exist_ok=True)
        name = "".join(c if c.isalnum() else "-" for c in test)
        (OUT / f"{name}.jsonl").write_text(json.dumps(asdict(entry)) + "\n")

    return write
