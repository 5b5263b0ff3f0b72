"""Portal: what each of its pages, and each reading of the delivery log over HTTP, takes with millions of attempts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlencode

import click
import msgspec
import psycopg

from bench.browser import Answer, Browser
from bench.cpu import Meter
from bench.emitting import percentile
from bench.figures import Figure, Untrue, medians, number, publish
from bench.long_log import BIG, RARE_ROWS, RARE_TYPE, SMALL, Log, demand_room, fill
from bench.parts import Stage, stage, wait_until
from bench.seeding import migrated, register
from bench.serving import Api, serving
from daemon.ids import SubscriptionId

DAYS: Final = 31
"""What the default retention keeps: 30 days and today."""
ENDPOINTS: Final = 5
API: Final = "/api/v1/ecosystem"
RECOVERED_S: Final = 60.0
PAGES_MOST: Final = 500
"""Of a list, before it is said not to end."""
_ASSET: Final = re.compile(r'(?:src|href)="(/portal/assets/[^"]+)"')
_CURSOR: Final = re.compile(r'href="(/portal/deliveries\?[^"]*cursor=[^"]*)">Older<')
_ROW: Final = re.compile(r'<tr data-id="(dlv_[0-9a-f]{24})">')

_TRUE: Final = """
    SELECT id FROM dealix.attempts
    WHERE customer_id = %(customer_id)s AND (%(type)s::text IS NULL OR event_type = %(type)s)
      AND (%(endpoint)s::text IS NULL OR subscription_id = %(endpoint)s)
      AND (%(success)s::boolean IS NULL OR success = %(success)s)
    ORDER BY id DESC
"""
_SOME: Final = """
    (SELECT id, event_id FROM dealix.attempts WHERE customer_id = %(customer_id)s ORDER BY id DESC LIMIT 1)
    UNION ALL
    (SELECT id, event_id FROM dealix.attempts WHERE customer_id = %(customer_id)s ORDER BY id LIMIT 1)
"""


class Run(msgspec.Struct, frozen=True):
    """Milliseconds over all requests of a run; of the pages by themselves the slowest one's; and the first load."""

    p50_ms: float
    p99_ms: float
    slowest_p50_ms: float
    slowest_p99_ms: float
    first_load_kb: float


@dataclass(frozen=True)
class Page:
    """Something that is asked for again and again."""

    name: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    statuses: tuple[int, ...] = (200,)


@click.command("portal")
@click.option("--attempts", default=5_000_000, show_default=True, help="Over 31 days, a tenth of one customer's.")
@click.option("--requests", default=20, show_default=True, help="Of each page in a run.")
@click.option("--runs", default=5, show_default=True)
def portal(attempts: int, requests: int, runs: int) -> None:
    """Every page of the portal, and every reading of the delivery log, with five million attempts in it."""
    with stage(1) as on:
        demand_room(on, attempts)
        meter = Meter(postgres=on.postgres.pid, receiver=on.receiver.pid)
        results, times, first_load = measure(on, attempts, requests, runs)
        others = meter.costs().others
    middle = medians(results)
    what = f"{attempts:,} attempts in the log, every page"
    publish(
        f"milliseconds a page with {attempts:,} attempts over {DAYS} days, a tenth of one customer's",
        results,
        [
            Figure(f"{what}: p50", middle.p50_ms, "ms"),
            Figure(f"{what}: the slowest one's p50", middle.slowest_p50_ms, "ms"),
            Figure(f"{what}: the slowest one's p99", middle.slowest_p99_ms, "ms", 100, at_most=True),
            Figure("first load of the portal over the wire", middle.first_load_kb, "KB", 150, at_most=True),
        ],
        others=others,
    )
    _show(times, first_load)


def measure(
    on: Stage, attempts: int, requests: int, runs: int
) -> tuple[list[Run], dict[str, list[float]], dict[str, Answer]]:
    """Fill the log, look whether the lists are true, then time every page.

    Returns the runs, the milliseconds of each page's requests (the very first one in front), and what the first load
    brought, by path.
    """
    key = migrated(on)
    endpoints = register(on, [BIG], hosts=1, each=ENDPOINTS)
    log = Log(attempts, DAYS, endpoints, rare=True, events=True)
    fill(on, log)
    with serving(on) as daemon, on.sql() as db:
        api = Api(daemon, key)
        browser = Browser(daemon.port)
        first_load = _first_load(api, browser)
        client = Browser(daemon.port, {"Authorization": f"Bearer {key}"})
        recovery_id = _recovered(api, endpoints[0])
        pages = [*_portal(db, log, browser, recovery_id), *_walks(db, endpoints, browser), *_readings(db, log)]
        times: dict[str, list[float]] = {page.name: [] for page in pages}
        results: list[Run] = []
        for run in range(runs + 1):  # the first one warms up: of its times only each page's very first one is kept
            of_run: dict[str, list[float]] = {page.name: [] for page in pages}
            for _ in range(requests if run else 1):
                for page in pages:
                    visitor = client if page.path.startswith(API) else browser
                    of_run[page.name].append(_ask(visitor, page).took_ms)
            for name, taken in of_run.items():
                times[name] += taken
            if run:
                results.append(_run(of_run, first_load))
    return results, times, first_load


def _run(times: Mapping[str, Sequence[float]], first_load: Mapping[str, Answer]) -> Run:
    together = [one for taken in times.values() for one in taken]
    return Run(
        percentile(together, 0.5),
        percentile(together, 0.99),
        max(percentile(taken, 0.5) for taken in times.values()),
        max(percentile(taken, 0.99) for taken in times.values()),
        sum(answer.wire_bytes for answer in first_load.values()) / 1000,
    )


def _ask(visitor: Browser, page: Page) -> Answer:
    answer = visitor.get(page.path, **page.headers)
    if answer.status not in page.statuses:
        raise Untrue(f"{page.name}: {page.path} answered {answer.status}: {answer.text[:500]}")
    return answer


def _first_load(api: Api, browser: Browser) -> dict[str, Answer]:
    """A link is opened by a browser that has nothing of us yet: page, then scripts, styles and pictures, by path."""
    url = str(api.call("POST", "/portal-links", {"customer_id": BIG})["url"])
    entered = browser.get(url)
    if entered.status != 303:
        raise Untrue(f"the link answered {entered.status}")
    answers = {"the link": entered, "/portal/": browser.get(entered.headers["location"])}
    for path in dict.fromkeys(_ASSET.findall(answers["/portal/"].text)):
        answers[path] = browser.get(path)
    if [one.status for one in answers.values()] != [303] + [200] * (len(answers) - 1) or len(answers) < 5:
        raise Untrue(f"the first load came to {[(path, one.status) for path, one in answers.items()]}")
    return answers


def _recovered(api: Api, endpoint: SubscriptionId) -> str:
    """A recovery that has ended: what one endpoint failed within the last hours, delivered by this daemon."""
    since = (datetime.now().astimezone() - timedelta(hours=3)).isoformat()
    begun = api.call("POST", f"/webhooks/{endpoint}/recover", {"since": since, "status": "failed"})
    recovery_id = str(begun["id"])
    wait_until(lambda: api.call("GET", f"/recoveries/{recovery_id}")["state"] != "running", RECOVERED_S, every_s=0.2)
    return recovery_id


def _lists(endpoints: Sequence[SubscriptionId]) -> dict[str, dict[str, str]]:
    """The log's filters, by what they are called, as the portal has them."""
    busy, *_, refusing, sound = endpoints
    return {
        "all": {},
        "delivered": {"outcome": "success"},
        "failed": {"outcome": "failed"},
        "one endpoint": {"subscription_id": busy},
        "one endpoint, failed": {"subscription_id": busy, "outcome": "failed"},
        "one endpoint, delivered": {"subscription_id": busy, "outcome": "success"},
        "one type": {"event_type": "deal.won"},
        "one type, failed": {"event_type": "deal.won", "outcome": "failed"},
        "one endpoint and type": {"subscription_id": busy, "event_type": "deal.won"},
        "rare type": {"event_type": RARE_TYPE},
        "rare type, failed": {"event_type": RARE_TYPE, "outcome": "failed"},
        "rare type, one endpoint": {"event_type": RARE_TYPE, "subscription_id": busy},
        "type that never was": {"event_type": "no.such_type"},
        "hardly ever delivered": {"subscription_id": refusing, "outcome": "success"},
        "hardly ever failed": {"subscription_id": sound, "outcome": "failed"},
    }


def _portal(db: psycopg.Connection, log: Log, browser: Browser, recovery_id: str) -> Iterator[Page]:
    """All pages that can be looked at."""
    live = {"HX-Request": "true"}
    busy, *_, refusing, _sound = log.endpoints
    for period in ("24h", "7d", "30d"):
        yield Page(f"overview, {period}", f"/portal/?period={period}")
    yield Page("endpoints", "/portal/endpoints")
    yield Page("endpoint", f"/portal/endpoints/{busy}")
    yield Page("endpoint that refuses", f"/portal/endpoints/{refusing}")
    yield Page("endpoint, new", "/portal/endpoints/new")
    for form in ("edit", "rotate", "delete", "recover"):
        yield Page(f"endpoint, {form}", f"/portal/endpoints/{busy}/{form}")
    yield Page("catalogue", "/portal/catalogue")
    yield Page("recovery", f"/portal/recoveries/{recovery_id}")
    yield Page("recovery, moving part", f"/portal/recoveries/{recovery_id}", live)
    yield Page("login", "/portal/login")
    yield Page("reference", "/docs")
    middle = (log.first_day + timedelta(days=DAYS // 2)).isoformat()
    (newest, event_id), (oldest, old_event_id) = db.execute(_SOME, {"customer_id": BIG}).fetchall()
    lists = _lists(log.endpoints) | {
        "one event": {"event_id": event_id},
        "one event, a month old": {"event_id": old_event_id},
        "until a day": {"until": f"{middle}T12:00"},
        "within an hour": {"since": f"{middle}T11:00", "until": f"{middle}T12:00"},
        "rare type, until a day": {"event_type": RARE_TYPE, "until": f"{middle}T12:00"},
    }
    for name, query in lists.items():
        yield Page(f"deliveries: {name}", f"/portal/deliveries?{urlencode(query)}")
    for name in ("all", "failed", "one endpoint", "rare type", "hardly ever failed"):
        path = f"/portal/deliveries/rows?{urlencode(lists[name])}"
        shown = _ROW.findall(browser.get(path, **live).text)
        yield Page(f"live rows: {name}", path, live, (200, 204))  # a slow moment looks less far
        if shown:
            yield Page(f"live rows: {name}, nothing new", f"{path}&seen={shown[0]}", live, (204,))
    yield Page("attempt", f"/portal/deliveries/{newest}")
    yield Page("attempt, a month old", f"/portal/deliveries/{oldest}")


def _walks(db: psycopg.Connection, endpoints: Sequence[SubscriptionId], browser: Browser) -> Iterator[Page]:
    """The further pages of lists that hardly have a row, after a look whether these pages show what the log has."""
    for name in ("rare type", "type that never was", "hardly ever delivered", "hardly ever failed"):
        query = _lists(endpoints)[name]
        found, paths = _walked(browser, f"/portal/deliveries?{urlencode(query)}")
        wanted = {
            "customer_id": BIG,
            "type": query.get("event_type"),
            "endpoint": query.get("subscription_id"),
            "success": {"success": True, "failed": False}.get(query.get("outcome", "")),
        }
        true = [row[0] for row in db.execute(_TRUE, wanted).fetchall()]
        if found != true or len(true) != (0 if name == "type that never was" else RARE_ROWS):
            raise Untrue(f"{name}: the pages show {len(found)} attempts, the log has {len(true)}")
        for n, path in enumerate(paths[1:], 2):
            yield Page(f"deliveries: {name}, page {n}", path)


def _walked(browser: Browser, path: str) -> tuple[list[str], list[str]]:
    """The ids on all pages of a list, and the pages' addresses."""
    found: list[str] = []
    paths = [path]
    while len(paths) < PAGES_MOST:
        text = browser.get(paths[-1]).text
        found += _ROW.findall(text)
        older = _CURSOR.search(text)
        if older is None:
            return found, paths
        paths.append(older[1].replace("&amp;", "&"))
    raise Untrue(f"{path} does not end")


def _readings(db: psycopg.Connection, log: Log) -> Iterator[Page]:
    """What the API reads of the log."""
    for name, chosen in _lists(log.endpoints).items():
        query = {"customer_id": str(BIG)} | {key: value for key, value in chosen.items() if key != "outcome"}
        if "outcome" in chosen:
            query[f"{chosen['outcome']}_only"] = "true"
        yield Page(f"API deliveries: {name}", f"{API}/deliveries?{urlencode(query)}")
        if name in {"all", "failed", "one endpoint", "one type"}:
            yield Page(f"API deliveries, 500: {name}", f"{API}/deliveries?{urlencode(query | {'limit': '500'})}")
    yield Page("API deliveries: customer with one a day", f"{API}/deliveries?customer_id={SMALL}")
    (newest, event_id), (oldest, old_event_id) = db.execute(_SOME, {"customer_id": BIG}).fetchall()
    for when, attempt_id, its_event in (("", newest, event_id), (", a month old", oldest, old_event_id)):
        yield Page(f"API deliveries: one event{when}", f"{API}/deliveries?customer_id={BIG}&event_id={its_event}")
        yield Page(f"API delivery{when}", f"{API}/deliveries/{attempt_id}")
        yield Page(f"API event{when}", f"{API}/events/{its_event}?customer_id={BIG}")
    for days in (7, 30, 90):
        yield Page(f"API stats, {days} days", f"{API}/stats?customer_id={BIG}&period_days={days}")


def _show(times: Mapping[str, Sequence[float]], first_load: Mapping[str, Answer]) -> None:
    click.echo(f"  {'p50':>7} {'p99':>7} {'longest':>7} {'first':>7}   milliseconds")
    by_p99 = sorted(times.items(), key=lambda item: percentile(item[1][1:], 0.99), reverse=True)
    for name, (first, *taken) in by_p99:
        columns = (percentile(taken, 0.5), percentile(taken, 0.99), max(taken), first)
        click.echo("  " + " ".join(f"{number(one):>7}" for one in columns) + f"   {name}")
    click.echo("  the first load, bytes on the wire with heads:")
    for path, answer in first_load.items():
        packed = answer.headers.get("content-encoding", "as it is")
        click.echo(f"  {answer.wire_bytes:7,}   {path.rpartition('/')[2] or path} ({packed})")
