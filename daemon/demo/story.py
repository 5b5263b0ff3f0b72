"""What the demo does, from the first line to Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty
from types import FrameType
from typing import Final

import click

from config.settings import load
from daemon.demo.api import Api
from daemon.demo.programs import Daemon, DemoFailed, Programs
from daemon.demo.receiver import Arrival, Receiver

CUSTOMER: Final = "demo"
EVENT_TYPE: Final = "deal.won"
_READY_S: Final = 90.0
"""More than the minute for which a daemon waits for its predecessor's database to end."""
_DELIVERY_S: Final = 60.0
_POLL_S: Final = 0.1


class _Stop(BaseException):
    """Ctrl-C, SIGTERM or a closed terminal: not an error, so that nothing on the way takes it for one."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the next start goes on with, in a file of mode 0600 in the data directory."""

    ops_key: str = ""
    subscription_id: str = ""
    secret: str = ""
    receiver_port: int = 0

    @classmethod
    def read(cls, path: Path) -> Memory:
        """What is remembered; nothing where there is no such file, or not one of ours."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        """Remember, whole or not at all."""
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)
        fresh.rename(path)


def run(config_file: Path | None) -> int:
    """Run the demo until it is told to stop; 0. Raises DemoFailed and ConfigError."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    environ = dict(os.environ)
    if config_file is None:
        environ.setdefault("DEALIX_DATA_DIR", ".dealix")
    environ.setdefault("DEALIX_EGRESS__ALLOW_LOCALHOST", "true")
    environ.setdefault("DEALIX_LOG__FORMAT", "console")
    settings = load(config_file, environ)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    environ["DEALIX_DATA_DIR"] = str(settings.data_dir)
    daemon: Daemon | None = None
    receiver: Receiver | None = None
    lock = _lock(settings.data_dir)
    try:
        click.echo(f"Dealix Webhooks demo, data in {settings.data_dir}")
        environ["DEALIX_API__BIND"] = bind = _free(settings.api.bind)
        programs, api = Programs(environ, config_file), Api(f"http://{bind}")
        daemon = programs.serve(settings.data_dir / "demo.log")
        _await_ready(api, daemon)
        memory_file = settings.data_dir / "demo.json"
        memory = Memory.read(memory_file)
        receiver = Receiver(memory.receiver_port)
        memory = _introduce(api, programs, receiver, memory)
        memory.write(memory_file)
        _tell(api, programs, daemon, receiver)
        while True:
            _show_next(receiver, daemon)
    except _Stop:
        click.echo("\nStopping …")
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # once is enough
        if daemon is not None:
            daemon.stop()
        if receiver is not None:
            receiver.close()
        os.close(lock)


def _lock(data_dir: Path) -> int:
    """A descriptor whose lock says that a demo runs on this data. It goes with the process."""
    lock = os.open(data_dir / "demo.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise DemoFailed(f"another demo is running on {data_dir}") from None
    return lock


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


def _free(bind: str) -> str:
    """`bind`, or where its port is taken the same host with a free one."""
    host, _, port = bind.rpartition(":")
    for candidate in (int(port), 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host.strip("[]"), candidate))
            except OSError as e:
                if candidate == 0:
                    raise DemoFailed(f"cannot listen on {host}: {e.strerror}") from e
                click.echo(f"Port {port} is taken: choosing another.")
                continue
            return f"{host}:{probe.getsockname()[1]}"
    raise AssertionError  # one of the two returned or raised


def _await_ready(api: Api, daemon: Daemon) -> None:
    click.echo("Starting the daemon …")
    begun = time.monotonic()
    while not (daemon.says_it_is_ready() and api.ready()):
        daemon.check_alive()
        if time.monotonic() > begun + _READY_S:
            raise DemoFailed(f"the daemon was not ready within {_READY_S:g} s")
        time.sleep(_POLL_S)
    click.echo(f"Ready after {time.monotonic() - begun:.1f} s.")


def _introduce(api: Api, programs: Programs, receiver: Receiver, memory: Memory) -> Memory:
    """Have a key, and a subscription whose secret the receiver knows: those of the last start if they still serve."""
    api.key = memory.ops_key
    if not memory.ops_key or api.call("GET", f"/webhooks?customer_id={CUSTOMER}") is None:
        api.key = programs.dealix("keys", "create", "--ops")
    memory = replace(memory, ops_key=api.key, receiver_port=receiver.port)
    changes = {"endpoint_url": receiver.url, "enabled": True}
    if not memory.secret or api.call("PATCH", f"/webhooks/{memory.subscription_id}", changes) is None:
        made = api.call("POST", "/webhooks", {"customer_id": CUSTOMER, "endpoint_url": receiver.url, "events": []})
        if made is None:
            raise DemoFailed("the API does not take the key that was just made")
        memory = replace(memory, subscription_id=str(made["id"]), secret=str(made["secret"]))
    receiver.secret = memory.secret
    click.echo(f"Receiver {receiver.url} is subscription {memory.subscription_id} of customer {CUSTOMER}")
    return memory


def _tell(api: Api, programs: Programs, daemon: Daemon, receiver: Receiver) -> None:
    """Emit one event in SQL, show it arrive, and say how to go on."""
    emitted = programs.psql(_query(7))
    event_id = emitted.partition("|")[0]
    click.echo(f"Emitted one event in SQL: {event_id}\n")
    ends_at = time.monotonic() + _DELIVERY_S
    while _show_next(receiver, daemon) != event_id:
        if time.monotonic() > ends_at:
            raise DemoFailed(f"the event did not arrive within {_DELIVERY_S:g} s")
    body = {"customer_id": CUSTOMER, "event_type": EVENT_TYPE, "payload": {"deal_id": 8}}
    link = api.call("POST", "/portal-links", {"customer_id": CUSTOMER})
    if link is None:
        raise DemoFailed("the API made no link to the portal")
    click.echo(f"""
Portal   {link["url"]}
         what the customer sees; the link holds for an hour
Ops      {api.origin}/ops   what the operator sees; sign in with the key
API      {api.origin}/api/v1/ecosystem   (described at {api.origin}/docs)
Ops key  {api.key}

Emit the next one over HTTP:
  {api.curl_line("/events/emit", body)}
or in SQL, in a transaction of your own:
  {programs.psql_line(_query(9))}

For a receiver of your own and the other commands (see README.md), in another terminal first:
  {programs.export_line(api.origin, api.key)}

Each further delivery is shown here. Ctrl-C ends the demo; its data stays for the next start.
""")


def _query(deal_id: int) -> str:
    payload = json.dumps({"deal_id": deal_id})
    return f"SELECT * FROM dealix.emit('{CUSTOMER}', '{EVENT_TYPE}', '{payload}')"  # noqa: S608 our own constants


def _show_next(receiver: Receiver, daemon: Daemon) -> str | None:
    """Wait a moment for an arrival and show it; its event id, None if nothing came."""
    try:
        arrival = receiver.arrivals.get(timeout=0.5)
    except Empty:
        daemon.check_alive()
        return None
    click.echo(_line(arrival))
    sys.stdout.flush()
    return arrival.event_id


def _line(arrival: Arrival) -> str:
    marks = [
        f"{click.style('✓', fg='green') if holds else click.style('✗ BAD', fg='red')} {name}"
        for name, holds in (("Stripe format", arrival.stripe_format), ("Standard Webhooks", arrival.standard_webhooks))
    ]
    return (
        f"{time.strftime('%H:%M:%S')}  {arrival.event_type}  {arrival.event_id}  attempt {arrival.attempt}  "
        f"{'  '.join(marks)}  {arrival.data}"
    )
