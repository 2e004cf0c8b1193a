"""What port 2377 asks of the manager: the authority, the sessions and the logs behind one face (`skep.link.server.Gate`)."""

from __future__ import annotations

from skep.link.channel import Channel, Identity
from skep.link.messages import JoinCall, Joined, RenewCall, Renewed
from skep.manager.ca import Authority
from skep.manager.logs import LogBroker
from skep.manager.sessions import Sessions


class Gate:
    def __init__(self, authority: Authority, sessions: Sessions, logs: LogBroker) -> None:
        self._authority = authority
        self._sessions = sessions
        self._logs = logs

    def root_certificate(self) -> str:
        return self._authority.cluster().root_ca.cert

    async def join(self, call: JoinCall, peer: str) -> Joined:
        node_id, certificate = await self._authority.join(call.token, call.csr, availability=call.availability)
        return Joined(
            node_id=node_id,
            certificate=certificate,
            cluster_id=self._authority.cluster().id,
            managers=self._sessions.dispatcher.managers,
        )

    async def renew(self, identity: Identity, call: RenewCall) -> Renewed:
        return Renewed(certificate=await self._authority.renew(identity, call.csr))

    def admit(self, identity: Identity) -> None:
        self._authority.admit(identity)

    async def session(self, identity: Identity, channel: Channel, peer: str) -> None:
        await self._sessions.serve(identity.node_id, channel, peer)

    async def logs(self, identity: Identity, stream: str, channel: Channel) -> None:
        await self._logs.serve(identity.node_id, stream, channel)
