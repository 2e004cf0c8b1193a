"""Which function answers which call: the table of routes, and what a route's function is given.

A path is looked up by method and first segment, so that the length of the table costs nothing. A method that Docker does not serve on a
path is `404 page not found`, as an unknown path is. A route names the query parameters it honours; those Docker knows and skep does not
honour are listed with the sentence that refuses them: nothing Docker knows is ignored in silence.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from skep.api.body import decode_body
from skep.api.context import Cluster, Context
from skep.api.filters import Filters, parse
from skep.api.state import State
from skep.errors import NotImplementedHere

T = TypeVar("T")
ENCODER = msgspec.json.Encoder()


class Call:
    """One request on its way: the context, the parts of its path, its API version as (1, 50)."""

    def __init__(self, request: web.Request, state: State, version: tuple[int, int], path: Mapping[str, str]) -> None:
        self.request = request
        self.state = state
        self.version = version
        self.path = path
        self.begun: web.StreamResponse | None = None
        """The answer, once its headers are out: an error can only cut the connection then."""
        self.query: Mapping[str, str] = request.query

    @property
    def context(self) -> Context:
        return self.state.context

    @property
    def cluster(self) -> Cluster:
        """Raises Unavailable off a manager."""
        return self.state.context.cluster

    def filters(self, *accepted: str) -> Filters:
        return parse(self.query.get("filters", ""), frozenset(accepted))

    async def body(self, kind: type[T]) -> T:
        return await decode_body(self.request, kind)


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


class Route(msgspec.Struct, frozen=True):
    method: str
    pattern: re.Pattern[str]
    handler: Handler
    refuses: Mapping[str, str]


class Routes:
    """`{name}` in a path is one segment, `{name*}` any number of them (image names)."""

    def __init__(self) -> None:
        self.by_start: dict[tuple[str, str], list[Route]] = {}

    def add(self, method: str, path: str, *, refuses: Mapping[str, str] | None = None) -> Callable[[Handler], Handler]:
        def register(handler: Handler) -> Handler:
            expression = re.sub(r"\{(\w+)\*\}", r"(?P<\1>[\\s\\S]+?)", path)
            expression = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", expression)
            route = Route(method, re.compile(expression), handler, refuses or {})
            self.by_start.setdefault((method, path.split("/", 2)[1]), []).append(route)
            return handler

        return register

    def include(self, other: Routes) -> None:
        for key, routes in other.by_start.items():
            self.by_start.setdefault(key, []).extend(routes)

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]] | None:
        for route in self.by_start.get((method, path.split("/", 2)[1]), ()):
            if match := route.pattern.fullmatch(path):
                return route, match.groupdict()
        return None


def check_query(route: Route, query: Mapping[str, str]) -> None:
    """Raises NotImplementedHere for a parameter that Docker knows and this route does not honour (its empty or false form passes)."""
    for name, sentence in route.refuses.items():
        if query.get(name, "").lower() not in ("", "0", "false"):
            raise NotImplementedHere(sentence)


def answer(value: Any, status: int = 200) -> web.Response:
    """JSON with the newline that Go's encoder writes. `value`: anything msgspec encodes, encoded parts as msgspec.Raw."""
    return web.Response(status=status, body=ENCODER.encode(value) + b"\n", content_type="application/json")


def nothing(status: int = 200) -> web.Response:
    return web.Response(status=status)
