"""Request bodies: content type, size, JSON without nulls, decoded into the model's structs.

Go takes `null` for the zero value everywhere and the docker CLI sends it freely; msgspec does not, so nulls are dropped first. What a
client says that no struct knows is ignored, as Docker ignores it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from aiohttp import web

from skep.api.gojson import syntax_error
from skep.api.spelling import spelled
from skep.api.wire.canonical import check_numbers
from skep.errors import Invalid

T = TypeVar("T")

LARGEST = 16 << 20
"""Bytes of a JSON body; the largest Docker object, a config, is 1.4 MB."""


def check_type(request: web.Request) -> None:
    given = request.headers.get("Content-Type", "")
    if not given and not request.body_exists:
        return
    if not given.strip():
        raise Invalid("malformed Content-Type header (): mime: no media type")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise Invalid(f"unsupported Content-Type header ({given}): must be 'application/json'")


def without_nulls(value: Any) -> Any:
    """The same JSON with null members left out of objects (lists keep their length)."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


async def read_json(request: web.Request) -> Any:
    """The body as plain JSON values without nulls; an empty one is `{}`. Raises Invalid with Docker's sentences."""
    check_type(request)
    data = await request.read()
    if not data.strip():
        return {}
    try:
        value = msgspec.json.decode(data)
        return {} if value is None else without_nulls(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"invalid JSON: {syntax_error(data) or error}") from None


def convert(value: Any, kind: type[T]) -> T:
    try:
        found = msgspec.convert(spelled(value, kind), kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"invalid JSON: {error}") from None
    check_numbers(found)
    return found


async def decode_body(request: web.Request, kind: type[T]) -> T:
    return convert(await read_json(request), kind)
