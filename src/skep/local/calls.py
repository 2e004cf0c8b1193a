"""A few calls to the API of a node, for putting a cluster together. Standard library only: `up` has nothing else to wait for."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skep.errors import SkepError, Unavailable


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(path: Path, method: str, target: str, body: Any = None, *, timeout: float = 60.0) -> Any:
    """The decoded answer. Raises SkepError with the API's message, OSError when nobody listens."""
    connection = _Connection(str(path), timeout)
    try:
        payload = None if body is None else json.dumps(body).encode()
        connection.request(method, target, payload, {"Content-Type": "application/json"} if payload else {})
        answer = connection.getresponse()
        data = answer.read()
    except http.client.HTTPException as e:
        raise Unavailable(f"{path}: {e or type(e).__name__}") from None
    finally:
        connection.close()
    if answer.status >= 400:
        try:
            raise SkepError(json.loads(data)["message"])
        except (ValueError, KeyError):
            raise SkepError(f"{method} {target}: {answer.status}") from None
    return json.loads(data) if data.strip() and "json" in answer.headers.get("Content-Type", "") else data.decode(errors="replace")


def wait_for(path: Path, *, seconds: float, alive: Callable[[], bool] | None = None) -> None:
    """Until the API answers on this socket. `alive()` False ends the wait early. Raises Unavailable."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            call(path, "GET", "/_ping", timeout=5)
            return
        except OSError:
            pass
        if alive is not None and not alive():
            raise Unavailable("skepd has ended")
        time.sleep(0.01)
    raise Unavailable(f"no answer within {seconds:.0f} s")
