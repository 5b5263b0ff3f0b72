"""POSTs to URLs through the daemon's sender, one endpoint kept for each URL as an actor would."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

import trio

from daemon.model import Outcome
from daemon.policy.addresses import Network
from daemon.policy.endpoint_url import parse
from daemon.sender.endpoint import Endpoint, Sender
from daemon.sender.request import build
from daemon.sender.resolver import Resolve, system_resolve
from tests.support.certificates import Authority

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
BODY = b'{"id":"evt_1"}'


class Poster:
    """What a test sends with. `built` counts how often a request was asked for."""

    def __init__(self, sender: Sender, allow_networks: Sequence[Network] = LOOPBACK) -> None:
        self.sender = sender
        self.gate = trio.CapacityLimiter(8)
        self.built = 0
        self._allow_networks = allow_networks
        self._endpoints: dict[str, Endpoint] = {}

    def endpoint(self, url: str) -> Endpoint:
        if url not in self._endpoints:
            target = parse(url, allow_localhost=True, allow_networks=self._allow_networks)
            self._endpoints[url] = self.sender.endpoint(target)
        return self._endpoints[url]

    async def post(self, url: str, body: bytes = BODY) -> Outcome:
        endpoint = self.endpoint(url)

        def request() -> bytes:
            self.built += 1
            return build(endpoint.target, [("Content-Type", "application/json"), ("X-Build", str(self.built))], body)

        return await endpoint.post(request, self.gate)


class Posters:
    """Makes posters whose senders trust one authority; `aclose` closes what they left idle."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._made: list[Sender] = []

    def make(
        self,
        resolve: Resolve = system_resolve,
        networks: Sequence[Network] = LOOPBACK,
        *,
        timeout_s: float = 0.4,
        proxy_url: str | None = None,
        max_idle: int = 1024,
    ) -> Poster:
        """A poster that may reach `networks` and gives up after 0.4 s: an honest exchange on loopback takes 2 ms."""
        sender = Sender(
            timeout_s=timeout_s,
            allow_networks=networks,
            proxy_url=proxy_url,
            ca_file=self._authority.ca_file,
            max_idle=max_idle,
            resolve=resolve,
        )
        self._made.append(sender)
        return Poster(sender, networks)

    async def aclose(self) -> None:
        for sender in self._made:
            await sender.aclose()
