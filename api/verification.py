"""What receivers are told about verifying a request: words, header names, and an example that runs."""

from __future__ import annotations

from typing import Final

from daemon.policy import signing

SIGNATURE_FORMAT: Final = (
    "Dealix-Signature: t=<unix>,v1=<hex>; v1 is HMAC-SHA256 over <t>.<body>, keyed with the whole secret as UTF-8. "
    "While a secret is being rotated there are two v1, the old secret's last."
)
HEADERS_EMITTED: Final = [
    name
    for name, _ in signing.headers(
        event_id="", event_type="", attempt=1, dealix_signature="", webhook_signature="", t=0
    )
]
SECRET_WARNING: Final = "Keep this secret now: it is not shown again. Whoever has it can forge events to this endpoint."  # noqa: S105 a warning, no secret

EXAMPLE_PYTHON: Final = '''\
import hashlib
import hmac
import json
import os
import time

SECRET = os.environ["DEALIX_WEBHOOK_SECRET"]  # all of it, whsec_ included
TOLERANCE_S = 300


def verify(body: bytes, signature: str) -> dict:
    """The event in a request, from its raw body and its Dealix-Signature header. Raises ValueError if it is forged."""
    fields = [part.strip().partition("=")[::2] for part in signature.split(",")]
    t = next((value for name, value in fields if name == "t"), "")
    if abs(time.time() - int(t)) > TOLERANCE_S:
        raise ValueError("the request is too old")
    expected = hmac.new(SECRET.encode(), t.encode() + b"." + body, hashlib.sha256).hexdigest().encode()
    if not any(name == "v1" and hmac.compare_digest(value.encode(), expected) for name, value in fields):
        raise ValueError("the signature does not fit")
    return json.loads(body)
'''

VERIFICATION_DOC: Final = f"""\
Take the raw body, before anything parses it. From Dealix-Signature take t and every v1. Reject the request if t is
more than 5 minutes away from now. Compute HMAC-SHA256 over t, a full stop and the body, keyed with the whole secret
string as UTF-8, in hex, and accept if any v1 equals it, compared in constant time. Then answer 2xx at once and work
afterwards. The same event may come more than once: remember its id (Dealix-Event-Id). Libraries for Stripe's webhooks
verify Dealix-Signature, those for Standard Webhooks verify webhook-id, webhook-timestamp and webhook-signature.

In Python:

{EXAMPLE_PYTHON}"""
