"""Settings: defaults, sources and their order, and what is said about faults."""

from __future__ import annotations

import base64
import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import Settings, keys, load
from config.sources import ConfigError

DEFAULT_FILE: Final = Path(__file__).parents[2] / "config/default.toml"
KEY: Final = base64.b64encode(bytes(range(32))).decode()


def fault(toml: str, tmp_path: Path, **environ: str) -> str:
    """All the faults that loading reports."""
    file = tmp_path / "dealix.toml"
    _ = file.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        _ = load(file, environ)
    return str(caught.value)


def from_toml(toml: str, tmp_path: Path, **environ: str) -> Settings:
    file = tmp_path / "dealix.toml"
    _ = file.write_text(toml)
    return load(file, environ)


def described() -> dict[str, str]:
    """Each key and its description, whitespace evened out."""
    found: dict[str, str] = {}
    for key in keys():
        section, _, name = key.rpartition(".")
        model = type(getattr(load(None, {}), section)) if section else Settings
        found[key] = " ".join((model.model_fields[name].description or "").split())
    return found


def test_the_shipped_file_says_exactly_what_the_code_does() -> None:
    assert load(DEFAULT_FILE, {}) == load(None, {})


def test_the_shipped_file_shows_every_key_under_its_description() -> None:
    shown: dict[str, str] = {}
    section, comment = "", ""
    for line in DEFAULT_FILE.read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1] + "."
        elif entry := re.fullmatch(r"(?:# )?([a-z_]+) = .*", line):
            shown[section + entry[1]] = comment
        comment = f"{comment} {line[2:]}".strip() if line.startswith("# ") else ""
    assert shown == {key: text for key, text in described().items() if key != "sealing_key"}


def test_the_examples_that_the_shipped_file_has_commented_out_are_accepted(tmp_path: Path) -> None:
    toml = re.sub(r"(?m)^# ([a-z_]+ = )", r"\1", DEFAULT_FILE.read_text())
    settings = from_toml(toml.replace('url = "embedded"', 'url = "postgresql://pooler/dealix"'), tmp_path)
    assert settings.egress.proxy_url == "http://proxy.internal:3128"
    assert settings.database.direct_url is not None


def test_the_contracts_defaults_hold() -> None:
    settings = load(None, {})
    assert settings.database.embedded
    assert settings.api.bind == "127.0.0.1:8080"
    delivery = settings.delivery
    assert (delivery.max_in_flight, delivery.max_slow, delivery.per_subscription) == (256, 1024, 8)
    assert (delivery.timeout_s, delivery.disable_after) == (10, 20)
    assert delivery.retry_schedule_s == (0, 30, 300, 1800, 21600, 86400)
    assert (delivery.breaker_after, delivery.breaker_cooldown_s) == (5, 30)
    assert (settings.egress.allow_localhost, settings.egress.allow_networks, settings.egress.proxy_url) == (
        False,
        (),
        None,
    )
    assert settings.intake.raw_notify
    assert settings.retention.days == 30
    assert settings.log.level == "info"


def test_the_environment_beats_the_file_and_a_credential_beats_both(tmp_path: Path) -> None:
    _ = (tmp_path / "database_url").write_text("postgresql://credential/x\n")
    settings = from_toml(
        '[database]\nurl = "postgresql://file/x"\npool_size = 3\n[delivery]\ntimeout_s = 1\n',
        tmp_path,
        DEALIX_DATABASE__URL="postgresql://environment/x",
        DEALIX_DATABASE__POOL_SIZE="4",
        CREDENTIALS_DIRECTORY=str(tmp_path),
    )
    assert settings.database.url.get_secret_value() == "postgresql://credential/x"
    assert settings.database.pool_size == 4
    assert settings.delivery.timeout_s == 1


def test_credentials_carry_the_three_secrets(tmp_path: Path) -> None:
    for name, text in {
        "database_url": "postgres://u:p@h/x",
        "database_direct_url": "postgres://u:p@h:6432/x",
        "sealing_key": KEY + "\n",
    }.items():
        _ = (tmp_path / name).write_text(text)
    settings = load(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.sealing_key is not None
    assert settings.sealing_key.get_secret_value().strip() == KEY
    assert settings.database.direct_url is not None
    assert settings.database.direct_url.get_secret_value() == "postgres://u:p@h:6432/x"


def test_an_empty_credential_is_as_good_as_none(tmp_path: Path) -> None:
    _ = (tmp_path / "database_url").write_text("\n")
    assert load(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}).database.embedded


def test_a_sealing_key_that_is_empty_is_a_fault_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "sealing_key").write_text("\n")
    for environ in ({"CREDENTIALS_DIRECTORY": str(tmp_path)}, {"DEALIX_SEALING_KEY": ""}, {"DEALIX_SEALING_KEY": " "}):
        with pytest.raises(ConfigError, match=r"sealing_key .*should be the base64 text of 32 bytes"):
            load(None, environ)


@pytest.mark.parametrize("text", ["0,30, 300", "[0, 30, 300]"])
def test_a_list_in_the_environment_is_written_with_commas_or_as_json(text: str) -> None:
    assert load(None, {"DEALIX_DELIVERY__RETRY_SCHEDULE_S": text}).delivery.retry_schedule_s == (0, 30, 300)


def test_networks_are_read_from_the_environment_and_nothing_means_none_of_them() -> None:
    egress = load(None, {"DEALIX_EGRESS__ALLOW_NETWORKS": "10.1.0.0/16,fd00::/8"}).egress
    assert egress.allow_networks == (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))
    assert load(None, {"DEALIX_EGRESS__ALLOW_NETWORKS": "", "DEALIX_EGRESS__PROXY_URL": ""}) == load(None, {})


def test_all_faults_of_all_sources_come_at_once_with_their_source(tmp_path: Path) -> None:
    text = fault(
        "color = 1\n[delivery]\ntimeout = 3\ntimeout_s = -1\n[log]\nlevel = 'trace'\n",
        tmp_path,
        DEALIX_DELIVERY__MAX_IN_FLIHGT="3",
        DEALIX_LOG__FORMAT="xml",
    )
    file = tmp_path / "dealix.toml"
    assert sorted(text.splitlines()) == sorted(
        [
            f"color ({file}): unknown key",
            f"delivery.timeout ({file}): unknown key; did you mean delivery.timeout_s?",
            "DEALIX_DELIVERY__MAX_IN_FLIHGT: unknown variable; did you mean DEALIX_DELIVERY__MAX_IN_FLIGHT?",
            f"delivery.timeout_s = -1 ({file}): should be greater than 0",
            "log.format = 'xml' (DEALIX_LOG__FORMAT): should be 'auto', 'json' or 'console'",
            f"log.level = 'trace' ({file}): should be 'debug', 'info', 'warning' or 'error'",
        ]
    )


def test_no_fault_and_no_repr_shows_a_secret(tmp_path: Path) -> None:
    text = fault(
        "sealing_key = 'canary'\n[database]\nurl = 'mysql://u:canary@h/x'\npassword = 'canary'\n"
        "[egress]\nproxy_url = 'http://u:canary@proxy:3128'\n",
        tmp_path,
        DEALIX_SEALING_KEY="canary",
        DEALIX_DATABASE__DIRECT_URL="postgres://u:canary@h:0/x",
    )
    assert len(text.splitlines()) == 6
    assert "canary" not in text
    settings = load(None, {"DEALIX_SEALING_KEY": KEY, "DEALIX_DATABASE__URL": "postgresql://u:canary@h/x"})
    assert "canary" not in f"{settings!r}{settings}"
    assert KEY not in f"{settings!r}{settings}"


def test_a_fault_comes_without_the_exception_that_holds_the_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _ = load(None, {"DEALIX_DATABASE__URL": "mysql://u:canary@h/x"})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_the_sealing_key_is_refused_in_a_file(tmp_path: Path) -> None:
    assert "belongs into a credential" in fault(f"sealing_key = '{KEY}'\n", tmp_path)


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[delivery]\ntimeout_s = 0\n", "greater than 0"),
        ("[delivery]\ntimeout_s = nan\n", "finite"),
        ("[delivery]\ntimeout_s = true\n", "not be true or false"),
        ("[delivery]\nmax_in_flight = 0\n", "greater than or equal to 1"),
        ("[delivery]\nretry_schedule_s = []\n", "at least 1 item"),
        ("[delivery]\nretry_schedule_s = [0, inf]\n", "retry_schedule_s[1] = inf"),
        ("[delivery]\nretry_schedule_s = [0, -1]\n", "retry_schedule_s[1] = -1"),
        ("[retention]\ndays = 1\n", "before its last attempt"),
        ("[api]\nbind = '8080'\n", "host:port"),
        ("[api]\nbind = 'localhost:65536'\n", "port 0–65535"),
        ("[api]\nbind = '[::1:8080'\n", "host:port"),
        ("[api]\nbind = '[1::2::3]:8080'\n", "::"),
        ("[api]\npublic_url = 'hooks.example.com'\n", "https://host"),
        ("[api]\npublic_url = 'https://hooks.example.com/'\n", "without a path"),
        ("[api]\npublic_url = 'https://hooks.example.com:99999'\n", "host:port"),
        ("[egress]\nallow_networks = ['10.0.0.1/8']\n", "host bits set"),
        ("[egress]\nallow_networks = ['ten']\n", "does not appear to be"),
        ("[egress]\nallow_networks = [10]\n", "should be a network"),
        ("[egress]\nallow_networks = '[10.0.0.0/8'\n", "JSON"),
        ("[egress]\nproxy_url = 'socks5://h:1'\n", "http://host:port"),
        ("[egress]\nproxy_url = 'http://h'\n", "host:port"),
        ("[traces]\nendpoint = 'collector:4318'\n", "should be a URL such as http://127.0.0.1:4318"),
        ("[traces]\nendpoint = 'http://collector:0/v1/traces'\n", "port 1–65535"),
        ("[traces]\nendpoint = 'http://user:password@collector/'\n", "should be a URL"),
        ("[traces]\nendpoint = 'http://collector/ x'\n", "should be a URL"),
        ("[traces]\nsample_ratio = 1.5\n", "less than or equal to 1"),
        ("[database]\nurl = 'embedded'\ndirect_url = 'postgresql://h/x'\n", "direct_url is set"),
        ("[database]\nurl = 'host=h'\n", "should be a URL"),
        ("[database]\nurl = 'postgresql://h:70000/x'\n", "name:port"),
        ("[database]\nurl = 'postgresql://a,b:x/x'\n", "name:port"),
        ("[database]\nurl = 3\n", "should be a valid string"),
        ("[log]\nformat = 'xml'\n", "'auto', 'json' or 'console'"),
        ("data_dir = 3\n", "should be a path"),
        ("database = 3\n", "should be a table"),
        ("database = [\n", "Invalid value"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_expected(toml: str, expected: str, tmp_path: Path) -> None:
    text = fault(toml, tmp_path)
    assert len(text.splitlines()) == 1
    assert expected in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgres:///dealix?host=/run/postgresql",
        "postgresql://u:p%40ss@db1:5432,db2:5433/dealix?target_session_attrs=read-write",
        "postgresql://[2001:db8::1]:5432/x",
        "postgresql://%2Frun%2Fpostgresql/x",
    ],
)
def test_every_form_of_libpqs_url_is_accepted(url: str) -> None:
    assert load(None, {"DEALIX_DATABASE__URL": url}).database.url.get_secret_value() == url


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:8080", "localhost:80", "0.0.0.0:65535"])
def test_every_form_of_address_to_listen_on_is_accepted(bind: str) -> None:
    assert load(None, {"DEALIX_API__BIND": bind}).api.bind == bind


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_a_fault(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "dealix.toml"
    if content is not None:
        _ = file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"dealix\.toml: "):
        _ = load(file, {})


def test_the_data_directory_is_systemds_then_the_users() -> None:
    assert load(None, {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}).data_dir == Path("/var/lib/a")
    if os.geteuid() == 0:
        assert load(None, {"HOME": "/home/x"}).data_dir == Path("/var/lib/dealix")
    else:
        assert load(None, {"HOME": "/home/x"}).data_dir == Path("/home/x/.local/share/dealix")
        assert load(None, {"HOME": "/home/x", "XDG_DATA_HOME": "/d"}).data_dir == Path("/d/dealix")
    assert load(None, {"DEALIX_DATA_DIR": "here"}).data_dir == Path("here").absolute()


def test_a_data_directory_of_somebody_who_is_not_there_is_a_fault() -> None:
    with pytest.raises(ConfigError, match=r"DEALIX_DATA_DIR.*no home directory for ~nobody-of-that-name"):
        _ = load(None, {"DEALIX_DATA_DIR": "~nobody-of-that-name/data"})


def test_variables_of_others_are_left_alone() -> None:
    assert load(None, {"PGPASSWORD": "x", "DEALIXX": "1", "HTTP_PROXY": "http://x:1"}) == load(None, {})


@given(st.dictionaries(st.sampled_from(sorted(keys())), st.text(max_size=30)))
def test_any_text_in_the_environment_gives_settings_or_named_faults(values: dict[str, str]) -> None:
    environ = {"DEALIX_" + key.upper().replace(".", "__"): value for key, value in values.items()}
    faults: tuple[str, ...] = ()
    try:
        _ = load(None, environ)
    except ConfigError as e:
        faults = e.faults
    assert all(re.match(r"(\w+\.)?\w+", fault) for fault in faults)


@given(st.sets(st.from_regex(r"[A-Z_]{1,20}", fullmatch=True), min_size=1))
def test_every_variable_of_our_prefix_that_is_no_setting_is_refused_by_name(names: set[str]) -> None:
    environ = {"DEALIX_X_" + name: "1" for name in names}
    with pytest.raises(ConfigError) as caught:
        _ = load(None, environ)
    assert {fault.partition(":")[0] for fault in caught.value.faults} == set(environ)
