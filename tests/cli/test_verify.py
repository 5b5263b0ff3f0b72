"""`dealix verify`: good requests pass, and of the others it is told what is wrong."""

from __future__ import annotations

import time
from typing import Final

import pytest

from daemon.policy.signing import Signer, SigningKey
from tests.cli.conftest import Dealix

SECRET: Final = "whsec_" + "c2VjcmV0" * 5
BODY: Final = '{"id":"evt_1","n":1.5,"text":"é"}'


def headers(t: int | None = None, secret: str = SECRET) -> dict[str, str]:
    t = int(time.time()) if t is None else t
    signed = Signer(SigningKey.of(secret)).sign(event_id="evt_1", body=BODY.encode(), t=t)
    return {
        "Dealix-Signature": signed.dealix,
        "webhook-id": "evt_1",
        "webhook-timestamp": str(t),
        "webhook-signature": signed.webhook or "",
    }


def words(given: dict[str, str]) -> list[str]:
    return [word for name, value in given.items() for word in ("--header", f"{name}: {value}")]


def test_both_signatures_of_a_good_request_are_valid(dealix: Dealix) -> None:
    said = "dealix-signature: valid\nwebhook-signature: valid\n"
    assert dealix("verify", *words(headers()), "--secret", SECRET, "--body", BODY).out == said
    ended = dealix("verify", *words(headers()), stdin=BODY, DEALIX_WEBHOOK_SECRET=SECRET)
    assert (ended.code, ended.out, ended.err) == (0, said, "")


@pytest.mark.parametrize(
    ("change", "body", "secret", "text"),
    [
        ({}, BODY + "\n", SECRET, "it holds without the line end after the body"),
        ({}, BODY.replace(",", ", "), SECRET, "the body was parsed and written again"),
        ({}, BODY.replace("1.5", "1.6"), SECRET, "no signature matches: another secret"),
        ({}, BODY[:-1], SECRET, "the body is not JSON: is it whole"),
        ({}, BODY, "whsec_" + "b3RoZXIh" * 5, "no signature matches: another secret"),
        ({}, BODY, SECRET.removeprefix("whsec_"), "does not begin with whsec_"),
        (headers(1_700_000_000), BODY, SECRET, "s ago, and 300 s are allowed"),
        (headers(9_000_000_000), BODY, SECRET, "s in the future, and 300 s are allowed"),
        ({"Dealix-Signature": "v1=00"}, BODY, SECRET, "there is no t="),
        ({"Dealix-Signature": "t=1"}, BODY, SECRET, "there is no v1="),
        ({"Dealix-Signature": "t=1,v1=zz"}, BODY, SECRET, "v1 is not hexadecimal"),
        ({"webhook-timestamp": "soon"}, BODY, SECRET, "webhook-timestamp is not a number"),
        ({"webhook-signature": "v2,abc"}, BODY, SECRET, "there is no v1,<base64>"),
        ({"webhook-signature": "v1,*"}, BODY, SECRET, "the text after v1, is not base64"),
    ],
)
def test_what_is_wrong_is_told_in_words(
    dealix: Dealix, change: dict[str, str], body: str, secret: str, text: str
) -> None:
    ended = dealix("verify", *words(headers() | change), "--secret", secret, "--body", body)
    assert ended.code == 1
    assert "NOT valid" in ended.out
    assert text in ended.err
    assert secret not in ended.out + ended.err


def test_one_signature_among_several_is_enough_as_while_a_secret_is_rotated(dealix: Dealix) -> None:
    t = int(time.time())
    old = headers(t, "whsec_" + "b3RoZXIh" * 5)["Dealix-Signature"].partition(",")[2]
    both = {"Dealix-Signature": f"{headers(t)['Dealix-Signature']},{old}"}
    assert dealix("verify", *words(both), "--secret", SECRET, "--body", BODY).code == 0


def test_without_a_signature_usage_is_shown(dealix: Dealix) -> None:
    ended = dealix("verify", "--header", "Content-Type: application/json", "--secret", SECRET, "--body", BODY)
    assert ended.code == 2
    assert "Dealix-Signature" in ended.err
