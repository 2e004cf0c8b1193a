"""A manager and its own node in one process: its agent's link (the same frames, no TLS and no port), and its certificate."""

from __future__ import annotations

import asyncio
import logging

from skep.errors import SkepError
from skep.link.channel import Channel, Closed, encode
from skep.link.memory import pair
from skep.link.messages import Closing
from skep.link.tls import Certificates, new_key
from skep.manager.ca import Authority, sign
from skep.manager.logs import LogBroker
from skep.manager.sessions import Sessions
from skep.model.cluster import RootCA
from skep.model.enums import Role
from skep.model.node import Certificate

log = logging.getLogger(__name__)


def first_certificate(certificates: Certificates, root: RootCA, *, node_id: str, cluster_id: str, now: int, life: int = 0) -> Certificate:
    """The first manager's own certificate: files are written, and what belongs into its Node object is given back."""
    key, csr = new_key()
    pem, certificate = sign(root, csr, node_id=node_id, role=Role.MANAGER, cluster_id=cluster_id, now=now, life=life)
    certificates.store(root.cert, pem, key)
    return certificate


async def renew_own(certificates: Certificates, authority: Authority) -> None:
    """The manager's own renewal, for `skep.agent.renewal.keep_renewed`: it asks nobody."""
    key, csr = new_key()
    pem = await authority.renew(certificates.certificate().identity, csr)
    certificates.store(certificates.root(), pem, key)


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
