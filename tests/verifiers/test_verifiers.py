"""The published code of each language accepts what is signed, and says why it refuses anything else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from api.verification import examples
from daemon.policy.signing import Signer, SigningKey, envelope
from daemon.store.subscriptions import new_secret
from tests.verifiers.programs import ELSEWHERE, EVERYWHERE, Language, Verifier, made

OURS: Final = new_secret()
OTHER: Final = new_secret()
BODY: Final = envelope(
    event_id="evt_1",
    event_type="deal.won",
    customer_id="acme",
    data='{"deal_id": 7,\n "name": "Zoë 😀 100% \\u00e9 \\\\ $HOME `x` \'q\'"}',
    created_at=datetime(2026, 9, 21, tzinfo=UTC),
)
ACCEPTED: Final = "accepted evt_1"
OUT_OF_TIME: Final = "refused: the signature's time is missing or more than five minutes away"
NO_FIT: Final = "refused: no signature fits"
NO_SECRET: Final = "refused: no secret is configured"


@dataclass(frozen=True)
class Case:
    """A request, made from the Unix second of now: its header, what its body is, and what is to be said of it."""

    what: str
    header: Callable[[int], str | None]
    verdict: str
    body: bytes = BODY
    secret: str = OURS


def signed(t: int, secret: str = OURS, previous: str | None = None) -> str:
    """The header as the product makes it; with a previous secret, that of a subscription in rotation."""
    old = None if previous is None else SigningKey.of(previous)
    return Signer(SigningKey.of(secret), old, t + 9999.0).sign(event_id="evt_1", body=BODY, t=t).dealix


def flipped(header: str) -> str:
    """One bit of the last hexadecimal digit is another one."""
    return header[:-1] + f"{int(header[-1], 16) ^ 1:x}"


CASES: Final[tuple[Case, ...]] = (
    Case("as it is sent", signed, ACCEPTED),
    Case("sent nearly five minutes ago", lambda now: signed(now - 270), ACCEPTED),
    Case("sent by a clock that is ahead", lambda now: signed(now + 290), ACCEPTED),
    Case("in rotation, ours is the new secret", lambda now: signed(now, OURS, OTHER), ACCEPTED),
    Case("in rotation, ours is the old secret", lambda now: signed(now, OTHER, OURS), ACCEPTED),
    Case("beside schemes of the future", lambda now: f"v9=é,{signed(now)},v2=abc", ACCEPTED),
    Case("with blanks after the commas", lambda now: signed(now).replace(",", ", "), ACCEPTED),
    Case("another number in the body", signed, NO_FIT, body=BODY.replace(b"7", b"8", 1)),
    Case("a newline after the body", signed, NO_FIT, body=BODY + b"\n"),
    Case("the body cut", signed, NO_FIT, body=BODY[:-1]),
    Case("no body", signed, NO_FIT, body=b""),
    Case("another bit in the signature", lambda now: flipped(signed(now)), NO_FIT),
    Case("the signature cut", lambda now: signed(now)[:-1], NO_FIT),
    Case("the signature prolonged", lambda now: signed(now) + "0", NO_FIT),
    Case("an empty signature", lambda now: f"t={now},v1=", NO_FIT),
    Case("a signature without a value", lambda now: f"t={now},v1", NO_FIT),
    Case("a signature that is no ASCII", lambda now: f"t={now},v1=é", NO_FIT),
    Case("no signature", lambda now: f"t={now}", NO_FIT),
    Case("another scheme's signature", lambda now: signed(now).replace("v1=", "v0="), NO_FIT),
    Case("another secret", lambda now: signed(now, OTHER), NO_FIT),
    Case("two other secrets", lambda now: signed(now, OTHER, new_secret()), NO_FIT),
    Case("a later time", lambda now: signed(now).replace(f"t={now}", f"t={now + 1}"), NO_FIT),
    Case("old, with a new time before it", lambda now: f"t={now},{signed(now - 999)}", NO_FIT),
    Case("old, with a new time after it", lambda now: f"{signed(now - 999)},t={now}", OUT_OF_TIME),
    Case("stale", lambda now: signed(now - 301), OUT_OF_TIME),
    Case("of the future", lambda now: signed(now + 330), OUT_OF_TIME),
    Case("no header", lambda _: None, OUT_OF_TIME),
    Case("an empty header", lambda _: "", OUT_OF_TIME),
    Case("no time", lambda now: signed(now).partition(",")[2], OUT_OF_TIME),
    Case("an empty time", lambda now: signed(now).replace(f"t={now}", "t="), OUT_OF_TIME),
    Case("a time in words", lambda now: signed(now).replace(f"t={now}", "t=now"), OUT_OF_TIME),
    Case("a time below zero", lambda now: signed(now).replace(f"t={now}", f"t=-{now}"), OUT_OF_TIME),
    Case("a time past all numbers", lambda now: signed(now).replace(f"t={now}", "t=" + "9" * 400), OUT_OF_TIME),
    Case("a fraction of a time", lambda now: signed(now).replace(f"t={now}", f"t={now}.0"), OUT_OF_TIME),
    Case("signed with nothing, checked with nothing", lambda now: signed(now, ""), NO_SECRET, secret=""),
)


@pytest.fixture(
    scope="module",
    params=[*EVERYWHERE, *(pytest.param(one, marks=pytest.mark.languages) for one in ELSEWHERE)],
    ids=lambda one: one.name,
)
def verifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    language: Language = request.param
    folder: Path = tmp_path_factory.mktemp("verifier")
    return made(language, folder)


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_the_published_code_says_of_a_request(verifier: Verifier, case: Case) -> None:
    assert verifier.verdict(case.body, case.header(int(time.time())), case.secret) == case.verdict


def test_every_language_that_is_published_is_run() -> None:
    assert list(examples()) == ["Python", "Node.js", "Go", "PHP", "Ruby", "Java", "C#", "Shell"]
    assert set(examples()) == {one.name for one in (*EVERYWHERE, *ELSEWHERE)}
