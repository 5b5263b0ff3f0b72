"""JSON Schemas (2020-12) of payloads. The one file that knows the library jsonschema: with it come four more.

Import this late: they take 2 MB and 50 ms, and only whoever gives schemas to event types has a use for them.

A schema comes from ops, so it is trusted not to be malicious, and checked all the same: it may refer to nothing outside
of itself, and nothing is ever fetched for it. `format` is a note, as the standard has it, and refuses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, cast

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012
from referencing.jsonschema import Schema as SchemaValue

from api.errors import FieldError

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_MESSAGE: Final = 200
MAX_PATH: Final = 100
_REFERENCES: Final = ("$ref", "$dynamicRef")
_NAMES: Final = ("$id", "$schema")


class SchemaInvalid(ValueError):
    """Why a text is no schema that can be used, in a sentence."""


class Schema:
    """A schema that can be used. Raises SchemaInvalid for the text of any other."""

    def __init__(self, text: str) -> None:
        try:
            self._validator = _validator(cast("object", json.loads(text)))
        except (ValueError, RecursionError) as e:
            raise SchemaInvalid(str(e) if isinstance(e, SchemaInvalid) else "is no JSON that can be read") from e

    def fault(self, payload: str) -> FieldError | None:
        """What is wrong with a payload first, its `field` a path such as `deal.amount`; None if it fits."""
        try:
            errors = cast("Iterator[ValidationError]", self._validator.iter_errors(json.loads(payload)))  # pyright: ignore[reportUnknownMemberType] - half typed
            error = next(errors, None)
        except ValueError:  # Python takes no number of more than 4,300 digits
            return FieldError("", "has a number that is too long to be checked against the schema")
        except RecursionError:  # the schema's own circle, as a payload has at most a hundred levels
            return FieldError("", "cannot be checked: the schema of its type refers to itself in a circle")
        if error is None:
            return None
        path = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in error.absolute_path)
        return FieldError(path.removeprefix(".")[:MAX_PATH], error.message[:MAX_MESSAGE])


def _validator(value: object) -> Draft202012Validator:
    if not isinstance(value, dict):
        raise SchemaInvalid("must be a JSON object")
    schema = cast("dict[str, object]", value)
    if schema.get("$schema", DIALECT) != DIALECT:
        raise SchemaInvalid(f"must be of JSON Schema 2020-12: leave $schema out, or write {DIALECT}")
    try:
        # With this one format: a pattern that does not compile would show only when a payload comes.
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(("regex",)))
        registry: Registry[SchemaValue] = Registry()  # which retrieves nothing
        resolver = registry.with_resource("", Resource(schema, DRAFT202012)).resolver()
        for reference in _references(schema):
            if not reference.startswith("#"):
                raise SchemaInvalid("refers to something outside of itself: only # and what begins with it is followed")
            resolver.lookup(reference)
    except SchemaError as e:
        raise SchemaInvalid(f"is no JSON Schema: {e.message[:MAX_MESSAGE]}") from e
    except Unresolvable as e:
        raise SchemaInvalid("has a reference that leads nowhere") from e
    return Draft202012Validator(schema, registry=Registry())


def _references(value: object) -> Iterator[str]:
    """Every reference in a schema, and every other name of a document in it that is not the dialect's."""
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            if isinstance(inner, str) and (key in _REFERENCES or (key in _NAMES and inner != DIALECT)):
                yield inner
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _references(inner)
