"""Facts into the router's kernel, and back out of it. Synchronous; the router's thread calls it. See docs/network.md."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable

from skep.datapath import netlink, netns
from skep.datapath.conntrack import forget_udp
from skep.datapath.desired import Wanted
from skep.datapath.diff import Change
from skep.datapath.facts import KEPT, MAIN, UPLINK_GROUP, WAYS, Address, Fact, Forwarding, Group, HostRoute, Neighbour, Route, Rule, Vxlan
from skep.datapath.router import OVERLAY, Router, delete_links
from skep.errors import SkepError

AF_BRIDGE = 7
FIRST_RULE = 1000
"""Priority of the rule for what has no mark; an earlier version's rules have none said, which is 32765 and downwards."""
VNI_WAIT = 5.0
"""Seconds."""


class _Taken(Exception):
    """By somebody else on this host; says what, and on whose part."""


class Kernel:
    """Carries out changes in one router. After an error the kernel holds a part of the change: read back before the next."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._indexes: dict[str, int] = {}
        self.overlays: frozenset[int] = frozenset()
        """Indexes of the VXLAN devices, when last read back."""
        self.taken: dict[str, str] = {}
        """By its name: why a device could not be made; what hangs on it is left out (`attained`)."""

    def index(self, link: str) -> int:
        found = self._indexes.get(link) or self._router.net.index(link)
        if not found:
            raise SkepError(f"the router of {self._router.name} has lost its link {link}")
        self._indexes[link] = found
        return found

    def forget_links(self, links: Iterable[str]) -> None:
        """They have gone, or are others of the same name: `read_back` may have seen one whose namespace was about to go."""
        for link in links:
            self._indexes.pop(link, None)

    def apply(self, change: Change) -> None:
        router = self._router
        self._delete_links(v.link for v in change.replace)
        router.net.send([netlink.set_link(self.index(v.link), f"{v.link} mtu {v.mtu}", mtu=v.mtu) for v in change.resize])
        until = time.monotonic() + VNI_WAIT
        for fact in change.add:
            if isinstance(fact, Vxlan):
                self._try_vxlan(fact, until)
        coming = [f for f in change.add if not isinstance(f, Vxlan | HostRoute)]
        router.net.send([self._message(f) for f in coming if not self._hangs(f)])
        router.host.send([self._host_route(f) for f in change.add if isinstance(f, HostRoute)])
        if change.router:
            router.net_rules.run(change.router)
        if change.host:
            router.host_rules.run(change.host)
        router.host.send([self._host_route(f, delete=True) for f in change.remove if isinstance(f, HostRoute)])
        router.net.send([self._message(f, delete=True) for f in change.remove if not isinstance(f, Vxlan | HostRoute)])
        self._delete_links(f.link for f in change.remove if isinstance(f, Vxlan))
        if change.forget or change.ports:
            with netns.entered(router.fd):
                forget_udp(change.forget, change.ports)
        if change.at or change.ports:
            forget_udp(change.at, change.ports)

    def revive(self, addresses: Iterable[str]) -> None:
        """Addresses that were declared dead are not ours any more."""
        text = ", ".join(sorted(addresses))
        if text:
            dead = f"element ip {self._router.table} dead {{ {text} }}"
            self._router.net_rules.run(f"add {dead}\ndelete {dead}\n")

    def _delete_links(self, links: Iterable[str]) -> None:
        links = list(links)
        delete_links(self._router.net, links)
        self.forget_links(links)

    def attained(self, wanted: Wanted) -> Wanted:
        """Without what hangs on devices that could not be made: to be tried again, as it is not there."""
        if not self.taken:
            return wanted
        return Wanted(frozenset(f for f in wanted.facts if not self._hangs(f)), wanted.present, wanted.datagrams)

    def forget_taken(self, wanted: Wanted) -> None:
        """But for devices that are still wanted."""
        if self.taken:
            links = {f.link for f in wanted.facts if isinstance(f, Vxlan)}
            self.taken = {link: why for link, why in self.taken.items() if link in links}

    def _hangs(self, fact: Fact) -> bool:
        return isinstance(fact, Vxlan | Address | Neighbour | Forwarding | Route) and fact.link in self.taken

    def _try_vxlan(self, v: Vxlan, until: float) -> None:
        """One whose id or port another program has is no reason to do nothing else; it is waited for once."""
        try:
            self._add_vxlan(v, 0.0 if v.link in self.taken else until)
        except _Taken as e:
            self.taken[v.link] = str(e)
        else:
            self.taken.pop(v.link, None)

    def _add_vxlan(self, v: Vxlan, until: float) -> None:
        """Asked for from the host's namespace, so that its UDP socket is there."""
        message = netlink.new_vxlan(
            v.link, vni=v.vni, port=v.port, local=v.local, address=v.mac, mtu=v.mtu, group=v.group, namespace=self._router.fd
        )
        self._send_when_free(message, v, until)
        with netns.entered(self._router.fd):
            netns.set_sysctls({f"net/ipv4/conf/{v.link}/{k}": x for k, x in OVERLAY.items()})
        try:
            self._router.net.send([netlink.set_link(self.index(v.link), f"{v.link} up", up=True)])
        except netlink.NetlinkError as e:
            self._delete_links([v.link])
            if e.errno != errno.EADDRINUSE:
                raise
            raise _Taken(f"UDP port {v.port} is taken on this host by another program") from None

    def _send_when_free(self, message: netlink.Message, v: Vxlan, until: float) -> None:
        """A router that was lost, with its pin, takes a while to go, and its devices keep their VNI until then."""
        while True:
            try:
                return self._router.host.send([message])
            except netlink.NetlinkError as e:
                if e.errno != errno.EEXIST or self._router.net.index(v.link):
                    # a device of this name in the router: what is there is not what we think, and is read back
                    raise
            if time.monotonic() > until:
                raise _Taken(f"VXLAN id {v.vni} on UDP port {v.port} is taken on this host by another program (dockerd with a swarm, say)")
            time.sleep(0.05)

    def _message(self, fact: Fact, *, delete: bool = False) -> netlink.Message:
        if isinstance(fact, Route):
            prefix = 32 if fact.destination else 0
            destination = fact.destination or "0.0.0.0"
            index = self._index_or_none(fact.link, delete)
            return netlink.route(destination, prefix, index=index, via=fact.via, table=fact.table, mtu=fact.mtu, delete=delete)
        if isinstance(fact, Neighbour):
            return netlink.neighbour(self._index_or_none(fact.link, delete), fact.address, fact.mac, delete=delete)
        if isinstance(fact, Forwarding):
            return netlink.forwarding(self._index_or_none(fact.link, delete), fact.mac, fact.address, delete=delete)
        if isinstance(fact, Address):
            return netlink.address(self._index_or_none(fact.link, delete), fact.address, 32, delete=delete, what=fact.link)
        if isinstance(fact, Rule):
            return netlink.rule(table=fact.table, mark=fact.mark, priority=0 if delete else FIRST_RULE + fact.mark, delete=delete)
        if isinstance(fact, Group):
            return netlink.set_link(self.index(fact.link), f"{fact.link} group {fact.group}", group=fact.group)
        raise TypeError(f"no netlink message for {fact}")

    def _host_route(self, fact: HostRoute, *, delete: bool = False) -> netlink.Message:
        """Never in the place of a route that somebody else has laid."""
        router = self._router
        index = router.host.index(router.link)
        destination, _, prefix = fact.destination.partition("/")
        return netlink.route(destination, int(prefix), index=index, via=router.address, delete=delete, replace=False)

    def host_addresses(self) -> list[str]:
        """Of the node itself, where others reach it."""
        return sorted({a.address for a in self._router.host.addresses() if not a.address.startswith("127.")})

    def _index_or_none(self, link: str, delete: bool) -> int:
        """What is to go may have gone with its link: an index that no link has makes the kernel say so, and that is fine."""
        if not delete:
            return 1 if link == "lo" else self.index(link)
        return 1 if link == "lo" else self._indexes.get(link) or self._router.net.index(link) or 0x7FFFFFFF

    def read_back(self) -> Wanted:
        """What of ours is in the kernel but for nft's rules: those are read by skep.datapath.inspection."""
        net = self._router.net
        links = net.links()
        names = {link.device: link.name for link in links.values()}
        self._indexes = {link.name: link.device for link in links.values()}
        facts: set[Fact] = set()
        overlays: set[int] = set()
        for link in links.values():
            if link.kind == "vxlan":
                overlays.add(link.device)
                facts.add(Vxlan(link.name, link.vni, link.group, link.address, link.port, link.local, link.mtu))
            elif link.kind == "veth" and link.group != UPLINK_GROUP:
                facts.add(Group(link.name, link.group))
        for a in net.addresses():
            if a.prefix == 32 and (a.device in overlays or a.device == 1):
                facts.add(Address(names[a.device], a.address))
        self.overlays = frozenset(overlays)
        present: set[str] = set()
        for r in net.routes():
            own = r.table == MAIN and r.prefix == 32 or WAYS < r.table <= WAYS + KEPT and not r.prefix
            if own and r.protocol == netlink.PROTOCOL and r.device in names:
                facts.add(Route(r.table, r.destination if r.prefix else "", r.via, names[r.device], r.mtu))
                if r.prefix and not r.destination.startswith("169.254."):
                    present.add(r.destination)
        for n in net.neighbours():
            if n.permanent and n.device in overlays:
                facts.add(Neighbour(names[n.device], n.to, n.lladdr))
        for n in net.neighbours(AF_BRIDGE):
            if n.permanent and n.device in overlays:
                facts.add(Forwarding(names[n.device], n.lladdr, n.to))
        facts |= {Rule(r.mark, r.table) for r in net.rules()}
        here = self._router.host.index(self._router.link)
        for r in self._router.host.routes():
            if r.protocol == netlink.PROTOCOL and r.device == here and r.table == MAIN:
                facts.add(HostRoute(f"{r.destination}/{r.prefix}"))
        return Wanted(frozenset(facts), frozenset(present))
