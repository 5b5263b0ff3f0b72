"""What is to be said about an endpoint at a glance, from what the API says of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from api.routes.webhooks import Webhook

Tone = Literal["good", "warn", "bad", "quiet"]


@dataclass(frozen=True, slots=True)
class Health:
    """`label` is a word or two, `says` a sentence that tells what follows. English, to be looked up."""

    tone: Tone
    label: str
    says: str


_DISABLED: Final = {
    "requested": Health(
        "quiet", "Paused", "You paused this endpoint. New events do not match it; what was due before is kept."
    ),
    "consecutive_failures": Health(
        "bad",
        "Disabled",
        "It failed too many times in a row and was switched off. Mend the endpoint, send a test, then enable it.",
    ),
    "gone": Health("bad", "Disabled", "It answered 410 Gone, which means: never again. Enable it if that was wrong."),
    "secret_unreadable": Health(
        "bad", "Disabled", "Its secret cannot be read here any more. Rotate it, then enable the endpoint."
    ),
}
_OPEN: Final = Health(
    "warn",
    "On hold",
    "After several failures in a row it gets no traffic for a while, then one request as a probe.",
)
_HALF_OPEN: Final = Health(
    "warn", "Probing", "The pause is over. The next delivery is the probe: if it succeeds, all goes on."
)
_FAILING: Final = Health("warn", "Failing", "The last attempts did not deliver. The delivery log tells why.")
_NEW: Final = Health("quiet", "Waiting", "Nothing was sent yet. Send a test to see that it works.")
_GOOD: Final = Health("good", "Healthy", "The last delivery was accepted.")


def of(webhook: Webhook) -> Health:
    """The health of an endpoint."""
    if not webhook.enabled:
        return _DISABLED.get(webhook.disabled_reason or "requested", _DISABLED["requested"])
    if webhook.circuit == "open":
        return _OPEN
    if webhook.circuit == "half_open":
        return _HALF_OPEN
    if webhook.consecutive_failures:
        return _FAILING
    return _NEW if webhook.last_delivery_at is None else _GOOD


EVERY: Final = (*_DISABLED.values(), _OPEN, _HALF_OPEN, _FAILING, _NEW, _GOOD)
"""All that may be said, for whoever translates it."""
