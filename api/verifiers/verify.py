"""Verifies webhooks of Dealix. Python 3.10 or newer, nothing else."""

import hashlib
import hmac
import json
import time
from typing import Any

TOLERANCE_S = 300


def verify(body: bytes, signature: str | None, secret: str) -> dict[str, Any]:
    """The event in a request. Raises ValueError unless it is genuine and at most five minutes old.

    body: the raw bytes, before anything parses them. signature: the header Dealix-Signature, None where it is missing.
    secret: all of it, whsec_ included.
    """
    if not secret:
        raise ValueError("no secret is configured")
    fields = [part.strip().partition("=")[::2] for part in (signature or "").split(",")]
    t = next((value for name, value in fields if name == "t"), "")
    if not t.isdecimal() or abs(int(time.time()) - int(t)) > TOLERANCE_S:
        raise ValueError("the signature's time is missing or more than five minutes away")
    expected = hmac.new(secret.encode(), t.encode() + b"." + body, hashlib.sha256).hexdigest().encode()
    # While a secret is being rotated there are two v1: one that fits is enough.
    if not any(name == "v1" and hmac.compare_digest(value.encode(), expected) for name, value in fields):
        raise ValueError("no signature fits")
    return json.loads(body)
