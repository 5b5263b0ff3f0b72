"""A Postgres in a network of its own, behind a router that can lose every packet: namespaces of the kernel.

A proxy keeps what it does not forward, and acknowledges it. Here nobody does: TCP has to find out, repeats itself at
ever longer intervals, and goes on later than the network does.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import pytest
from typing_extensions import override

from tests.support.own_server import PASSWORD, OwnServer

CLONE_NEWNET: Final = 0x40000000
FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")
NET: Final = "10.213"


class Network:
    """Here, a router, and a server that has also a way past it: `beside` is its address there."""

    def __init__(self) -> None:
        self._name = f"dlx{secrets.token_hex(3)}"
        self.router, self.server = f"{self._name}-router", f"{self._name}-server"
        net = f"{NET}.{secrets.randbelow(250)}"
        self.behind, self.beside = f"{net}.6", f"{net}.10"
        a, b, c, d, e, f = (f"{self._name}{letter}" for letter in "abcdef")
        self._commands = (
            f"netns add {self.router}",
            f"netns add {self.server}",
            f"link add {a} type veth peer name {b} netns {self.router}",
            f"link add {c} netns {self.router} type veth peer name {d} netns {self.server}",
            f"link add {e} type veth peer name {f} netns {self.server}",
            f"addr add {net}.1/30 dev {a}",
            f"addr add {net}.9/30 dev {e}",
            f"-n {self.router} addr add {net}.2/30 dev {b}",
            f"-n {self.router} addr add {net}.5/30 dev {c}",
            f"-n {self.server} addr add {net}.6/30 dev {d}",
            f"-n {self.server} addr add {net}.10/30 dev {f}",
            *(f"link set {one} up" for one in (a, e)),
            *(f"-n {self.router} link set {one} up" for one in (b, c)),
            *(f"-n {self.server} link set {one} up" for one in (d, f, "lo")),
            f"route add {net}.4/30 via {net}.2",
            f"-n {self.server} route add default via {net}.5",
        )

    def open(self) -> None:
        for words in self._commands:
            subprocess.run(["ip", *words.split()], check=True, capture_output=True)
        self.forward()

    def close(self) -> None:
        """Whatever of it is there: a namespace goes later, with the last socket in it."""
        for words in (f"link delete {self._name}a", f"link delete {self._name}e"):
            subprocess.run(["ip", *words.split()], check=False, capture_output=True)
        for name in (self.router, self.server):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def lose(self) -> None:
        """Every packet through the router, and say nothing."""
        with inside(self.router):
            FORWARD.write_text("0")

    def forward(self) -> None:
        with inside(self.router):
            FORWARD.write_text("1")

    def url(self, beside: str) -> str:
        """The URL of the same database through the router."""
        parts = urlsplit(beside)
        return urlunsplit(parts._replace(netloc=parts.netloc.replace(self.beside, self.behind)))


class ServerApart(OwnServer):
    """It runs in `network`; its URL is that of the way past the router."""

    def __init__(self, home: Path, network: Network) -> None:
        self._network = network
        super().__init__(home, None)
        self.url = f"postgresql://dealix:{PASSWORD}@{network.beside}:{self.port}/postgres"
        rules = (self.data / "pg_hba.conf").read_bytes()
        self.put("pg_hba.conf", rules + f"host all all {NET}.0.0/16 scram-sha-256\n".encode())

    @override
    def _spawn(self, program: str, *words: str | Path) -> subprocess.Popen[bytes]:
        with inside(self._network.server):
            return super()._spawn(program, *words)


@contextmanager
def own_network() -> Generator[Network]:
    """One that is there for the block; skips the test where this process may not make one."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root can make a network, and needs ip (apt-get install iproute2)")
    network = Network()
    try:
        try:
            network.open()
        except (subprocess.CalledProcessError, OSError) as e:
            pytest.skip(f"a network cannot be made here: {e}")
        yield network
    finally:
        network.close()


@contextmanager
def inside(namespace: str) -> Generator[None]:
    """The calling thread, and what it starts, is in another network."""
    here, there = (os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", f"/run/netns/{namespace}"))
    try:
        _enter(there)
        try:
            yield
        finally:
            _enter(here)
    finally:
        os.close(here)
        os.close(there)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
