"""Every setting with its default, its unit and its reason, and `load`, which fills them.

config/default.toml shows the same to people; a test holds the two equal. Later sources win: file, environment
(`DEALIX_SECTION__KEY`), systemd credentials. Nothing is read before `load` is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, Literal, cast

from config import sources, values
from config.sources import ConfigError, Given
from config.values import Network, Secret, Setting, setting

_DAY_S: Final = 86_400


@dataclass(frozen=True)
class Group:
    """One section."""


@dataclass(frozen=True)
class Database(Group):
    """Where events and deliveries live."""

    url: Secret = setting(
        Secret(values.EMBEDDED),
        values.secret(values.database_url),
        "'embedded' is a Postgres that the product starts under data_dir. Else a libpq URL, several hosts allowed: "
        "postgresql://user@db1,db2/dealix?target_session_attrs=read-write",
        shown=False,
    )
    direct_url: Secret | None = setting(
        None,
        values.optional(values.secret(values.libpq_url)),
        "Where url goes through PgBouncer: the URL past it, for LISTEN and advisory locks, which belong to a session. "
        "Not set: url.",
        shown=False,
    )
    migrate: bool = setting(
        True,
        values.flag,
        "Bring the schema up to date at start. Switch it off where the daemon's role may not create tables, and run "
        "'dealix migrate' with one that may.",
    )
    pool_size: int = setting(
        8,
        values.whole(2, 100),
        "Connections for deliveries, and as many for the API, next to the one that listens. Eight keep two cores of "
        "Postgres busy; more only wait there.",
    )

    @property
    def embedded(self) -> bool:
        """Whether the product runs its own Postgres."""
        return self.url.get_secret_value() == values.EMBEDDED


@dataclass(frozen=True)
class Api(Group):
    """The HTTP API."""

    bind: str = setting(
        "127.0.0.1:8080",
        values.bind,
        "host:port, or [::1]:port, where the HTTP API listens; port 0 takes a free one. It speaks plain HTTP: put a "
        "TLS proxy before it and leave it on loopback. Sockets that systemd passes take its place.",
    )
    metrics_bind: str | None = setting(
        None,
        values.optional(values.bind),
        "host:port of a second address that answers GET /metrics to anyone, without a key, and nothing else: for a "
        "Prometheus on this machine or in a network of your own. Not set: /metrics is on bind, for ops keys.",
    )
    max_connections: int = setting(
        512,
        values.whole(4, 16_384),
        "Clients at once; a newcomer then takes the place of whoever has kept us waiting longest. Each may hold a body "
        "of 1 MiB, and all of them at most a quarter of the file descriptors.",
    )
    trusted_proxies: tuple[Network, ...] = setting(
        (),
        values.listed(values.network),
        "Networks, as CIDR, of proxies whose X-Forwarded-For tells the client's address. It is counted by, no more: "
        "failed authentications are limited for each address. Empty: the header is not read.",
    )
    public_url: str | None = setting(
        None,
        values.optional(values.public_url),
        "How the world reaches the API and the portal, as in https://hooks.example.com: what links to the portal begin "
        "with, and with https its cookies are for https alone. Not set: as each request names it.",
    )


@dataclass(frozen=True)
class Delivery(Group):
    """How requests go out, come back, and come again."""

    max_in_flight: int = setting(
        256,
        values.whole(1, 10_000),
        "Requests on the wire at once that are younger than 1 s; older ones count against max_slow.",
    )
    max_slow: int = setting(
        1024,
        values.whole(1, 50_000),
        "Requests waiting longer than 1 s for their answer. Apart from max_in_flight, so that endpoints that hang "
        "delay nobody else. Each holds a file descriptor.",
    )
    per_subscription: int = setting(
        8,
        values.whole(1, 1000),
        "Requests at once to one endpoint: what a small receiver stands.",
    )
    timeout_s: float = setting(
        10.0,
        values.seconds(60),
        "Seconds for one whole exchange: look-up, connect, TLS, request, answer.",
    )
    retry_schedule_s: tuple[float, ...] = setting(
        (0.0, 30.0, 300.0, 1800.0, 21600.0, 86400.0),
        values.listed(values.seconds(30 * _DAY_S, none_at_all=True), least=1, most=20),
        "Seconds before each attempt, counted from the one before; as many attempts as numbers. Six reach past a day's "
        "outage.",
    )
    disable_after: int = setting(
        20,
        values.whole(1, 100_000),
        "Consecutive failures after which a subscription is disabled.",
    )
    breaker_after: int = setting(
        5,
        values.whole(1, 100_000),
        "Consecutive failures after which an endpoint gets no traffic for a cool-down.",
    )
    breaker_cooldown_s: float = setting(
        30.0,
        values.seconds(900),
        "Seconds of the first cool-down; each next one is twice as long, up to 900.",
    )


@dataclass(frozen=True)
class Egress(Group):
    """Where requests may go. Public addresses always; everything below opens more."""

    allow_localhost: bool = setting(
        False,
        values.flag,
        "Accept endpoints on this machine, also by plain http: for trying out and tests.",
    )
    allow_networks: tuple[Network, ...] = setting(
        (),
        values.listed(values.network),
        "Networks of your own to which endpoints may point, as CIDR, also by plain http where the URL has a literal "
        "address. Whoever may register an endpoint can then reach them.",
    )
    proxy_url: str | None = setting(
        None,
        values.optional(values.proxy_url),
        "http://host:port of a CONNECT proxy for all requests; it then judges the addresses. The usual proxy variables "
        "of the environment are not read.",
        shown=False,
    )


@dataclass(frozen=True)
class Intake(Group):
    """How events come in, next to dealix.emit."""

    raw_notify: bool = setting(
        True,
        values.flag,
        "Take NOTIFY dealix_emit as events. Any role that can connect may send it: switch it off where not all of them "
        "may speak for every customer.",
    )


@dataclass(frozen=True)
class Retention(Group):
    """How long things are kept."""

    days: int = setting(
        30,
        values.whole(1, 3650),
        "Days that events and attempts are kept. Daily statistics stay for 400.",
    )


@dataclass(frozen=True)
class Traces(Group):
    """OpenTelemetry. Needs the extra `otel`."""

    enabled: bool = setting(
        False,
        values.flag,
        "Send spans of emits over HTTP, fan-outs and attempts to a collector. Needs the extra: pip install "
        "'dealix-webhooks[otel]'. Without it, and with it off, a traceparent is still stored and sent on.",
    )
    endpoint: str = setting(
        "http://127.0.0.1:4318/v1/traces",
        values.collector_url,
        "Where the collector takes OTLP over HTTP. Headers, certificates and the service's name come from the usual "
        "variables: OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME and so on.",
        shown=False,
    )
    sample_ratio: float = setting(
        1.0,
        values.share,
        "How many of the traces that begin here are kept. Of one that came with a traceparent its flag decides.",
    )


@dataclass(frozen=True)
class Log(Group):
    """What is written to standard error."""

    format: Literal["auto", "json", "console"] = setting(
        "auto",
        values.one_of("auto", "json", "console"),
        "'json' is one object a line, 'console' is for eyes; 'auto' is console on a terminal.",
    )
    level: Literal["debug", "info", "warning", "error"] = setting(
        "info",
        values.one_of("debug", "info", "warning", "error"),
        "The lowest level that is written: debug, info, warning, error.",
    )
    attempts: Literal["failures", "all"] = setting(
        "failures",
        values.one_of("failures", "all"),
        "Which attempts get a line of their own. Successes are counted in any case, and each attempt is in the "
        "database.",
    )


@dataclass(frozen=True)
class Settings:
    """All of it."""

    database: Database = Database()
    data_dir: Path = setting(
        Path("/var/lib/dealix"),
        values.directory,
        "Where the embedded Postgres and the sealing key live. Not set: $STATE_DIRECTORY, else /var/lib/dealix for "
        "root, else ~/.local/share/dealix.",
    )
    api: Api = Api()
    delivery: Delivery = Delivery()
    egress: Egress = Egress()
    intake: Intake = Intake()
    retention: Retention = Retention()
    traces: Traces = Traces()
    log: Log = Log()
    sealing_key: Secret | None = setting(
        None,
        values.secret(values.sealing_key),
        "Base64 of the 32 bytes that seal the subscriptions' secrets in the database; more lines are former keys, "
        "which only open. Not set: made at the first start and kept in data_dir. Never in this file: a credential, or "
        "DEALIX_SEALING_KEY.",
        shown=False,
    )


def keys() -> dict[str, Setting]:
    """Each settable key, as in `database.url`, and what is known of it."""
    found: dict[str, Setting] = {}
    for outer in fields(Settings):
        if isinstance(group := outer.default, Group):
            found |= {f"{outer.name}.{inner.name}": inner.metadata["setting"] for inner in fields(group)}
        else:
            found[outer.name] = outer.metadata["setting"]
    return found


def load(config_file: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings from `config_file` (TOML), `environ`, and the credentials directory that `environ` names.

    Raises ConfigError with every fault that was found, one a line.
    """
    known = keys()
    readings = [
        sources.read_file(config_file, known) if config_file else sources.Reading(),
        sources.read_environment(environ, known),
        sources.read_credentials(environ),
    ]
    given = {"data_dir": Given(sources.default_data_dir(environ), "default")}
    for reading in readings:
        given |= reading.given
    return settled(given, [fault for reading in readings for fault in reading.faults])


def settled(given: Mapping[str, Given], faults: Sequence[str] = ()) -> Settings:
    """The settings with these values, by key, and the defaults of all others.

    Raises ConfigError with `faults`, those of each value, and those of two that do not go together.
    """
    known, fit = keys(), dict[str, object]()
    told = list(faults)
    for key, one in given.items():
        try:
            fit[key] = known[key].read(one.value)
        except ValueError as e:
            told += sources.faults_of(key, one, e, shown=known[key].shown)
    settings = _with(fit)
    unfit = given.keys() - fit.keys()
    told += [text for concerned, text in _conflicts(settings) if not concerned & unfit]
    if told:
        raise ConfigError(told)
    return settings


def _with(fit: Mapping[str, object]) -> Settings:
    """The settings with these values, by key, as their readers return them."""
    groups: dict[str, Group] = {}
    others: dict[str, object] = {}
    for key, value in fit.items():
        section, _, name = key.rpartition(".")
        if section:
            group = groups.get(section) or cast("Group", getattr(Settings, section))
            groups[section] = replace(group, **{name: value})
        else:
            others[name] = value
    return replace(Settings(), **groups, **others)


def _conflicts(settings: Settings) -> Iterator[tuple[set[str], str]]:
    """Settings that do not go together: their keys, and why."""
    if settings.database.embedded and settings.database.direct_url is not None:
        why = "database: direct_url is set, but url is 'embedded', which needs no other way in"
        yield {"database.url", "database.direct_url"}, why
    schedule_s, days = sum(settings.delivery.retry_schedule_s), settings.retention.days
    if schedule_s >= days * _DAY_S:
        why = (
            f"delivery.retry_schedule_s takes {schedule_s / _DAY_S:.1f} days, but retention.days = {days}: an event "
            "would be gone before its last attempt"
        )
        yield {"delivery.retry_schedule_s", "retention.days"}, why
