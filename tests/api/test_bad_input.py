"""Every route against input that is wrong: a documented 4xx each time, and a process that goes on.

The matrix is made from the API's own document, so that a new route or parameter is in it by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest
import trio

from tests.support.api import Served
from tests.support.document import VALID, WHK, Operation, operations_of

HUGE: Final = "9" * 4000
DEEP: Final = "[" * 5000 + "]" * 5000

BODIES: Final = [
    ("nothing", b"", 400),
    ("half a JSON", b'{"customer_id": "ac', 400),
    ("no JSON", b"customer_id=acme", 400),
    ("NaN", b'{"customer_id": NaN}', 400),
    ("Infinity", b'{"payload": {"a": -Infinity}}', 400),
    ("two values", b"{} {}", 400),
    ("invalid UTF-8", b'{"customer_id": "\xff"}', 400),
    ("a surrogate as UTF-8", b'{"description": "\xed\xa0\x80"}', 400),
    ("UTF-16", '{"customer_id": "acme"}'.encode("utf-16"), 400),
    ("a BOM", b"\xef\xbb\xbf{}", 400),
    ("a raw NUL", b'{"description": "\x00"}', 400),
    ("null", b"null", 422),
    ("a list", b"[]", 422),
    ("a number", b"1e999999", 422),
    ("an unknown field", b'{"surely_unknown": 1}', 422),
    ("an unknown field of a megabyte", b'{"' + b"x" * 1_000_000 + b'": 1}', 422),
    ("brackets 5,000 deep", DEEP.encode(), 422),
    ("brackets 500,000 deep", b"[" * 500_000, 422),
    ("a lone surrogate", b'{"description": "\\ud800"}', 422),
    ("the wrong half of a pair first", b'{"payload": {"a": "\\udc00\\ud800"}}', 422),
    ("more than a mebibyte", b" " * 1_100_000, 413),
]  # fmt: skip
VALUES: Final = [
    *("null", "true", "-1", "0", "1.5", HUGE, "1e400", "[]", "{}", "[null]", '["x", 1]', '{"a": 1}', DEEP),
    *('""', '"\\u0000"', '"a\\nb"', '"acme\\n"', '"\u202e"', '"é"', '"\\ud83d\\ude00"'),
    *map(json.dumps, ("x" * 100_000, "' OR 1=1; --", "../../etc/passwd")),
]
"""What a field of a body is set to, as JSON text."""
PARAMETERS: Final = [
    *("", "null", "true", "-1", "0", "501", "1.5", HUGE, "1e400", "NaN", "infinity", "1790000000"),
    *("\x00", "a\nb", "acme\n", "\u202e", "é", "\ufffd", "x" * 8000, "' OR 1=1; --", "../../etc/passwd", "%", "%00"),
    *("300000-01-01T00:00:00Z", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+14:00"),
]


class Asking:
    """Sends requests with the ops key and holds each answer against the document."""

    def __init__(self, api: Served) -> None:
        self._api = api
        self.asked = 0

    async def ask(self, operation: Operation, url: str, body: bytes | None = None, what: str = "") -> int:
        content_type = {} if body is None else {"Content-Type": "application/json"}
        answer = await self._api.client.request(
            operation.method, url, content=body, headers=self._api.ops.headers | content_type
        )
        self.asked += 1
        about = f"{operation.method} {url[:200]} {what}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500, about
        assert answer.status_code in operation.statuses, about
        if answer.status_code >= 400:
            problem = answer.json()
            assert answer.headers["Content-Type"] == "application/problem+json", about
            assert {"type", "title", "status", "detail", "code"} <= set(problem), about
            assert problem["status"] == answer.status_code, about
            assert (problem.get("errors") is not None) == (answer.status_code == 422), about
            assert len(answer.content) < 2000, about
            for leak in ("Traceback", "SELECT", "psycopg", "dealix.", 'File "'):
                assert leak not in answer.text, about
        return answer.status_code


@pytest.mark.threat("N70-N74", "N77", "N79", "N105")
async def test_no_body_whatever_it_is_gets_more_than_the_4xx_that_it_deserves(api: Served) -> None:
    asking = Asking(api)
    for operation in await operations_of(api):
        if operation.body_schema is None:
            continue
        optional = not operation.spec["requestBody"]["required"]
        for what, body, expected in BODIES:
            status = await asking.ask(operation, operation.url, body, what)
            # Nothing is as good as {} where all fields have defaults; then only the object is missing.
            wanted = {404} if optional and not body else {expected}
            assert status in wanted, f"{operation.method} {operation.path} with {what}: {status}"
    assert asking.asked == len(BODIES) * len(VALID)


@pytest.mark.threat("N77")
async def test_a_body_of_another_media_type_is_415(api: Served) -> None:
    for kind in (
        *(
            None,
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/jsonx",
        ),
        *("application/json; charset=utf-16", "application/json; charset=", "json", "*/*"),
    ):
        for path in ("/webhooks", "/events/emit", "/events/emit/batch", f"/webhooks/{WHK}/test"):
            answer = await api.ops.send("POST", path, b"{}", kind)
            assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), f"{path} {kind}"


@pytest.mark.threat("N77")
async def test_a_compressed_body_is_415(api: Served) -> None:
    headers = api.acme.headers | {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await api.client.post("/api/v1/ecosystem/webhooks", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415


async def test_json_is_json_however_it_is_spelled(api: Served) -> None:
    for kind in ("application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"'):
        answer = await api.acme.send("POST", "/webhooks", b'{"endpoint_url": "http://127.0.0.1:9/"}', kind)
        assert answer.status_code == 201, kind


def bodies_with(operation: Operation, good: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Bodies with one field wrong, missing, or twice."""
    for field in operation.fields():
        for value in VALUES:
            rest = {name: inner for name, inner in good.items() if name != field}
            text = ", ".join(
                [f'"{field}": {value}', *(f'"{name}": {json.dumps(inner)}' for name, inner in rest.items())]
            )
            yield f"{field} = {value[:60]}", f"{{{text}}}".encode()
        if field in good:
            yield (
                f"{field} missing",
                json.dumps({name: inner for name, inner in good.items() if name != field}).encode(),
            )


@pytest.mark.threat("N68", "N102", "N105")
async def test_no_value_in_any_field_gets_an_answer_that_the_document_does_not_name(api: Served) -> None:
    asking = Asking(api)
    for operation in await operations_of(api):
        if operation.body_schema is None:
            continue
        good = VALID[operation.body_schema]
        for what, body in bodies_with(operation, good):
            await asking.ask(operation, operation.url, body, what)
        if operation.body_schema == "Batch":  # the same one level further down
            item = VALID["EventToEmit"]
            for field in ("customer_id", "event_type", "payload", "event_id", "extra"):
                for value in VALUES:
                    text = ", ".join(
                        [f'"{field}": {value}', *(f'"{k}": {json.dumps(v)}' for k, v in item.items() if k != field)]
                    )
                    await asking.ask(
                        operation, operation.url, f'{{"events": [{{{text}}}]}}'.encode(), f"{field} = {value[:60]}"
                    )
    assert asking.asked > 400


@pytest.mark.threat("N84", "N102", "N104-N106")
async def test_no_value_in_any_parameter_gets_an_answer_that_the_document_does_not_name(working_api: Served) -> None:
    asking = Asking(working_api)
    for operation in await operations_of(working_api):
        body = json.dumps(VALID[operation.body_schema]).encode() if operation.body_schema else None
        for name in [*operation.parameters("query"), "surely_unknown", "limit[]", "\x00"]:
            customer = (
                ""
                if name == "customer_id" or "customer_id" not in operation.parameters("query")
                else "&customer_id=acme"
            )
            at_most = "&max_s=1" if name != "max_s" and "max_s" in operation.parameters("query") else ""
            async with trio.open_nursery() as together:  # a stream that is let in takes its second
                for value in PARAMETERS:
                    query = f"{quote(name)}={quote(value)}{customer}{at_most}"
                    together.start_soon(asking.ask, operation, f"{operation.url}?{query}", body)
            twice = await asking.ask(operation, f"{operation.url}?{quote(name)}=1&{quote(name)}=1", body)
            assert twice in {422, 200}, name
        for name in operation.parameters("path"):
            for value in (
                *(one for one in PARAMETERS if one),
                "whk_" + "0" * 23,
                "WHK_" + "0" * 24,
                "-1",
                str(2**63),
                "%2e%2e",
                "x" * 8000,
            ):
                url = operation.path.replace(f"{{{name}}}", quote(value, safe=""))
                status = await asking.ask(
                    operation,
                    f"{url}?customer_id=acme" if "customer_id" in operation.parameters("query") else url,
                    body,
                )
                assert status == 404, f"{url[:100]}: {status}"
    assert asking.asked > 700


@pytest.mark.threat("N92")
async def test_unknown_addresses_and_methods_are_problems_too(api: Served) -> None:
    for path in (
        "/",
        "/api/v1/ecosystem",
        "/api/v1/ecosystem/nothing",
        "/redocs",
        "/scalar",
        "/static/x",
        "/metrics/",
        "/api/v1/ecosystem/webhooks/",
    ):
        answer = await api.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    for operation in await operations_of(api):
        known = {one.method for one in await operations_of(api) if one.path == operation.path}
        for method in {"PUT", "TRACE", "OPTIONS", "FOO", "DELETE", "PATCH"} - known:
            answer = await api.client.request(method, operation.url)
            assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
            assert known <= {one.strip() for one in answer.headers["Allow"].split(",")}
