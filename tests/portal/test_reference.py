"""/docs: the API's document, set out for people; and the examples in it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from jsonschema_rs import Draft202012Validator

from api.examples import example_of
from tests.support.api import Served
from tests.support.visitor import open_visitor, text_of


async def test_the_reference_shows_every_operation_with_a_request_to_copy(api: Served) -> None:
    document = (await api.client.get("/openapi.json")).json()
    async with open_visitor(api) as visitor:
        page = await visitor.see("/docs")
        assert page.status_code == 200
        text = text_of(page)
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                assert f'id="operation/{operation["operationId"]}"' in page.text
                assert f"{method.upper()} {path}" in text
                assert f"$DEALIX{path}" in text
        for tag in ("ecosystem", *(one["name"] for one in document["tags"])):
            assert f'id="tag/{tag}"' in page.text
            assert f'href="#tag/{tag}"' in page.text


async def test_the_reference_loads_nothing_from_elsewhere(api: Served) -> None:
    page = (await api.client.get("/docs")).text
    for source in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert source.startswith(("/portal/assets/", "#", "/docs", "/openapi.json")), source


async def test_every_example_fits_its_schema(api: Served) -> None:
    document = (await api.client.get("/openapi.json")).json()
    schemas: dict[str, Any] = document["components"]["schemas"]
    for name in schemas:
        schema: dict[str, Any] = {"$ref": f"#/components/schemas/{name}"}
        example = msgspec.json.decode(msgspec.json.encode(example_of(schema, schemas)))
        errors = [
            str(e) for e in Draft202012Validator(schema | {"components": document["components"]}).iter_errors(example)
        ]
        assert errors == [], (name, example)


async def test_the_document_has_an_example_for_each_body_and_answer(api: Served) -> None:
    document = (await api.client.get("/openapi.json")).json()
    for methods in document["paths"].values():
        for operation in methods.values():
            bodies = [operation["requestBody"]] if "requestBody" in operation else []
            for part in (*bodies, *operation["responses"].values()):
                for content in part["content"].values():
                    schema = content["schema"] | {"components": document["components"]}
                    Draft202012Validator(schema).validate(content["example"])
