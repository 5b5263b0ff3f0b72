"""Why an attempt came to what it did, in words, and what to do about it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

RETRIED: Final = "It is retried by itself."
"""What is added to the advice where it is."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Two sentences, English, to be looked up: what happened, and what to do."""

    what: str
    advice: str


_DELIVERED: Final = Explanation("The endpoint accepted the event.", "")
_INTERRUPTED: Final = Explanation(
    "The service was stopped while the request was on its way: what became of it is unknown.",
    "It was sent again. Receivers tell the second one by its webhook-id.",
)
_EXPIRED: Final = Explanation(
    "The event grew older than the time for which events are kept, before it could be delivered.",
    "Events that were missed longer ago than that cannot be sent any more.",
)

_BY_STATUS: Final = {
    301: Explanation(
        "The endpoint answered with a redirect. Redirects are never followed: they could lead anywhere.",
        "Enter the address that it leads to as the endpoint's URL.",
    ),
    401: Explanation(
        "The endpoint wants to know who we are: it answered 401 Unauthorized.",
        "Let requests with a valid signature in without a login.",
    ),
    403: Explanation(
        "The endpoint does not let us in: it answered 403 Forbidden.",
        "Look for a firewall, a bot check or a CSRF check that stops POST requests from elsewhere.",
    ),
    404: Explanation(
        "There is nothing at this address: the endpoint answered 404 Not Found.",
        "Compare the URL's path with the route in your code.",
    ),
    405: Explanation(
        "The address is right, but does not take POST: it answered 405 Method Not Allowed.",
        "Have your route accept POST.",
    ),
    408: Explanation("The endpoint gave up waiting for the request.", ""),
    410: Explanation(
        "The endpoint answered 410 Gone, which means: never again. It was disabled.",
        "If that was a mistake, mend it and enable the endpoint.",
    ),
    413: Explanation("The request was too large for the endpoint.", "Allow bodies of up to 300 KB on this route."),
    429: Explanation(
        "The endpoint asks us to slow down: it answered 429 Too Many Requests.",
        "A Retry-After header is obeyed.",
    ),
}
_OTHER_4XX: Final = Explanation(
    "The endpoint refused the request.", "Look at its answer below, and into the endpoint's own log at that time."
)
_5XX: Final = Explanation(
    "The endpoint ran into an error of its own.",
    "Look into the endpoint's own log at that time.",
)
_GATEWAY: Final = Explanation(
    "Something before the endpoint, a proxy or load balancer, got no proper answer from it.",
    "See whether the program behind it is up and answers in time.",
)

_BY_WORDS: Final = (
    (r" within [0-9.]+ s\.$", Explanation(
        "The endpoint did not answer in time.",
        "Answer at once with a 2xx, and do the work afterwards.",
    )),
    (r"which is never called\.$", Explanation(
        "The address leads to a private network or to this machine, where requests are never sent.",
        "Use an address that is reachable from the internet.",
    )),
    (r"^The host name ", Explanation(
        "The host name could not be resolved.", "Check the spelling of the URL and the DNS entry of its host."
    )),
    (r"^The endpoint's certificate ", Explanation(
        "The endpoint's TLS certificate was refused.",
        "Renew it, and have the server send the whole chain, for exactly this host name.",
    )),
    (r"^The TLS |during the TLS handshake\.$", Explanation(
        "No encrypted connection could be made.", "Have the server offer TLS 1.2 or newer."
    )),
    (r"^The answer is not valid HTTP|^The endpoint sent too much", Explanation(
        "What the endpoint sent is not a proper HTTP answer.", "See which program listens at this port."
    )),
    (r"^The connection was ", Explanation(
        "The connection ended before an answer came.",
        "See whether the program crashed or was restarted at that time.",
    )),
    (r"^The connection to |^The egress proxy", Explanation(
        "No connection could be made to the endpoint.",
        "See whether the server is up, and whether a firewall lets us through.",
    )),
)  # fmt: skip
"""By words of the sender's own sentences (daemon/sender), the first that fits."""
_UNKNOWN: Final = Explanation("The attempt did not deliver.", "")

EVERY: Final = (
    _DELIVERED, _INTERRUPTED, _EXPIRED, *_BY_STATUS.values(), _OTHER_4XX, _5XX, _GATEWAY,
    *(explanation for _, explanation in _BY_WORDS), _UNKNOWN,
)  # fmt: skip
"""All that may be said, for whoever translates it."""


def explain(outcome: str, status_code: int | None, error: str | None) -> Explanation:
    """What happened in an attempt, from its row in the log."""
    if outcome == "delivered":
        return _DELIVERED
    if outcome == "interrupted":
        return _INTERRUPTED
    if outcome == "expired":
        return _EXPIRED
    if status_code is not None:
        return _of_status(status_code)
    return next((it for pattern, it in _BY_WORDS if re.search(pattern, error or "")), _UNKNOWN)


def _of_status(status_code: int) -> Explanation:
    if status_code in _BY_STATUS:
        return _BY_STATUS[status_code]
    if 300 <= status_code < 400:
        return _BY_STATUS[301]
    if status_code in {502, 503, 504}:
        return _GATEWAY
    return _5XX if status_code >= 500 else _OTHER_4XX


STATES: Final = {
    "delivered": "Delivered",
    "failed": "Given up: the endpoint refused it",
    "exhausted": "Given up after all retries",
    "gone": "Given up: the endpoint is gone",
    "expired": "Given up: the event is too old",
    "pending": "Waiting for its turn",
    "scheduled": "To be retried",
    "held": "Held back",
    "in_flight": "On its way",
    "discarded": "Discarded: the endpoint was deleted",
}
"""How far a delivery is, by its state. English, to be looked up; so are the next."""
OUTCOMES: Final = {
    "delivered": "Delivered",
    "retry": "To be retried",
    "failed": "Given up: the endpoint refused it",
    "exhausted": "Given up after all retries",
    "gone": "Given up: the endpoint is gone",
    "interrupted": "Interrupted",
    "expired": "Given up: the event is too old",
    "test_failed": "The test failed",
}
"""What an attempt came to."""
