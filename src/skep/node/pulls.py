"""The images of tasks: those that want the same one at the same time share one pull."""

from __future__ import annotations

import asyncio

from skep.engine.base import Engine, Image
from skep.errors import NotFound, SkepError


class _Pull:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.done = 0
        """How many pulls have ended."""
        self.image: Image | None = None
        self.error: SkepError | None = None


class Pulls:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pulls: dict[tuple[str, str], _Pull] = {}

    async def image(self, reference: str, auth: str) -> Image:
        """By digest: what is here is what is meant. By tag: what the registry has now, else what is here."""
        local = self._engine.images.get(reference)
        if local is not None and "@" in reference:
            return local
        error: SkepError
        try:
            return await self._pull(reference, auth)
        except SkepError as problem:
            error = problem
        local = self._engine.images.get(reference)
        if local is not None:
            return local
        raise NotFound(f"No such image: {reference}: {error.text}")

    async def _pull(self, reference: str, auth: str) -> Image:
        key = (reference, auth)
        pull = self._pulls.setdefault(key, _Pull())
        seen = pull.done
        pull.users += 1
        try:
            async with pull.lock:
                if pull.done == seen:
                    pull.image = pull.error = None
                    try:
                        pull.image = await self._engine.images.pull(reference, auth=auth)
                    except SkepError as error:
                        pull.error = error
                    pull.done += 1
                if pull.image is None:
                    raise pull.error or NotFound(reference)
                return pull.image
        finally:
            pull.users -= 1
            if not pull.users:
                self._pulls.pop(key, None)
