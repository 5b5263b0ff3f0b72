"""What comes in: bodies and queries, decoded into their structs or refused with the field that is at fault.

The order of the refusals of a body: 415, 413/408 (while it is read), 400 for what is no JSON, 422 for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from quart.wrappers import Request
from werkzeug.datastructures import MultiDict

from api.errors import FieldError, Problem, invalid
from api.fields import WORDS

MAX_BODY_BYTES: Final = 1024 * 1024
BODY_S: Final = 10.0
"""How long a body may take. A megabyte in this time is a modem's pace."""
MAX_PAYLOAD_BYTES: Final = 256 * 1024
MAX_PAYLOAD_DEPTH: Final = 100
MAX_ECHO_CHARACTERS: Final = 200
"""How much of a message that may quote the request is sent back."""

_T = TypeVar("_T", bound=msgspec.Struct)

_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_PAIR: Final = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_OPENING: Final = re.compile(rb"[\[{]")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SQUARED: Final = bytes.maketrans(b"{}", b"[]")

_AT: Final = " - at `$"
_PATH: Final = re.compile(r"(?:\.[a-z_]+|\[[0-9]+\])+")
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>[a-z_]+)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_UNMATCHED: Final = re.compile(r"Expected `str` matching regex (?P<regex>'.*')")


async def read_body(request: Request, model: type[_T], *, optional: bool) -> _T:
    """The body as a `model`. `optional`: no body at all counts as `{}`.

    Raises Problem 400, 415, 422; HTTPException 408 and 413 (both cut while reading, nothing above 1 MiB is kept).
    """
    content_type = request.headers.get("Content-Type", "")
    empty_is_fine = optional and not content_type and not request.headers.get("Transfer-Encoding")
    if not empty_is_fine:
        _check_media_type(content_type, request.headers.get("Content-Encoding", "identity"))
    data = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    if not data and optional:
        return msgspec.convert({}, model)
    if empty_is_fine:
        _check_media_type(content_type, "identity")
    return decode(data, model)


def _check_media_type(content_type: str, encoding: str) -> None:
    media_type, _, rest = content_type.partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\";\s]*)", rest, re.IGNORECASE)
    if media_type.strip().lower() != "application/json":
        raise Problem(415, "unsupported_media_type", "Send the body as Content-Type: application/json.")
    if charset is not None and charset[1].lower() not in {"utf-8", "utf8"}:
        raise Problem(415, "unsupported_media_type", "JSON is UTF-8 here: leave the charset out.")
    if encoding.lower() != "identity":
        raise Problem(415, "unsupported_media_type", "Send the body without a Content-Encoding.")


def decode(data: bytes, model: type[_T]) -> _T:
    """The bytes of a body as a `model`. Raises Problem 400 for what is no JSON, 422 for other values than wanted."""
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        raise Problem(400, "malformed_json", "The body is not UTF-8.") from e
    # Before the decoder, which calls it truncated input: it is JSON by its grammar (RFC 8259, section 8.2).
    if _ESCAPED_SURROGATE.search(text) and _ESCAPED_SURROGATE.search(
        _SURROGATE_PAIR.sub("", text.replace("\\\\", " "))
    ):
        raise invalid("", "the body contains a lone surrogate escape, which is not a character")
    try:
        # As a whole first: the typed decoder stops at the first wrong value and would not see that the rest is no JSON.
        msgspec.json.decode(data, type=msgspec.Raw)
        return msgspec.json.decode(data, type=model)
    except msgspec.ValidationError as e:
        raise _refusal(str(e)) from e
    except msgspec.DecodeError as e:
        raise Problem(400, "malformed_json", f"The body is not JSON: {str(e)[:MAX_ECHO_CHARACTERS]}.") from e
    except RecursionError as e:
        raise invalid("", f"the body is nested more than {MAX_PAYLOAD_DEPTH} deep") from e


def decode_query(args: MultiDict[str, str], model: type[_T]) -> _T:
    """The query as a `model`. Raises Problem 422, for a parameter that is given twice too."""
    for name in args if model.__struct_fields__ else ():
        if len(args.getlist(name)) > 1:
            raise invalid(name[:MAX_ECHO_CHARACTERS], "is given more than once")
    return convert(args.to_dict(), model)


def convert(values: Mapping[str, object], model: type[_T]) -> _T:
    """Values as a `model`, with numbers and truth also from text. Raises Problem 422."""
    try:
        return msgspec.convert(values, model, strict=False)
    except msgspec.ValidationError as e:
        raise _refusal(str(e)) from e


def check_payload(payload: msgspec.Raw, field: str) -> str:
    """The text of an event's payload, as it came. Raises Problem 413 and 422.

    `payload` has been through `decode`: it is JSON, UTF-8, without lone surrogates.
    """
    data = bytes(payload)
    if len(data) > MAX_PAYLOAD_BYTES:
        raise Problem(
            413, "payload_too_large", f"{field}: has {len(data)} bytes, at most 262144 (256 KiB) are allowed."
        )
    if not data.startswith(b"{"):
        raise invalid(field, "must be a JSON object")
    if len(_OPENING.findall(data)) > MAX_PAYLOAD_DEPTH and _depth_exceeds(data, MAX_PAYLOAD_DEPTH):
        raise invalid(field, f"is nested more than {MAX_PAYLOAD_DEPTH} deep")
    if b"\\u0000" in data and b"\\u0000" in data.replace(b"\\\\", b""):
        raise invalid(field, "contains the escape \\u0000, which receivers and databases cannot hold")
    return data.decode()


def _depth_exceeds(data: bytes, limit: int) -> bool:
    """Strip the innermost pairs of brackets, `limit` times: what is left then was deeper."""
    rest = _STRING.sub(b"", data).translate(_SQUARED, _NO_BRACKETS)
    for _ in range(limit):
        if not rest:
            return False
        rest = rest.replace(b"[]", b"")
    return bool(rest)


def _refusal(message: str) -> Problem:
    """The 422 for what msgspec says: `Expected `int`, got `str` - at `$.events[3].payload``."""
    what, at, path = message.rpartition(_AT)
    path = path.removesuffix("`")
    if not at or not _PATH.fullmatch(path):  # a field's name in the message may look like anything
        what, path = message, ""
    path = path.removeprefix(".")
    if missing := _MISSING.fullmatch(what):
        return _refused(_join(path, missing["name"]), "is missing")
    if unknown := _UNKNOWN.fullmatch(what):
        return _refused(_join(path, unknown["name"][:MAX_ECHO_CHARACTERS]), "is not known here")
    if unmatched := _UNMATCHED.fullmatch(what):
        words = next((words for pattern, words in WORDS.items() if repr(pattern) == unmatched["regex"]), None)
        return _refused(path, words or "has characters that are not allowed")
    return _refused(path, what[:1].lower() + what[1:MAX_ECHO_CHARACTERS].replace("`", ""))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refused(field: str, message: str) -> Problem:
    detail = f"{field}: {message}" if field else message
    return Problem(422, "invalid", detail, errors=[FieldError(field, message)])
