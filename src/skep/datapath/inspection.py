"""A look at everything of ours in the kernel: what is not as it should be, and what it takes to find out.

An idle node pays next to nothing: the kernel tells who touches links, addresses and routes (skep.datapath.watch), and counts the
transactions of rules (`ruleset.Generation`). As long as only ours are among them there is nothing to read. Synchronous; the router's
thread calls it. See docs/network.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec

from skep.datapath import netlink, netns, repair, watch
from skep.datapath.desired import Wanted
from skep.datapath.facts import HOST, MAIN, ROUTER, UPLINK_GROUP, Chain, Element, Fact
from skep.datapath.kernel import AF_BRIDGE, Kernel
from skep.datapath.router import Router
from skep.datapath.rules import UPLINK
from skep.datapath.ruleset import Generation, TableSeen
from skep.datapath.sandbox import Record, Sandboxes

_OURS = (watch.LINK, watch.NEIGHBOUR, watch.ADDRESS, watch.ROUTE, watch.RULE, watch.SETTING)
_HOSTS = (watch.LINK, watch.ADDRESS, watch.ROUTE)


class Faults(msgspec.Struct):
    """What is wrong with what facts hang on, and is mended before they are looked at."""

    said: list[tuple[str, str]] = []
    """(what, how it is): `("the uplink", "missing")`."""
    lay: bool = False
    """The uplink or fixed rules are to be laid anew."""
    empty: frozenset[str] = frozenset()
    """Tables that are not there: nothing in them is worth a word of its own."""
    cut: list[Record] = []
    """Sandboxes whose links are gone."""
    down: list[str] = []
    lax: list[str] = []
    """Links whose settings let through what they must not."""


class Inspection:
    def __init__(self, router: Router, kernel: Kernel, sandboxes: Sandboxes) -> None:
        self._router, self._kernel, self._sandboxes = router, kernel, sandboxes
        self._handles = ExitStack()
        self._generations: dict[str, Generation] = {}
        self._inside: watch.Watch
        self._outside: watch.Watch
        self._fixed: dict[str, object] = {}
        self._seen: dict[str, TableSeen] = {}
        self._begun: dict[str, int] = {}
        self._touched = True

    def open(self) -> None:
        """After the router; the calling thread is in the host's namespace."""
        router = self._router
        with ExitStack() as stack:
            self._outside = stack.enter_context(closing(watch.Watch(_HOSTS, self._concerns_host)))
            self._generations = {HOST: stack.enter_context(closing(Generation(router.host_rules)))}
            with netns.entered(router.fd):
                self._inside = stack.enter_context(closing(watch.Watch(_OURS, self._concerns)))
                self._generations[ROUTER] = stack.enter_context(closing(Generation(router.net_rules)))
            self._handles = stack.pop_all()
        self._touched = True
        self._remember()

    def close(self) -> None:
        self._handles.close()
        self._generations = {}

    def _remember(self) -> None:
        """The fixed rules, as they are right after they were written."""
        self._fixed = {where: repair.fixed(g.read(self._router.table)) for where, g in self._generations.items()}

    def _concerns(self, kind: int, body: bytes) -> bool:
        if kind in (netlink.NEWNEIGH, netlink.DELNEIGH):
            # those of containers come and go as they talk; ours are on VXLAN devices
            family, index = struct.unpack_from("=B3xi", body)
            return family == AF_BRIDGE or index in self._kernel.overlays
        return True

    def _concerns_host(self, kind: int, body: bytes) -> bool:
        if kind in (netlink.NEWROUTE, netlink.DELROUTE):
            return body[5] == netlink.PROTOCOL
        if kind in (netlink.NEWLINK, netlink.DELLINK):
            return netlink.attributes(body, 16).get(3, b"").rstrip(b"\0") == self._router.link.encode()
        return True

    # -- has anything happened?

    def begin(self) -> None:
        """Before anything is read: what happens from now on is seen by the next one."""
        if self._inside.touched(self._router.net.address) | self._outside.touched(self._router.host.address):
            self._touched = True
        self._begun = {where: g.now() for where, g in self._generations.items()}
        self._seen = {}

    @property
    def settled(self) -> bool:
        """Nothing has been touched since all was well."""
        quiet = not self._touched and all(g.known == self._begun[where] for where, g in self._generations.items())
        return quiet and not self._link_faults() and self._forwards() and netns.pinned(self._router.pin)

    def end(self) -> None:
        """All is well: everything was read after `begin`, and mended."""
        self._touched = False
        for where, generation in self._generations.items():
            generation.known = self._begun[where]

    # -- what is wrong

    def faults(self, applied: Wanted | None) -> Faults:
        """`applied`: what the rules hold if nobody has touched them; None: not known."""
        router, out = self._router, Faults()
        if not netns.pinned(router.pin):
            out.said.append((f"the pin of the router at {router.pin}", "missing"))
        out.said += self._link_faults()
        if not out.said:
            out.said += self._inside_faults()
        if not self._forwards():
            out.said.append(("forwarding of the host and the router", "off"))
        for where, generation in self._generations.items():
            if applied is not None and generation.known == self._begun[where]:
                continue
            seen = self._seen[where] = generation.read(router.table)
            if not seen.chains:
                out.said.append((f"the nft table {router.table} ({where})", "missing"))
                out.empty |= {where}
            elif repair.fixed(seen) != self._fixed[where]:
                out.said.append((f"the fixed rules of the nft table {router.table} ({where})", "changed"))
        out.lay = bool(out.said)
        self._look_at_links(out)
        return out

    def _link_faults(self) -> list[tuple[str, str]]:
        router = self._router
        link = router.host.link(router.link)
        if link is None:
            return [(f"the uplink {router.link}", "missing")]
        if not link.up:
            return [(f"the uplink {router.link}", "down")]
        if not any(a.device == link.device and a.address == router.near for a in router.host.addresses()):
            return [(f"the address {router.near} of the uplink {router.link}", "missing")]
        return []

    def _inside_faults(self) -> Iterator[tuple[str, str]]:
        net = self._router.net
        link = net.link(UPLINK)
        what = f"the router's end of the uplink ({UPLINK})"
        if link is None:
            yield what, "missing"
            return
        if not link.up or link.group != UPLINK_GROUP:
            yield what, "changed" if link.up else "down"
        if not any(a.device == link.device and a.address == self._router.address for a in net.addresses()):
            yield f"the address {self._router.address} of the router", "missing"
        if not any(r.table == MAIN and not r.prefix and r.device == link.device and r.via == self._router.near for r in net.routes()):
            yield "the router's way out", "missing"

    def _forwards(self) -> bool:
        here = Path("/proc/sys/net/ipv4/ip_forward")
        with netns.entered(self._router.fd):
            inside = here.read_bytes()
        return inside.strip() == b"1" and (self._router.aside or here.read_bytes().strip() == b"1")

    def _look_at_links(self, out: Faults) -> None:
        net = self._router.net
        links, settings = net.links(), net.settings()
        for record in self._sandboxes.records.values():
            missing = [p.link for p in record.places if p.link not in links]
            if missing and netns.pinned(self._sandboxes.path(record.id)):
                out.cut.append(record)
                out.said += [(f"the link {link} of container {record.id[:12]}", "missing") for link in missing]
        places = {p.link: p for r in self._sandboxes.records.values() for p in r.places}
        for link in links.values():
            if link.name not in places and link.kind != "vxlan":
                continue
            if not link.up:
                out.down.append(link.name)
                out.said.append((f"link {link.name} of the router", "down"))
            if link.name in places and settings.get(link.device, (1, 1, 1)) != (1, 1, 1):
                out.lax.append(link.name)
                out.said.append((f"what link {link.name} of the router lets through (forwarding, rp_filter, proxy_arp)", "changed"))

    def mend(self, faults: Faults) -> None:
        router = self._router
        if not netns.pinned(router.pin):
            netns.pin(router.fd, router.pin)
        if faults.lay:
            router.lay()
            self._remember()
            self._seen = {where: g.read(router.table) for where, g in self._generations.items()}
        for record in faults.cut:
            self._sandboxes.wire(record)
            self._kernel.forget_links(p.link for p in record.places)
        router.net.send([netlink.set_link(router.net.index(name), f"{name} up", up=True) for name in faults.down])
        with netns.entered(router.fd):
            for name in faults.lax:
                netns.set_sysctls({f"net/ipv4/conf/{name}/{k}": "1" for k in ("forwarding", "rp_filter", "proxy_arp")})

    # -- what there is

    def found(self, wanted: Wanted, applied: Wanted | None) -> tuple[Wanted, set[str]]:
        """Everything of ours that the kernel holds, and the addresses that are declared dead."""
        there = self._kernel.read_back()
        facts: set[Fact] = set(there.facts)
        dead: set[str] = set()
        for where in self._generations:
            seen = self._seen.get(where)
            if seen is not None:
                facts |= repair.rule_facts(seen, where, wanted)
                dead |= repair.dead_in(seen)
            elif applied is not None:
                facts |= {f for f in applied.facts if isinstance(f, Chain | Element) and f.where == where}
        return Wanted(frozenset(facts), there.present), dead
