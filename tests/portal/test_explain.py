"""Failures in words: whatever the sender says has an explanation, and none has the wrong one."""

from __future__ import annotations

import pytest

from api.portal.explain import EVERY, explain


@pytest.mark.parametrize(
    ("status_code", "error", "word"),
    [
        (404, None, "Not Found"),
        (302, None, "redirect"),
        (307, None, "redirect"),
        (418, None, "refused the request"),
        (500, None, "error of its own"),
        (503, None, "load balancer"),
        (599, None, "error of its own"),
        (410, None, "Gone"),
        (None, "The host name nothing.example could not be looked up.", "resolved"),
        (None, "The host intern.example is a private address, which is never called.", "private network"),
        (None, "The endpoint's certificate was refused: certificate has expired.", "certificate"),
        (None, "The TLS handshake failed: wrong version number.", "encrypted"),
        (None, "No complete answer came within 10 s.", "in time"),
        (None, "The TLS handshake was not finished within 2.5 s.", "in time"),
        (None, "The endpoint closed the connection during the TLS handshake.", "encrypted"),
        (None, "The answer is not valid HTTP: no status line.", "proper HTTP"),
        (None, "The connection was reset before an answer came.", "before an answer"),
        (None, "The connection to reset.example.com was refused.", "No connection"),
        (None, "The egress proxy gave no valid answer.", "No connection"),
        (None, "Something new.", "did not deliver"),
        (None, None, "did not deliver"),
    ],
)
def test_a_failure_is_explained_by_its_status_or_by_the_senders_words(
    status_code: int | None, error: str | None, word: str
) -> None:
    explanation = explain("retry", status_code, error)
    assert word in explanation.what
    assert explanation in EVERY


@pytest.mark.parametrize(
    ("outcome", "word"), [("interrupted", "unknown"), ("expired", "older"), ("delivered", "accepted")]
)
def test_some_outcomes_say_all(outcome: str, word: str) -> None:
    assert word in explain(outcome, None, None).what
