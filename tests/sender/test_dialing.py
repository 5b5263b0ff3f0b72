"""Names and addresses: what may be connected to, which address is tried, and what a hostile name server can do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network

import pytest
import trio
import trio.testing

from daemon.errors import SettingsInvalid
from daemon.policy.addresses import Network
from daemon.policy.endpoint_url import parse
from daemon.sender import resolver as resolver_module
from daemon.sender.endpoint import Sender
from tests.support.answers import status
from tests.support.certificates import Authority
from tests.support.poster import Posters
from tests.support.receiver import open_receiver

ONLY_ONE: tuple[Network, ...] = (ip_network("127.0.0.1/32"),)


@contextmanager
def canaries(port: int, *hosts: str) -> Generator[list[socket.socket]]:
    """Sockets that listen on `port` of each host, to see whether anybody came."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server((host, port))) for host in hosts]
        for canary in found:
            canary.setblocking(False)
        yield found


def visits(canary: socket.socket) -> int:
    count = 0
    while True:
        try:
            canary.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1", "10.0.0.1"],
        ["10.0.0.1", "127.0.0.1"],
        ["127.0.0.1", "::1"],
        ["127.0.0.1", "::ffff:127.0.0.2"],
        ["127.0.0.1", "fe80::1%lo"],
        ["127.0.0.1"] * 299 + ["127.0.0.2"],
        ["127.0.0.2"],
        ["not an address"],
    ],
)
@pytest.mark.threat("N23-N24", "N26-N27")
async def test_one_bad_address_refuses_the_name_and_nobody_is_called(
    authority: Authority, posters: Posters, answer: list[str]
) -> None:
    poster = posters.make(lambda _: answer, networks=ONLY_ONE)
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("hooks.example")) as receiver:
            with canaries(receiver.port, "127.0.0.2") as (canary,):
                outcome = await poster.post(f"https://hooks.example:{receiver.port}/")
                assert visits(canary) == 0
            assert receiver.connections == 0
    assert (outcome.status_code, outcome.error_kind) == (None, "blocked")
    assert outcome.error is not None
    assert outcome.error.startswith("The host hooks.example resolves to ")
    assert not any(address in outcome.error for address in answer)


@pytest.mark.threat("N25")
async def test_a_name_that_changes_its_mind_is_judged_at_every_connect(authority: Authority, posters: Posters) -> None:
    asked: list[str] = []

    def rebinding(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    poster = posters.make(rebinding, networks=ONLY_ONE)
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("hooks.example")) as receiver:
            receiver.answer_all(status(200, close=True))
            url = f"https://hooks.example:{receiver.port}/"
            with canaries(receiver.port, "127.0.0.2") as (canary,):
                outcomes = [await poster.post(url) for _ in range(2)]
                assert visits(canary) == 0
    assert [(o.status_code, o.error_kind) for o in outcomes] == [(200, None), (None, "blocked")]
    assert asked == ["hooks.example"] * 2  # once for each connect: what was judged is what was connected to


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "10.1.2.3", "[64:ff9b::a00:1]"])
async def test_without_leave_a_literal_internal_address_is_not_even_dialled(host: str) -> None:
    """The URL was stored while the operator allowed it; he does not any more."""
    target = parse(
        f"https://{host}/", allow_localhost=True, allow_networks=[ip_network("::/0"), ip_network("0.0.0.0/0")]
    )
    sender = Sender(timeout_s=0.3)
    with trio.fail_after(5):
        outcome = await sender.endpoint(target).post(lambda: b"", trio.CapacityLimiter(1))
        assert (outcome.error_kind, outcome.duration_ms < 100) == ("blocked", True)
        reason = await sender.check(target, 1)
    assert reason is not None
    assert reason.startswith(f"host {target.host} is ")
    assert outcome.error == f"The {reason}."


async def test_allow_localhost_opens_localhost_by_its_own_names_and_nothing_that_points_there() -> None:
    sender = Sender(timeout_s=0.6, allow_localhost=True, resolve=lambda _: ["127.0.0.1"])
    gate = trio.CapacityLimiter(1)

    def request() -> bytes:
        return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"

    with trio.fail_after(5):
        async with open_receiver() as receiver:
            for host in ("localhost", "127.0.0.1"):
                target = parse(f"http://{host}:{receiver.port}/", allow_localhost=True, allow_networks=())
                assert (await sender.endpoint(target).post(request, gate)).status_code == 200
            target = parse(f"https://rebound.example:{receiver.port}/", allow_localhost=True, allow_networks=())
            assert (await sender.endpoint(target).post(request, gate)).error_kind == "blocked"
            assert receiver.connections == 2
        await sender.aclose()


@pytest.mark.threat("N22")
async def test_names_in_the_hosts_file_are_judged_too(authority: Authority) -> None:
    """The real resolver; every machine's hosts file has localhost."""
    sender = Sender(timeout_s=0.6, ca_file=authority.ca_file)
    target = parse("https://localhost/", allow_localhost=True, allow_networks=())
    with trio.fail_after(5):
        outcome = await sender.endpoint(target).post(lambda: b"", trio.CapacityLimiter(1))
        assert await sender.check(target, 1) is not None
    assert outcome.error_kind == "blocked"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "The host name no.example does not resolve."),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "The host name no.example could not be looked up just now."),
        (OSError("x"), "The host name no.example could not be looked up."),
        (RuntimeError("can't start new thread"), "The host name no.example could not be looked up."),
    ],
)
@pytest.mark.threat("N27")
async def test_a_look_up_that_fails_is_an_outcome(posters: Posters, error: Exception, sentence: str) -> None:
    def resolve(_: str) -> list[str]:
        raise error

    poster = posters.make(resolve)
    with trio.fail_after(5):
        outcome = await poster.post("https://no.example/")
        target = parse("https://no.example/", allow_localhost=False, allow_networks=())
        assert await poster.sender.check(target, 1) is None  # not resolvable now is no reason to refuse it
    assert (outcome.error_kind, outcome.error) == ("dns", sentence)


@pytest.mark.threat("N27")
async def test_an_empty_answer_is_a_dns_failure(posters: Posters) -> None:
    with trio.fail_after(5):
        outcome = await posters.make(lambda _: []).post("https://no.example/")
    assert outcome.error_kind == "dns"


async def test_a_real_name_that_cannot_exist_is_a_dns_failure() -> None:
    sender = Sender(timeout_s=5)
    target = parse("https://no-such-host.invalid/", allow_localhost=False, allow_networks=())
    with trio.fail_after(10):
        outcome = await sender.endpoint(target).post(lambda: b"", trio.CapacityLimiter(1))
    assert outcome.error_kind == "dns"


async def test_a_name_is_looked_up_once_for_all_who_ask_and_a_failure_is_remembered(posters: Posters) -> None:
    asked = 0
    release = threading.Event()

    def resolve(_: str) -> list[str]:
        nonlocal asked
        asked += 1
        release.wait(5)
        raise socket.gaierror(socket.EAI_NONAME, "x")

    poster = posters.make(resolve)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(poster.post, "https://dead.example/")
            await trio.testing.wait_all_tasks_blocked(0.02)
            release.set()
        assert (await poster.post("https://dead.example/")).error_kind == "dns"
    assert asked == 1


@pytest.mark.threat("N28")
async def test_many_silent_name_servers_hold_up_no_other_name_and_no_other_thread(
    authority: Authority, posters: Posters
) -> None:
    release = threading.Event()

    def resolve(host: str) -> list[str]:
        if host.startswith("silent"):
            release.wait(20)
        return ["127.0.0.1"]

    poster = posters.make(resolve)
    try:
        with trio.fail_after(10):
            async with open_receiver(tls=authority.server("hooks.example")) as receiver, trio.open_nursery() as nursery:
                silent = [f"https://silent-{n}.example/" for n in range(40)]
                for url in silent * 3:
                    nursery.start_soon(poster.post, url)
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert (await poster.post(f"https://hooks.example:{receiver.port}/")).status_code == 200
                with trio.fail_after(1):
                    await trio.to_thread.run_sync(int)
            outcome = await poster.post(silent[0])
        assert (outcome.error_kind, outcome.error) == (
            "timeout",
            "The host name was not looked up within 0.4 s.",
        )
    finally:
        release.set()


async def test_names_known_to_be_slow_share_a_few_threads(posters: Posters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "_SLOW_S", 0.01)
    release = threading.Event()
    lock = threading.Lock()
    running = most = 0

    def resolve(_: str) -> list[str]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        release.wait(5)
        with lock:
            running -= 1
        return ["127.0.0.2"]  # refused, and not as a failed look-up: nothing is remembered but the slowness

    poster = posters.make(resolve, networks=ONLY_ONE, timeout_s=5)
    urls = [f"https://slow-{n}.example/" for n in range(20)]
    with trio.fail_after(10):
        for expected in (20, 8):
            most = 0
            release.clear()
            async with trio.open_nursery() as nursery:
                for url in urls:
                    nursery.start_soon(poster.post, url)
                while running < expected:
                    await trio.sleep(0.005)
                await trio.sleep(0.02)  # for one too many to show itself
                release.set()
            assert most == expected


@contextmanager
def blackhole(host: str, port: int) -> Generator[None]:
    """A listener whose queue is full: further SYNs to it get no answer at all."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield


async def test_a_silent_address_costs_a_quarter_second_and_a_refused_one_nothing(
    authority: Authority, posters: Posters
) -> None:
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("hooks.example")) as receiver:
            receiver.answer_all(status(200, close=True))
            url = f"https://hooks.example:{receiver.port}/"
            with blackhole("127.0.0.2", receiver.port):
                outcome = await posters.make(lambda _: ["127.0.0.2", "127.0.0.1"]).post(url)
            assert outcome.status_code == 200
            assert 240 <= outcome.duration_ms < 400
            outcome = await posters.make(lambda _: ["127.0.0.3", "127.0.0.4", "127.0.0.1"]).post(url)
            assert outcome.status_code == 200
            assert outcome.duration_ms < 150


async def test_when_all_addresses_are_refused_the_name_is_named(posters: Posters) -> None:
    async with open_receiver() as gone:
        pass
    with trio.fail_after(5):
        poster = posters.make(lambda _: ["127.0.0.3", "127.0.0.4"])
        outcome = await poster.post(f"https://hooks.example:{gone.port}/")
    assert outcome.error == f"The connection to hooks.example:{gone.port} was refused."


async def test_an_address_that_never_answers_is_left_at_the_deadline(posters: Posters) -> None:
    with trio.fail_after(5):
        async with open_receiver() as gone:
            pass
        with blackhole("127.0.0.2", gone.port):
            for answer in (["127.0.0.2"], ["127.0.0.2", "127.0.0.2", "127.0.0.3"]):
                poster = posters.make(lambda _, answer=answer: answer)
                outcome = await poster.post(f"https://hooks.example:{gone.port}/")
                assert outcome.error == "The connection was not made within 0.4 s."


@pytest.mark.threat("N31")
async def test_proxies_of_the_environment_are_ignored(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, posters: Posters
) -> None:
    with trio.fail_after(5):
        async with open_receiver() as proxy, open_receiver(tls=authority.server("hooks.example")) as receiver:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, proxy.url())
            poster = posters.make(lambda _: ["127.0.0.1"])
            assert (await poster.post(f"https://hooks.example:{receiver.port}/")).status_code == 200
            assert proxy.connections == 0


async def tunnel(stream: trio.SocketStream, heads: list[bytes], answer: bytes, port: int) -> None:
    """A proxy that tunnels whatever is asked to `port` of 127.0.0.1 after it said `answer`."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some()
    heads.append(head)
    await stream.send_all(answer)
    if not answer.startswith(b"HTTP/1.1 200"):
        return
    inner = await trio.open_tcp_stream("127.0.0.1", port)

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()

    async with inner, trio.open_nursery() as nursery:
        nursery.start_soon(pump, stream, inner)
        nursery.start_soon(pump, inner, stream)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n", None),
        (b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "The egress proxy refused the connection (407)."),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "The egress proxy refused the connection (403)."),
        (b"SSH-2.0\r\n\r\n", "The egress proxy gave no valid answer."),
        (b"X" * 10_000, "The egress proxy gave no valid answer."),
        (b"", "The egress proxy gave no valid answer."),
    ],
)
async def test_the_operators_proxy_is_asked_for_a_tunnel_by_name(
    authority: Authority, posters: Posters, answer: bytes, sentence: str | None
) -> None:
    heads: list[bytes] = []
    with trio.fail_after(5):
        async with open_receiver(tls=authority.server("hooks.example")) as receiver, trio.open_nursery() as nursery:

            async def serve(stream: trio.SocketStream) -> None:
                await tunnel(stream, heads, answer, receiver.port)

            listener, *_ = await nursery.start(trio.serve_tcp, serve, 0)
            port = listener.socket.getsockname()[1]
            poster = posters.make(networks=(), proxy_url=f"http://us%40er:pass@127.0.0.1:{port}")
            outcome = await poster.post("https://hooks.example:8443/")
            assert (outcome.status_code, outcome.error) == (200 if sentence is None else None, sentence)
            await posters.aclose()
            nursery.cancel_scope.cancel()
    (head,) = heads
    assert head == (
        b"CONNECT hooks.example:8443 HTTP/1.1\r\nHost: hooks.example:8443\r\n"
        b"Proxy-Authorization: Basic dXNAZXI6cGFzcw==\r\n\r\n"
    )


async def test_literal_internal_addresses_are_not_passed_to_the_proxy(authority: Authority) -> None:
    target = parse("https://10.0.0.7/", allow_localhost=False, allow_networks=[ip_network("10.0.0.0/8")])
    with trio.fail_after(5):
        async with open_receiver() as proxy:
            sender = Sender(timeout_s=1, proxy_url=f"http://127.0.0.1:{proxy.port}", ca_file=authority.ca_file)
            outcome = await sender.endpoint(target).post(lambda: b"", trio.CapacityLimiter(1))
            assert (outcome.error_kind, proxy.connections) == ("blocked", 0)


@pytest.mark.parametrize("url", ["https://proxy:1", "socks5://proxy:1", "proxy:3128", "http://", "http://p:99999", ""])
async def test_a_bad_proxy_url_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"egress\.proxy_url"):
        Sender(timeout_s=1, proxy_url=url)
