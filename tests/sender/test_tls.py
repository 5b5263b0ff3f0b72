"""TLS: verified by name, never weaker, never without; and within the same deadline as everything else."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import trio

from daemon.sender.endpoint import Sender
from daemon.sender.tls import client_context
from tests.support.answers import Answer, close, reset, status, two_at_once
from tests.support.certificates import Authority
from tests.support.poster import LOOPBACK, Poster, Posters
from tests.support.receiver import Receiver, open_receiver

SAN = "subjectAltName=IP:127.0.0.1"


@pytest.fixture
def named(posters: Posters) -> Poster:
    """A poster for which every name is 127.0.0.1."""
    return posters.make(lambda _: ["127.0.0.1"])


async def test_a_certificate_for_the_name_is_accepted_and_the_connection_kept(
    authority: Authority, named: Poster
) -> None:
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("hooks.acme.example")) as receiver:
            url = f"https://hooks.acme.example:{receiver.port}/x"
            assert [(await named.post(url)).status_code for _ in range(5)] == [200] * 5
            assert receiver.connections == 1
            assert receiver.received[0].headers["host"] == f"hooks.acme.example:{receiver.port}"


async def test_an_ip_address_needs_a_certificate_for_it(authority: Authority, poster: Poster) -> None:
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("127.0.0.1")) as receiver:
            assert (await poster.post(receiver.url())).status_code == 200
        async with open_receiver(tls=authority.server("localhost")) as receiver:
            assert (await poster.post(receiver.url())).error_kind == "tls"


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_carry_large_bodies_both_reused_and_fresh(
    authority: Authority, poster: Poster, newest: ssl.TLSVersion
) -> None:
    body = bytes(range(256)) * 4000
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("127.0.0.1", newest=newest)) as receiver:
            receiver.answer_all(status(200, b"y" * 4000))
            for _ in range(3):
                outcome = await poster.post(receiver.url(), body)
                assert (outcome.status_code, outcome.response_body) == (200, "y" * 4000)
            assert [request.body for request in receiver.received] == [body] * 3
            assert receiver.connections == 1


async def refused(poster: Poster, context: ssl.SSLContext, host: str = "127.0.0.1") -> str:
    """The sentence of a TLS failure, after which nothing must have been sent."""
    async with open_receiver(tls=context) as receiver:
        outcome = await poster.post(f"https://{host}:{receiver.port}/secret-path")
        with trio.fail_after(2):
            while not receiver.handshake_failures:
                await receiver.wait_for_open(0)
                await trio.sleep(0.001)
        assert (outcome.status_code, outcome.error_kind, receiver.received) == (None, "tls", [])
        assert outcome.error is not None
        assert "secret-path" not in outcome.error
        return outcome.error


@pytest.mark.threat("N47")
async def test_a_certificate_for_another_name_is_refused(authority: Authority, named: Poster) -> None:
    with trio.fail_after(5):
        sentence = await refused(named, authority.server("other.example"), "hooks.acme.example")
    assert sentence == (
        "The endpoint's certificate was refused: Hostname mismatch, certificate is not valid for 'hooks.acme.example'."
    )


@pytest.mark.threat("N47")
async def test_an_expired_certificate_is_refused(authority: Authority, poster: Poster) -> None:
    with trio.fail_after(5):
        sentence = await refused(poster, authority.server("127.0.0.1", expired=True))
    assert sentence == "The endpoint's certificate was refused: certificate has expired."


async def test_an_unknown_authority_is_refused(poster: Poster, tmp_path: Path) -> None:
    with trio.fail_after(5):
        sentence = await refused(poster, Authority(tmp_path).server("127.0.0.1"))
    assert sentence == "The endpoint's certificate was refused: unable to get local issuer certificate."


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=20)


def signing(folder: Path) -> tuple[str, ...]:
    """Makes an authority and an unsigned leaf; returns the command that signs it, to which a digest is added.

    OpenSSL's program, because no library signs with SHA-1 any more.
    """
    names = ("ca.pem", "ca.key", "leaf.csr", "leaf.pem", "leaf.key", "leaf.ext")
    ca, ca_key, asked, leaf, leaf_key, extensions = (str(folder / name) for name in names)
    Path(extensions).write_text(SAN, encoding="ascii")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ca", "-keyout", ca_key, "-out", ca)
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", leaf_key, "-out", asked)
    return ("x509", "-req", "-in", asked, "-CA", ca, "-CAkey", ca_key, "-extfile", extensions, "-out", leaf)


def server_with(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(folder / "leaf.pem", folder / "leaf.key")
    return context


@pytest.mark.threat("N47")
async def test_a_self_signed_certificate_is_refused(poster: Poster, tmp_path: Path) -> None:
    leaf = (*("-keyout", str(tmp_path / "leaf.key")), *("-out", str(tmp_path / "leaf.pem")))
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-addext", SAN, *leaf)
    with trio.fail_after(5):
        sentence = await refused(poster, server_with(tmp_path))
    assert sentence == "The endpoint's certificate was refused: self-signed certificate."


@pytest.mark.threat("N47")
async def test_a_certificate_signed_with_sha_1_is_refused_though_its_issuer_is_trusted(tmp_path: Path) -> None:
    sign = signing(tmp_path)
    sender = Sender(timeout_s=0.4, allow_networks=LOOPBACK, ca_file=tmp_path / "ca.pem")
    with trio.fail_after(5):
        openssl(*sign, "-sha1")
        assert "signature" in await refused(Poster(sender), server_with(tmp_path))
        openssl(*sign, "-sha256")
        async with open_receiver(tls=server_with(tmp_path)) as receiver:
            assert (await Poster(sender).post(receiver.url())).status_code == 200
        await sender.aclose()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.threat("N47")
async def test_older_versions_are_refused(authority: Authority, poster: Poster, newest: ssl.TLSVersion) -> None:
    with trio.fail_after(5):
        await refused(poster, authority.server("127.0.0.1", newest=newest))
    assert client_context(None).minimum_version == ssl.TLSVersion.TLSv1_2  # whatever OpenSSL's own policy is


async def test_a_server_that_speaks_plain_http_is_a_tls_failure(poster: Poster) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        while await stream.receive_some():
            pass

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            listener, *_ = await nursery.start(trio.serve_tcp, serve, 0)
            outcome = await poster.post(f"https://127.0.0.1:{listener.socket.getsockname()[1]}/")
            nursery.cancel_scope.cancel()
    assert outcome.error == "The TLS handshake failed: wrong version number."


@pytest.mark.threat("N48")
async def test_a_server_that_says_nothing_is_left_at_the_deadline(poster: Poster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, trio.fail_after(5):
        outcome = await poster.post(f"https://127.0.0.1:{silent.getsockname()[1]}/")
    assert outcome.error_kind == "timeout"
    assert outcome.error == "The TLS handshake was not finished within 0.4 s."
    assert 400 <= outcome.duration_ms < 700


@pytest.mark.parametrize("end", [close(), reset()], ids=["closed", "reset"])
async def test_a_server_that_leaves_during_the_handshake_is_a_tls_failure(poster: Poster, end: Answer) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await end.play(stream)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            listener, *_ = await nursery.start(trio.serve_tcp, serve, 0)
            outcome = await poster.post(f"https://127.0.0.1:{listener.socket.getsockname()[1]}/")
            nursery.cancel_scope.cancel()
    assert outcome.error_kind == "tls"


async def test_a_reused_connection_that_dies_is_replaced_once(authority: Authority, poster: Poster) -> None:
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("127.0.0.1")) as receiver:
            receiver.answer("/", status(200), close(), status(201), reset(), status(202))
            assert [(await poster.post(receiver.url())).status_code for _ in range(3)] == [200, 201, 202]
            assert receiver.connections == 3


async def test_a_second_answer_in_the_same_record_never_answers_the_next_request(
    authority: Authority, poster: Poster
) -> None:
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("127.0.0.1")) as receiver:
            receiver.answer("/", two_at_once(), status(201))
            assert [(await poster.post(receiver.url())).status_code for _ in range(2)] == [200, 201]
            assert receiver.connections == 2


async def test_a_second_answer_in_a_record_of_its_own_never_answers_the_next_request(
    authority: Authority, poster: Poster
) -> None:
    """Both records reach us in one segment: the second lies unread in the TLS buffer when the first answer is whole."""
    context = authority.server("127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        for step in (tls.do_handshake, lambda: tls.read(65536)):
            while True:
                try:
                    step()
                    break
                except ssl.SSLWantReadError:
                    await stream.send_all(outgoing.read())
                    incoming.write(await stream.receive_some())
        tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        tls.write(b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n")
        await stream.send_all(outgoing.read())
        await stream.receive_some()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            listener, *_ = await nursery.start(trio.serve_tcp, serve, 0)
            url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}/"
            assert [(await poster.post(url)).status_code for _ in range(2)] == [200, 200]
            assert poster.endpoint(url).idle == 0
            nursery.cancel_scope.cancel()


async def test_records_without_content_are_not_read_for_ever(authority: Authority, posters: Posters) -> None:
    context = authority.server("127.0.0.1")
    context.num_tickets = 1500  # session tickets, 250 bytes each: valid, and of no use to anybody
    with trio.fail_after(10):
        async with open_receiver(tls=context) as receiver:
            outcome = await posters.make(timeout_s=8).post(receiver.url())
    assert (outcome.error_kind, outcome.error) == ("protocol", "The endpoint sent too much without an answer.")


async def test_an_endpoint_that_wants_a_client_certificate_says_so(authority: Authority, poster: Poster) -> None:
    """In TLS 1.3 the client's handshake is over before the server looks for the certificate."""
    context = authority.server("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED

    async def serve(stream: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await stream.send_all(outgoing.read())
                incoming.write(await stream.receive_some())
            except ssl.SSLError:
                await stream.send_all(outgoing.read())
                return

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            listener, *_ = await nursery.start(trio.serve_tcp, serve, 0)
            outcome = await poster.post(f"https://127.0.0.1:{listener.socket.getsockname()[1]}/")
            nursery.cancel_scope.cancel()
    assert outcome.error_kind == "tls"
    assert outcome.error == ("The TLS connection broke before an answer came: tlsv13 alert certificate required.")


@pytest.mark.threat("N47")
async def test_plain_http_is_not_fallen_back_to(poster: Poster, receiver: Receiver) -> None:
    with trio.fail_after(5):
        outcome = await poster.post(receiver.url().replace("http://", "https://"))
    assert outcome.status_code is None
    assert receiver.received == []
