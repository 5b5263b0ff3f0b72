"""What is wrong with a form that was sent: shown beside its fields, in the reader's language where there are words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from api.errors import Problem

_FIELDS: Final = {
    "url_not_https": "endpoint_url",
    "url_malformed": "endpoint_url",
    "url_forbidden": "endpoint_url",
    "unknown_event_type": "events",
}
"""Where a refusal belongs that names no field itself."""

SENTENCES: Final = {
    "url_not_https": "The URL has to begin with https://.",
    "url_malformed": "This is not a URL that can be called.",
    "url_forbidden": "This address is not reachable from the internet, so it is never called.",
    "unknown_event_type": "One of the event types does not exist any more.",
    "too_many_subscriptions": "There are 100 endpoints already, which is the limit. Delete one that is not used.",
    "secret_unreadable": "The secret of this endpoint cannot be read here. Rotate it, then try again.",
    "no_events": "Choose at least one event type, or all of them.",
    "busy": "Too many slow requests are on their way. Try again soon.",
    "invalid": "This value cannot be taken.",
    "subscription_disabled": "The endpoint is disabled. Enable it first.",
    "recovery_running": "A recovery of this endpoint is running. Wait for its end, or stop it.",
    "subscription_gone": "The endpoint of this delivery was deleted.",
    "event_gone": "The event is older than the time for which events are kept.",
    "foreign_form": "This form did not come from this site, or your session is over. Load the page anew.",
    "not_found": "There is nothing at this address, or it is no longer there.",
    "method_not_allowed": "This address does not take that request.",
    "rate_limited": "Too many attempts. Wait a moment, then try again.",
    "database_unavailable": "The service is being repaired at the moment. Try again in a few seconds.",
    "outcome_unknown": "The connection broke: this may or may not have been done. Look before you repeat it.",
    "internal": "Something went wrong on our side. It was written down and will be looked at.",
}
"""By the code of a problem. English, to be looked up; others are shown as the API says them."""


@dataclass(frozen=True, slots=True)
class Faults:
    """`by_field` has (code, the API's own words) for each field at fault; `general` the same for the whole form."""

    status: int = 200
    by_field: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    general: tuple[str, str] | None = None

    @classmethod
    def of(cls, problem: Problem) -> Faults:
        """The faults that a refused operation tells of."""
        found = {
            error.field.partition("[")[0]: (problem.code, error.message) for error in problem.errors if error.field
        }
        if not found and problem.code in _FIELDS:
            found = {_FIELDS[problem.code]: (problem.code, problem.detail)}
        return cls(problem.status, found, None if found else (problem.code, problem.detail))

    def at(self, name: str) -> tuple[str, str] | None:
        """What is wrong with a field."""
        return self.by_field.get(name)
