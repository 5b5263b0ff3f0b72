"""What is written into a request cannot become another line of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import RequestUnsafe
from daemon.policy.endpoint_url import parse
from daemon.sender.request import build

TARGET = parse("https://hooks.example:8443/in?x=1", allow_localhost=False, allow_networks=())


def test_head_and_body_are_one_piece() -> None:
    assert build(TARGET, [("A", "b"), ("C", "")], b"\0\xff") == (
        b"POST /in?x=1 HTTP/1.1\r\nHost: hooks.example:8443\r\nA: b\r\nC: \r\n"
        b"Accept-Encoding: identity\r\nContent-Length: 2\r\n\r\n\0\xff"
    )


def test_without_headers_and_body_it_is_still_a_request() -> None:
    assert build(TARGET, [], b"").endswith(b"\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("name", ["", "A B", "A:", "A\r\nB", "Ä", "A\0", " A", "A\t"])
@pytest.mark.threat("N63")
def test_a_header_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(RequestUnsafe, match="not a token"):
        build(TARGET, [("Ok", "1"), (name, "x")], b"")


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\n", "\r", "a\0", "a\x7f", "a\tb", "ä", "\x1b[31m", "\ud800"])
@pytest.mark.threat("N64")
def test_a_header_value_with_other_characters_is_refused(value: str) -> None:
    with pytest.raises(RequestUnsafe, match="characters"):
        build(TARGET, [("Ok", "1"), ("X", value)], b"")


@pytest.mark.parametrize(
    "name",
    ["Host", "content-length", "TRANSFER-ENCODING", "Connection", "Keep-Alive", "TE", "Trailer", "Upgrade", "Expect"],
)
@pytest.mark.threat("N65")
def test_a_header_that_frames_the_message_is_refused(name: str) -> None:
    with pytest.raises(RequestUnsafe, match="framing"):
        build(TARGET, [(name, "1")], b"")


@pytest.mark.parametrize("path", ["", "no-slash", "/a b", "/a\r\nX: y", "/ä", "/\x7f", "/a\n"])
def test_a_target_that_is_no_target_is_refused(path: str) -> None:
    with pytest.raises(RequestUnsafe, match="target"):
        build(replace(TARGET, path_and_query=path), [], b"")


@pytest.mark.parametrize("host", ["a\r\nX: y", "a b", "ä", ""])
def test_a_host_that_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(RequestUnsafe, match="target"):
        build(replace(TARGET, host=host), [], b"")


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=4))
def test_whatever_passes_has_as_many_lines_as_headers(headers: list[tuple[str, str]]) -> None:
    try:
        raw = build(TARGET, headers, b"body")
    except RequestUnsafe:
        return
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert len(lines) == len(headers) + 4
    assert lines[2:-2] == [f"{name}: {value}".encode("ascii") for name, value in headers]
    assert body == b"body"
