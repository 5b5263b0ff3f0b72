"""What systemd is to a service: a datagram socket that it may talk to. Messages are kept with their times."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon_process import until


class ServiceManager:
    """`messages` are (time.monotonic(), text), in the order in which they came."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.address = address
        self.messages: list[tuple[float, str]] = []
        self._socket = sock

    def listen(self) -> None:
        """Take messages until an empty one comes."""
        while text := self._socket.recv(4096).decode():
            self.messages.append((time.monotonic(), text))

    def times(self, word: str) -> list[float]:
        """When messages came that have the line `word`."""
        return [at for at, text in self.messages if word in text.split("\n")]

    def wait_for(self, word: str, count: int = 1, *, within_s: float = 10.0) -> float:
        """When the `count`th message with the line `word` came."""
        found = until(
            lambda: self.times(word)[count - 1 : count], within_s=within_s, what=f"{word} among {self.messages}"
        )
        return found[0]


@contextmanager
def open_service_manager(directory: Path) -> Generator[ServiceManager]:
    """A manager that listens until the end of the block."""
    address = str(directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        manager = ServiceManager(sock, address)
        thread = threading.Thread(target=manager.listen)
        thread.start()
        try:
            yield manager
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ender:
                ender.sendto(b"", address)
            thread.join()
