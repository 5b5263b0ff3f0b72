"""The reader of answers against arbitrary bytes and arbitrary cuts: it never raises, and cuts change nothing."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from daemon.model import Outcome
from daemon.sender.response import MAX_BODY_BYTES, ResponseReader

CHUNKED = b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\n"
ANSWERS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:\r\nX-B: \xfc\r\n\r\nhello",
        b"HTTP/1.1 103 Hints\r\nLink: <a>\r\n\r\n" + CHUNKED,
        b"HTTP/1.0 500 No\r\nRetry-After: 7\r\n\r\nuntil the end",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6000\r\n\r\n" + b"y" * 6000,
        b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    ]
)


def read(pieces: list[bytes]) -> tuple[ResponseReader, Outcome | None]:
    reader = ResponseReader()
    for piece in pieces:
        if piece and not reader.finished:
            reader.feed(piece)
    if not reader.finished:
        reader.end()
    reader.release()
    return reader, reader.outcome(1) if reader.head_complete else None


@given(st.lists(st.binary(max_size=200), max_size=6), st.booleans())
@example([b"HTTP/1.1 200 OK\r\n\r\n"], False)
def test_no_bytes_make_it_raise(pieces: list[bytes], looks_like_http: bool) -> None:  # noqa: FBT001 - drawn
    reader, outcome = read([b"HTTP/1.1 200 OK\r\n", *pieces] if looks_like_http else pieces)
    assert reader.finished
    if outcome is None:
        assert reader.head_complete is False
        return
    assert reader.fault is None
    assert 200 <= (outcome.status_code or 0) <= 599
    assert all((name + value).isprintable() for name, value in outcome.response_headers)
    assert "\0" not in outcome.response_body
    outcome.response_body.encode()  # no lone surrogate: Postgres could not store it


@given(st.data(), ANSWERS)
def test_where_the_network_cuts_an_answer_makes_no_difference(data: st.DataObject, answer: bytes) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    whole, outcome = read([answer])
    cut, cut_outcome = read(pieces)
    assert cut_outcome == outcome
    assert (cut.fault is None, cut.head_complete) == (whole.fault is None, whole.head_complete)


@given(ANSWERS, st.binary(min_size=1, max_size=50).filter(lambda stray: stray.strip(b"\r\n") != b""))
def test_nothing_behind_an_answer_is_taken_for_it(answer: bytes, stray: bytes) -> None:
    _, outcome = read([answer])
    if answer.startswith(b"HTTP/1.0"):
        return  # there the body goes on until the end
    reader, with_stray = read([answer + stray])
    assert with_stray == outcome
    assert not reader.reusable


@given(st.integers(0, 3 * MAX_BODY_BYTES), st.integers(1, 5000))
def test_a_body_is_kept_up_to_the_cap_and_cut_beyond(size: int, piece: int) -> None:
    body = b"z" * size
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body
    reader, outcome = read([answer[at : at + piece] for at in range(0, len(answer), piece)])
    assert outcome is not None
    assert outcome.response_body == "z" * min(size, MAX_BODY_BYTES)
    assert outcome.response_truncated == (size > MAX_BODY_BYTES)
    assert reader.reusable or outcome.response_truncated
