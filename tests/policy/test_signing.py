"""Bodies byte by byte, and signatures that the official verifiers of both schemes accept."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError
from stripe import SignatureVerificationError, WebhookSignature

from daemon.policy.signing import Mac, Signatures, Signer, SigningKey, envelope, headers, standard_key

AT = datetime(2026, 9, 21, 14, 13, 20, 987654, tzinfo=UTC)
BODY = envelope(event_id="evt_1", event_type="deal.won", customer_id="acme", data='{"deal_id": 7}', created_at=AT)

secrets = st.binary(min_size=33, max_size=33).map(lambda b: "whsec_" + base64.b64encode(b).decode())
NEW = "whsec_" + base64.b64encode(b"n" * 33).decode()
OLD = "whsec_" + base64.b64encode(b"o" * 33).decode()
SEED = "whsec_" + base64.urlsafe_b64encode(b"\xff\xfe" * 16).decode().rstrip("=")
"""As the seed made them: base64url, which is no standard base64."""


def sign(secret: str, body: bytes = BODY, t: int | None = None) -> Signatures:
    return Signer(SigningKey.of(secret)).sign(event_id="evt_1", body=body, t=int(time.time()) if t is None else t)


def rotated(t: int, *, until: float, new: str = NEW, old: str = OLD) -> Signatures:
    return Signer(SigningKey.of(new), SigningKey.of(old), until).sign(event_id="evt_1", body=BODY, t=t)


def stripe_accepts(body: bytes, header: str, secret: str) -> bool:
    try:
        return WebhookSignature.verify_header(body, header, secret, tolerance=300)
    except SignatureVerificationError:
        return False


def standard_accepts(body: bytes, signed: Signatures, secret: str) -> bool:
    fields = headers(
        event_id="evt_1",
        event_type="deal.won",
        attempt=1,
        dealix_signature=signed.dealix,
        webhook_signature=signed.webhook,
        t=signed.t,
    )
    try:
        Webhook(secret).verify(body, dict(fields), json_parse=False)
    except WebhookVerificationError:
        return False
    return True


# ── the body ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_body_has_six_keys_in_this_order_without_a_blank_and_whole_seconds() -> None:
    assert BODY == (
        b'{"api_version":"v1","customer_id":"acme","data":{"deal_id": 7},"id":"evt_1","timestamp":1790000000,'
        b'"type":"deal.won"}'
    )


@pytest.mark.parametrize(
    "data",
    [
        '{"n": 1.0, "m":1e400,"z":-0.0 ,"big":12345678901234567890}',
        '{"b":1,"a":2,"b":3}',
        '{\n\t"key" :  "line\\u2028\u2028\\/\\u00e9é"}',
        '{"emoji":"😀","escaped":"\\ud83d\\ude00","quote":"\\""}',
        "{}",
    ],
)
def test_data_stands_in_the_body_as_the_emitter_wrote_it(data: str) -> None:
    body = envelope(event_id="e", event_type="a.b", customer_id="c", data=data, created_at=AT)
    before, _, after = body.partition(data.encode())
    assert before == b'{"api_version":"v1","customer_id":"c","data":'
    assert after == b',"id":"e","timestamp":1790000000,"type":"a.b"}'
    assert json.loads(body)["data"] == json.loads(data)


@pytest.mark.parametrize(
    ("created_at", "timestamp"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC), 2**31),
        (datetime(2026, 9, 21, 14, 13, 20, 999_999, tzinfo=UTC), 1_790_000_000),
    ],
)
@pytest.mark.threat("N121")
def test_the_timestamp_is_the_whole_unix_second_of_the_emitting(created_at: datetime, timestamp: int) -> None:
    body = envelope(event_id="e", event_type="a.b", customer_id="c", data="{}", created_at=created_at)
    assert json.loads(body)["timestamp"] == timestamp


# ── one secret ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(secret=secrets, data=st.dictionaries(st.text(), st.text() | st.integers()))
def test_both_official_verifiers_accept_every_secret_and_body(secret: str, data: dict[str, str | int]) -> None:
    text = json.dumps(data, ensure_ascii=False)
    body = envelope(event_id="evt_1", event_type="deal.won", customer_id="acme", data=text, created_at=AT)
    signed = sign(secret, body)
    assert stripe_accepts(body, signed.dealix, secret)
    assert standard_accepts(body, signed, secret)


def test_both_official_verifiers_refuse_another_secret_another_body_and_an_old_time() -> None:
    signed = sign(NEW)
    assert not stripe_accepts(BODY, signed.dealix, OLD)
    assert not standard_accepts(BODY, signed, OLD)
    assert not stripe_accepts(BODY + b" ", signed.dealix, NEW)
    assert not standard_accepts(BODY + b" ", signed, NEW)
    old = sign(NEW, t=int(time.time()) - 3600)
    assert not stripe_accepts(BODY, old.dealix, NEW)
    assert not standard_accepts(BODY, old, NEW)


def test_the_signatures_are_those_that_the_contract_spells_out() -> None:
    signed = sign(NEW, t=1_790_000_000)
    stripe = hmac.new(NEW.encode(), b"1790000000." + BODY, hashlib.sha256).hexdigest()
    key = base64.b64decode(NEW.removeprefix("whsec_"))
    standard = base64.b64encode(hmac.new(key, b"evt_1.1790000000." + BODY, hashlib.sha256).digest()).decode()
    assert signed == Signatures(1_790_000_000, f"t=1790000000,v1={stripe}", f"v1,{standard}")


# ── rotation ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_during_the_overlap_receivers_with_either_secret_accept() -> None:
    t = int(time.time())
    signed = rotated(t, until=t + 60)
    for secret in (NEW, OLD):
        assert stripe_accepts(BODY, signed.dealix, secret)
        assert standard_accepts(BODY, signed, secret)


def test_the_old_secrets_v1_stands_last_for_receivers_that_keep_only_the_last() -> None:
    t = int(time.time())
    signed = rotated(t, until=t + 60)
    last = dict(item.split("=", 1) for item in signed.dealix.split(","))
    assert last == {"t": str(t), "v1": sign(OLD, t=t).dealix.partition("v1=")[2]}
    new, old = (signed.webhook or "").split(" ")
    assert (new, old) == (sign(NEW, t=t).webhook, sign(OLD, t=t).webhook)


@pytest.mark.threat("N99")
def test_from_the_second_in_which_the_overlap_ends_only_the_new_secret_signs() -> None:
    t = int(time.time())
    assert rotated(t, until=t + 0.5) != sign(NEW, t=t)
    assert rotated(t, until=t) == sign(NEW, t=t)
    assert rotated(t, until=t - 1) == sign(NEW, t=t)


def test_a_time_of_the_overlap_comes_from_an_aware_datetime() -> None:
    until = datetime.now(UTC) + timedelta(seconds=60)
    assert len(rotated(int(time.time()), until=until.timestamp()).dealix.split(",")) == 3


# ── secrets that fit one scheme only ─────────────────────────────────────────────────────────────────────────────────


def test_a_base64url_secret_gets_the_stripe_format_and_no_webhook_signature() -> None:
    signed = sign(SEED)
    assert stripe_accepts(BODY, signed.dealix, SEED)
    assert signed.webhook is None
    names = [
        name
        for name, _ in headers(
            event_id="evt_1",
            event_type="deal.won",
            attempt=1,
            dealix_signature=signed.dealix,
            webhook_signature=signed.webhook,
            t=signed.t,
        )
    ]
    assert "webhook-signature" not in names
    assert {"webhook-id", "webhook-timestamp", "Dealix-Signature"} < set(names)


def test_rotating_away_from_a_base64url_secret_signs_standard_webhooks_with_the_new_one_alone() -> None:
    t = int(time.time())
    signed = rotated(t, until=t + 60, old=SEED)
    assert stripe_accepts(BODY, signed.dealix, SEED)
    assert stripe_accepts(BODY, signed.dealix, NEW)
    assert signed.webhook == sign(NEW, t=t).webhook


@pytest.mark.parametrize("secret", ["whsec_", "whsec_abc", "whsec_ab-_", "whsec_ab cd", "whsec_äöüß", "whsec_ab=c"])
def test_what_is_no_whole_standard_base64_is_no_key_of_standard_webhooks(secret: str) -> None:
    assert standard_key(secret) is None


def test_padding_is_part_of_standard_base64() -> None:
    assert standard_key("whsec_aQ==") == b"i"


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_headers_are_the_contracts_in_its_order() -> None:
    fields = headers(
        event_id="order-7",
        event_type="deal.won",
        attempt=3,
        dealix_signature="t=5,v1=ab",
        webhook_signature="v1,cd",
        t=5,
    )
    assert fields == [
        ("Content-Type", "application/json"),
        ("User-Agent", "Dealix-Webhooks/1.0"),
        ("Dealix-Event-Id", "order-7"),
        ("Dealix-Event-Type", "deal.won"),
        ("Dealix-Delivery-Attempt", "3"),
        ("Dealix-Signature", "t=5,v1=ab"),
        ("webhook-id", "order-7"),
        ("webhook-timestamp", "5"),
        ("webhook-signature", "v1,cd"),
    ]


@given(st.binary(max_size=200), st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_a_kept_key_schedule_makes_the_codes_of_the_standard_library(key: bytes, messages: list[bytes]) -> None:
    mac = Mac(key)
    for message in messages:
        assert mac.digest(message) == hmac.digest(key, message, "sha256")
