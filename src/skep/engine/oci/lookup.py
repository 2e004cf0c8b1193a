"""Names of registries, looked up by the system's resolver, and not for longer than a person waits.

The system asks each of its servers twice, for five seconds, and for each domain of its search list: most of a minute when nothing answers.
A question cannot be called back, so each has a thread of its own that nobody waits for at the end, and there are never many of them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from contextlib import suppress
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

LOOKUP_SECONDS = 6.0
"""One question may get lost, and is asked again after five."""
MAX_LOOKUPS = 32
_free = threading.BoundedSemaphore(MAX_LOOKUPS)


class Lookup(AbstractResolver):
    """For one session: a name that was asked for in vain is not asked for again. Silence is TimeoutError with ETIMEDOUT."""

    def __init__(self) -> None:
        self._silent: set[str] = set()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        if host not in self._silent:
            try:
                async with asyncio.timeout(LOOKUP_SECONDS):
                    return await _ask(host, port, family)
            except TimeoutError:
                self._silent.add(host)
        raise TimeoutError(errno.ETIMEDOUT, "i/o timeout")

    async def close(self) -> None:
        """Nothing is held."""


async def _ask(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    if not _free.acquire(blocking=False):
        raise TimeoutError(errno.ETIMEDOUT, "too many names are being looked up")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

    def tell(found: list[ResolveResult] | OSError) -> None:
        if not answer.done():
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

    def work() -> None:
        found: list[ResolveResult] | OSError
        try:
            found = _addresses(host, port, family)
        except OSError as error:
            found = error
        except UnicodeError as error:
            found = socket.gaierror(socket.EAI_NONAME, str(error))
        finally:
            _free.release()
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(partial(tell, found))

    threading.Thread(target=work, name="lookup", daemon=True).start()
    return await answer


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = []
    for kind, _, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG):
        number, service = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        found.append(ResolveResult(hostname=host, host=number, port=int(service), family=kind, proto=protocol, flags=flags))
    return found
