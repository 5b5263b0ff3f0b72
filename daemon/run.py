"""The composition root: settings, embedded Postgres, schema, engine, API, signals.

Everything runs in one Trio loop in the main thread, where the embedded Postgres has to be started too (the signal
that ends it with us follows the thread that forked it).
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from api import metrics, server
from api.app import create_app
from api.connection import Limits
from api.listening import Tail
from api.services import Services
from config.settings import Settings, keys, load
from config.sources import ConfigError
from daemon import log as logs
from daemon.actors.engine import Engine
from daemon.actors.sealing_keys import SealingKeys
from daemon.actors.supervise import keep
from daemon.embedded_postgres import EmbeddedPostgres
from daemon.errors import DatabaseUnavailable, EmbeddedPostgresFailed, SettingsInvalid
from daemon.key_file import KeyFile, load_key_ring
from daemon.sealing import KeyRing
from daemon.store import migrate, partitions, sealed
from daemon.store.connection import Connection
from daemon.store.sessions import HOT, Database
from daemon.systemd import Notifier, passed_fds, watchdog_s
from daemon.tracing import open_tracer, require

log = logs.get("daemon")

API_GRACE_S: Final = 5.0
FIRST_DAYS: Final = 2
EMBEDDED_LOOK_S: Final = 1.0
MAX_OPEN_FILES: Final = 65_536
KNOCK_S: Final = 2.0
"""How long the database may take for its first answer before the log says that it is waited for."""
PREPARE_S: Final = 120.0


def serve(settings: Settings, *, config_file: Path | None) -> int:
    """Run the daemon until SIGTERM or SIGINT; returns the exit code. Raises SettingsInvalid and other DealixErrors."""
    logs.configure(settings.log)
    _raise_open_files()
    _leave_no_core()
    require(settings.traces)
    ring = load_key_ring(settings)
    embedded = EmbeddedPostgres.start(settings.data_dir) if settings.database.embedded else None
    try:
        url = embedded.url if embedded else settings.database.url.get_secret_value()
        direct = settings.database.direct_url
        daemon = Daemon(settings, ring, Database(url, direct.get_secret_value() if direct else url), embedded)
        trio.run(daemon.run, config_file, restrict_keyboard_interrupt_to_checkpoints=True)
    finally:
        if embedded:
            embedded.stop()
    log.info("daemon.stopped")
    return 0


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, MAX_OPEN_FILES) if hard != resource.RLIM_INFINITY else MAX_OPEN_FILES
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _places(wanted: int) -> int:
    """Clients at once: a quarter of the descriptors at most. Deliveries, database and log have the rest."""
    return min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def _leave_no_core() -> None:
    """A core would hold secrets; Postgres inherits this. The hard limit stays, for whoever has to look into a crash."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@dataclass
class Daemon:
    """One daemon process."""

    settings: Settings
    ring: KeyRing
    database: Database
    embedded: EmbeddedPostgres | None

    def __post_init__(self) -> None:
        size = self.settings.database.pool_size
        self.pool = self.database.pool("dealix", size=size, options=HOT)
        # Of its own, so that neither a flood of requests nor a backlog of deliveries takes the other's connections.
        self.api_pool = self.database.pool("dealix api", size=size)
        file = None if self.settings.sealing_key else KeyFile(self.settings.data_dir)
        self.sealing_keys = SealingKeys(self.ring, file, self.api_pool)
        self.notifier = Notifier.of(os.environ)
        self.serving = ""
        """What the manager was told when all was up; empty before."""
        self.stopping = trio.Event()

    async def run(self, config_file: Path | None) -> None:
        """Everything, from the schema to the last recorded result."""
        async with trio.open_nursery() as signals:
            await signals.start(self._watch_signals, config_file)
            signals.start_soon(self._feed_watchdog)
            if self.embedded is not None:
                signals.start_soon(self._keep_embedded, self.embedded)
            if await self._prepare():
                await self._work()
            signals.cancel_scope.cancel()

    # -- before -----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> bool:
        """Wait for the database, bring the schema up to date, check the key. False if told to stop meanwhile."""
        pause_s = 0.2
        while not self.stopping.is_set():
            try:
                async with self.api_pool.connection(KNOCK_S):
                    pass
                # Past a pooler, if there is one: migrating takes a lock of the session.
                async with self.database.session("dealix start", PREPARE_S) as conn:
                    await self._check_database(conn)
            except DatabaseUnavailable as e:
                log.warning("daemon.waiting_for_database", error=str(e))
                self.notifier.status(f"waiting for the database: {e}")
                with trio.move_on_after(pause_s):
                    await self.stopping.wait()
                pause_s = min(pause_s * 2, 2.0)
            else:
                return True
        return False

    async def _check_database(self, conn: Connection) -> None:
        if self.settings.database.migrate:
            applied = await migrate.migrate(conn)
            if applied:
                log.info("schema.migrated", applied=applied)
            await partitions.make_ahead(conn, days=FIRST_DAYS)
        await migrate.check_version(conn)
        if missing := await migrate.emitter_role_missing(conn):
            log.warning("schema.emitter_role_missing", run=missing)
        if lacking := await sealed.missing(conn, self.ring):
            raise SettingsInvalid(
                f"sealing_key: not there, but in use: {sealed.say(lacking)}. Give what is missing in a line of its own "
                "(credential sealing_key, or sealing.key in data_dir)"
            )

    # -- work -------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        # Before the engine: an address that is taken ends the start before any shard is owned.
        listeners = server.adopt(passed_fds(os.environ)) or [server.listen(self.settings.api.bind)]
        tracer = open_tracer(self.settings.traces)
        engine = Engine(
            self.settings,
            self.ring,
            self.pool,
            self.api_pool,
            self.database.owner,
            open_janitor=partial(self.database.session, "dealix janitor"),
            tracer=tracer,
        )
        services = Services(
            settings=self.settings,
            pool=self.api_pool,
            ring=self.ring,
            sender=engine.sender,
            test_fire=engine.test_fire.fire,
            readiness=engine.readiness,
            vitals=engine.vitals,
            tail=Tail(self.api_pool, self.stopping),
            guest=engine.lanes.gate.narrowed,
            tracer=tracer,
        )
        bind = self.settings.api.metrics_bind
        scraped = None if bind is None else server.listen(bind, "api.metrics_bind")
        await engine.run(partial(self._serve_until_stopped, services, engine, listeners, scraped))
        await self.pool.aclose()
        await self.api_pool.aclose()
        if tracer is not None:
            await tracer.aclose()

    async def _serve_until_stopped(
        self, services: Services, engine: Engine, listeners: list[socket.socket], scraped: socket.socket | None
    ) -> None:
        app, limits = create_app(services), Limits(connections=_places(self.settings.api.max_connections))
        async with trio.open_nursery() as serving:
            if scraped is not None:
                await serving.start(self._serve_metrics, services, scraped)
            start = partial(server.serve, app, listeners, stop=self.stopping, grace_s=API_GRACE_S, limits=limits)
            urls: list[str] = await serving.start(start)
            async with trio.open_nursery() as announcing:
                announcing.start_soon(self._say_ready, urls[0], engine)
                announcing.start_soon(keep, "sealing_keys", self.sealing_keys.run)
                await self.stopping.wait()
                announcing.cancel_scope.cancel()
            log.info("daemon.stopping")
            self.notifier.stopping("finishing requests in flight")
            # The server is not cancelled: what it began it answers, within its grace.

    async def _serve_metrics(
        self,
        services: Services,
        listener: socket.socket,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        app, limits = metrics.create_app(services), Limits(connections=metrics.CONNECTIONS)
        async with trio.open_nursery() as serving:
            start = partial(server.serve, app, [listener], stop=self.stopping, grace_s=API_GRACE_S, limits=limits)
            urls: list[str] = await serving.start(start)
            log.info("metrics.served", url=f"{urls[0]}{metrics.PATH}")
            task_status.started()

    async def _say_ready(self, url: str, engine: Engine) -> None:
        """Once the schema is right and the API answers, only LISTEN is still missing."""
        await engine.listening()
        _spare_the_garbage_collector()
        log.info("daemon.ready", api=url, pid=os.getpid())
        self.serving = f"serving {url}"
        self.notifier.ready(self.serving)

    # -- signals, watchdog, embedded Postgres -------------------------------------------------------------------------

    async def _watch_signals(
        self, config_file: Path | None, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGHUP:
                    self._reload(config_file)
                else:
                    log.info("daemon.told_to_stop", signal=signal.Signals(number).name)
                    self.stopping.set()

    def _reload(self, config_file: Path | None) -> None:
        """Take over what can change live, the log; name what cannot."""
        if self.serving:  # before, READY=1 at the end would be a lie
            self.notifier.reloading()
        try:
            fresh = load(config_file, os.environ)
        except ConfigError as e:
            log.warning("config.refused", faults=str(e))
        else:
            logs.configure(fresh.log)
            needs_restart = _changed(self.settings, fresh)
            (log.warning if needs_restart else log.info)("config.reloaded", needs_restart=needs_restart)
        if self.serving:
            self.notifier.ready(self.serving)

    async def _feed_watchdog(self) -> None:
        """Fed by this loop's progress and nothing else: a database outage must not get us restarted."""
        period_s = watchdog_s(os.environ)
        while period_s is not None:
            self.notifier.watchdog()
            await trio.sleep(period_s / 3)

    async def _keep_embedded(self, embedded: EmbeddedPostgres) -> None:
        """A Postgres that died comes back; where it cannot now (a full disk, say), we try again and stay up."""
        while True:
            await trio.sleep(EMBEDDED_LOOK_S)
            try:
                if embedded.ensure_running():
                    log.warning("embedded_postgres.restarted", pid=embedded.pid)
            except EmbeddedPostgresFailed as e:
                log.error("embedded_postgres.down", error=str(e))  # noqa: TRY400 - expected, and said whole


def _spare_the_garbage_collector() -> None:
    """What was loaded until now stays; what a delivery makes dies by its reference count: 8 % of CPU become 2."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _changed(old: Settings, new: Settings) -> list[str]:
    """The settings that differ and take effect only at a start: all but the log's format and level."""
    pairs = [(key, _value(old, key), _value(new, key)) for key in keys()]
    return [key for key, before, after in pairs if before != after and key not in {"log.format", "log.level"}]


def _value(settings: Settings, key: str) -> object:
    value: object = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value
