"""What receivers are told about verifying a request: words, header names, and an example that runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
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

_FILES: Final[Mapping[str, str]] = {
    "Python": "verify.py",
    "Node.js": "verify.mjs",
    "Go": "verify.go",
    "PHP": "verify.php",
    "Ruby": "verify.rb",
    "Java": "DealixSignature.java",
    "C#": "DealixSignature.cs",
    "Shell": "verify.sh",
}
"""The file in api/verifiers of each language: what is shown anywhere is that file, whole."""


@cache
def examples() -> Mapping[str, str]:
    """Code by language that verifies `Dealix-Signature`, as it can be pasted. Python comes first."""
    folder = files("api").joinpath("verifiers")
    return {language: folder.joinpath(name).read_text() for language, name in _FILES.items()}


def example_python() -> str:
    """The one that the API shows."""
    return examples()["Python"]


@cache
def verification_doc() -> str:
    """What to do with a request, in words, and the code for Python."""
    return _IN_WORDS + example_python()


_IN_WORDS: Final = """\
Take the raw body, before anything parses it. From Dealix-Signature take t and every v1. Reject the request if t is
more than 5 minutes away from now. Compute HMAC-SHA256 over t, a full stop and the body, keyed with the whole secret
string as UTF-8, in hex, and accept if any v1 equals it, compared in constant time. Then answer 2xx at once and work
afterwards. The same event may come more than once: remember its id (Dealix-Event-Id). Libraries for Stripe's webhooks
verify Dealix-Signature, those for Standard Webhooks verify webhook-id, webhook-timestamp and webhook-signature.

In Python:

"""
