"""Every setting with its default, its unit and its reason, and `load`, which fills them.

config/default.toml shows the same to people; a test holds the two equal. Later sources win: file, environment
(`DEALIX_SECTION__KEY`), systemd credentials. Nothing is read before `load` is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from config import sources, values
from config.sources import ConfigError

_DAY_S: Final = 86_400
_Wait = Annotated[float, Field(ge=0, le=30 * _DAY_S)]


class Group(BaseModel):
    """One section. Frozen; `repr=False` marks what may hold a password, which no fault and no repr shows."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Python takes True for 1: `timeout_s = true` would be a second."""
        if isinstance(value, bool) and not isinstance(cls.model_fields[info.field_name or ""].default, bool):
            raise ValueError("should not be true or false")  # noqa: TRY004 - pydantic collects ValueErrors
        return value


class Database(Group):
    """Where events and deliveries live."""

    url: values.DatabaseUrl = Field(
        default=SecretStr(values.EMBEDDED),
        repr=False,
        description="'embedded' is a Postgres that the product starts under data_dir. Else a libpq URL, several hosts "
        "allowed: postgresql://user@db1,db2/dealix?target_session_attrs=read-write",
    )
    direct_url: Annotated[values.LibpqUrl | None, values.Optional] = Field(
        default=None,
        repr=False,
        description="Where url goes through PgBouncer: the URL past it, for LISTEN and advisory locks, which belong "
        "to a session. Not set: url.",
    )
    migrate: bool = Field(
        default=True,
        description="Bring the schema up to date at start. Switch it off where the daemon's role may not create "
        "tables, and run 'dealix migrate' with one that may.",
    )
    pool_size: int = Field(
        default=8,
        ge=2,
        le=100,
        description="Connections for deliveries, and as many for the API, next to the one that listens. Eight keep two "
        "cores of Postgres busy; more only wait there.",
    )

    @property
    def embedded(self) -> bool:
        """Whether the product runs its own Postgres."""
        return self.url.get_secret_value() == values.EMBEDDED

    @model_validator(mode="after")
    def _direct_url_needs_url(self) -> Self:
        if self.embedded and self.direct_url is not None:
            raise ValueError("direct_url is set, but url is 'embedded', which needs no other way in")
        return self


class Api(Group):
    """The HTTP API."""

    bind: values.Bind = Field(
        default="127.0.0.1:8080",
        description="host:port, or [::1]:port, where the HTTP API listens; port 0 takes a free one. It speaks plain "
        "HTTP: put a TLS proxy before it and leave it on loopback. Sockets that systemd passes take its place.",
    )
    metrics_bind: Annotated[values.Bind | None, values.Optional] = Field(
        default=None,
        description="host:port of a second address that answers GET /metrics to anyone, without a key, and nothing "
        "else: for a Prometheus on this machine or in a network of your own. Not set: /metrics is on bind, for ops "
        "keys.",
    )
    max_connections: int = Field(
        default=512,
        ge=4,
        le=16_384,
        description="Clients at once; a newcomer then takes the place of whoever has kept us waiting longest. Each may "
        "hold a body of 1 MiB, and all of them at most a quarter of the file descriptors.",
    )
    trusted_proxies: values.Networks = Field(
        default=(),
        description="Networks, as CIDR, of proxies whose X-Forwarded-For tells the client's address. It is counted by, "
        "no more: failed authentications are limited for each address. Empty: the header is not read.",
    )
    public_url: Annotated[values.PublicUrl | None, values.Optional] = Field(
        default=None,
        description="How the world reaches the API and the portal, as in https://hooks.example.com: what links to the "
        "portal begin with, and with https its cookies are for https alone. Not set: as each request names it.",
    )


class Delivery(Group):
    """How requests go out, come back, and come again."""

    max_in_flight: int = Field(
        default=256,
        ge=1,
        le=10_000,
        description="Requests on the wire at once that are younger than 1 s; older ones count against max_slow.",
    )
    max_slow: int = Field(
        default=1024,
        ge=1,
        le=50_000,
        description="Requests waiting longer than 1 s for their answer. Apart from max_in_flight, so that endpoints "
        "that hang delay nobody else. Each holds a file descriptor.",
    )
    per_subscription: int = Field(
        default=8, ge=1, le=1000, description="Requests at once to one endpoint: what a small receiver stands."
    )
    timeout_s: float = Field(
        default=10.0, gt=0, le=60, description="Seconds for one whole exchange: look-up, connect, TLS, request, answer."
    )
    retry_schedule_s: Annotated[tuple[_Wait, ...], values.Listed] = Field(
        default=(0.0, 30.0, 300.0, 1800.0, 21600.0, 86400.0),
        min_length=1,
        max_length=20,
        description="Seconds before each attempt, counted from the one before; as many attempts as numbers. Six reach "
        "past a day's outage.",
    )
    disable_after: int = Field(
        default=20, ge=1, le=100_000, description="Consecutive failures after which a subscription is disabled."
    )
    breaker_after: int = Field(
        default=5,
        ge=1,
        le=100_000,
        description="Consecutive failures after which an endpoint gets no traffic for a cool-down.",
    )
    breaker_cooldown_s: float = Field(
        default=30.0,
        gt=0,
        le=900,
        description="Seconds of the first cool-down; each next one is twice as long, up to 900.",
    )


class Egress(Group):
    """Where requests may go. Public addresses always; everything below opens more."""

    allow_localhost: bool = Field(
        default=False, description="Accept endpoints on this machine, also by plain http: for trying out and tests."
    )
    allow_networks: values.Networks = Field(
        default=(),
        description="Networks of your own to which endpoints may point, as CIDR, also by plain http where the URL has "
        "a literal address. Whoever may register an endpoint can then reach them.",
    )
    proxy_url: Annotated[values.ProxyUrl | None, values.Optional] = Field(
        default=None,
        repr=False,
        description="http://host:port of a CONNECT proxy for all requests; it then judges the addresses. The usual "
        "proxy variables of the environment are not read.",
    )


class Intake(Group):
    """How events come in, next to dealix.emit."""

    raw_notify: bool = Field(
        default=True,
        description="Take NOTIFY dealix_emit as events. Any role that can connect may send it: switch it off where "
        "not all of them may speak for every customer.",
    )


class Retention(Group):
    """How long things are kept."""

    days: int = Field(
        default=30, ge=1, le=3650, description="Days that events and attempts are kept. Daily statistics stay for 400."
    )


class Traces(Group):
    """OpenTelemetry. Needs the extra `otel`."""

    enabled: bool = Field(
        default=False,
        description="Send spans of emits over HTTP, fan-outs and attempts to a collector. Needs the extra: pip install "
        "'dealix-webhooks[otel]'. Without it, and with it off, a traceparent is still stored and sent on.",
    )
    endpoint: values.CollectorUrl = Field(
        default="http://127.0.0.1:4318/v1/traces",
        repr=False,
        description="Where the collector takes OTLP over HTTP. Headers, certificates and the service's name come from "
        "the usual variables: OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME and so on.",
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="How many of the traces that begin here are kept. Of one that came with a traceparent its flag "
        "decides.",
    )


class Log(Group):
    """What is written to standard error."""

    format: Literal["auto", "json", "console"] = Field(
        default="auto",
        description="'json' is one object a line, 'console' is for eyes; 'auto' is console on a terminal.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The lowest level that is written: debug, info, warning, error."
    )
    attempts: Literal["failures", "all"] = Field(
        default="failures",
        description="Which attempts get a line of their own. Successes are counted in any case, and each attempt is "
        "in the database.",
    )


class Settings(Group):
    """All of it."""

    database: Database = Database()
    data_dir: values.DataDir = Field(
        description="Where the embedded Postgres and the sealing key live. Not set: $STATE_DIRECTORY, else "
        "/var/lib/dealix for root, else ~/.local/share/dealix.",
    )
    api: Api = Api()
    delivery: Delivery = Delivery()
    egress: Egress = Egress()
    intake: Intake = Intake()
    retention: Retention = Retention()
    traces: Traces = Traces()
    log: Log = Log()
    sealing_key: values.SealingKeys | None = Field(
        default=None,
        repr=False,
        description="Base64 of the 32 bytes that seal the subscriptions' secrets in the database; more lines are "
        "former keys, which only open. Not set: made at the first start and kept in data_dir. Never in this file: a "
        "credential, or DEALIX_SEALING_KEY.",
    )

    @model_validator(mode="after")
    def _retries_end_within_retention(self) -> Self:
        schedule_s = sum(self.delivery.retry_schedule_s)
        if schedule_s >= self.retention.days * _DAY_S:
            raise ValueError(
                f"delivery.retry_schedule_s takes {schedule_s / _DAY_S:.1f} days, but retention.days = "
                f"{self.retention.days}: an event would be gone before its last attempt"
            )
        return self


def keys() -> dict[str, bool]:
    """Each settable key, as in `database.url`, and whether its value may be shown."""
    found: dict[str, bool] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            found |= {f"{name}.{key}": inner.repr for key, inner in field.annotation.model_fields.items()}
        else:
            found[name] = field.repr
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
    given = {"data_dir": sources.Given(sources.default_data_dir(environ), "default")}
    for reading in readings:
        given |= reading.given
    faults = [fault for reading in readings for fault in reading.faults]
    try:
        settings = Settings.model_validate(sources.tree(given))
    except ValidationError as e:
        faults += [sources.fault_of(error, given, known) for error in e.errors(include_url=False)]
    else:
        if not faults:
            return settings
    raise ConfigError(faults)
