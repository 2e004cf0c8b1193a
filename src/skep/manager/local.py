"""The manager's own agent speaks to its manager in this process: the same frames, no TLS and no port."""

from __future__ import annotations

import asyncio
import logging

from skep.errors import SkepError
from skep.link.channel import Channel, Closed, encode
from skep.link.memory import pair
from skep.link.messages import Closing
from skep.manager.logs import LogBroker
from skep.manager.sessions import Sessions

log = logging.getLogger(__name__)


class LocalLink:
    """`session` and `logs` are what `skep.agent.agent.Agent` takes as `connect` and `open_logs`. `run` must be running."""

    def __init__(self, node_id: str, sessions: Sessions, logs: LogBroker) -> None:
        self._node_id = node_id
        self._sessions = sessions
        self._logs = logs
        self._wanted: asyncio.Queue[tuple[str, Channel]] = asyncio.Queue()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                stream, channel = await self._wanted.get()
                group.create_task(self._serve(stream, channel))

    async def session(self) -> Channel:
        return self._open("")

    async def logs(self, stream: str) -> Channel:
        return self._open(stream)

    def _open(self, stream: str) -> Channel:
        ours, theirs = pair()
        self._wanted.put_nowait((stream, theirs))
        return ours

    async def _serve(self, stream: str, channel: Channel) -> None:
        try:
            if stream:
                await self._logs.serve(self._node_id, stream, channel)
            else:
                await self._sessions.serve(self._node_id, channel)
        except SkepError as error:
            if not stream:
                try:
                    await channel.send(encode(Closing(reason=error.message)))
                except Closed:
                    pass
            await channel.close(error.message)
        else:
            await channel.close()
