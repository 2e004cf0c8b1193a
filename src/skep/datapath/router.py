"""This node's router: a namespace of its own, its uplink to the host, and the fixed rules on both sides. Synchronous; one thread owns it.

Promises: `open` makes what is missing and leaves what is there (a restart cuts no connection); `destroy` needs nothing but the name and the
folder. The VXLAN sockets stay in the namespace the daemon runs in; everything else of a network is inside the router. See docs/network.md.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from skep.datapath import netlink, netns, nft, rules
from skep.datapath.facts import LEAVING_GROUP, UPLINK_GROUP
from skep.datapath.local import HostNetwork
from skep.datapath.rules import UPLINK
from skep.errors import Invalid, SkepError

IPV4_ROUTER = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.default.send_redirects": "0",
    "net.ipv4.conf.default.rp_filter": "1",
    "net.ipv4.conf.default.proxy_arp": "1",
    "net.ipv4.conf.default.accept_redirects": "0",
    "net.ipv4.conf.default.accept_source_route": "0",
}
"""Links of containers take these defaults over: their source address is checked, and every address but their own is ours to them."""
NOT_FOR_CONTAINERS = {"rp_filter": "0", "proxy_arp": "0"}
OVERLAY = NOT_FOR_CONTAINERS | {"accept_local": "1"}
"""Sources are checked where packets come in: at containers' links, on the node they come from. Without `accept_local` the kernel looks each
one up here once more, only to see that it is not our own."""
LEAST_EGRESS_PORTS = 1024


class Router:
    """`run_root` holds the pins; `uplink` is the /30 to begin looking from. `aside`: keep away from the host's forwarding
    (rules.host_aside)."""

    def __init__(self, name: str, run_root: Path, *, uplink: str = "172.31.255.0/30", aside: bool = False) -> None:
        self.name, self.run_root, self.aside = name, run_root, aside
        self.table = rules.table_name(name)
        self.link = f"sk{rules.tag(name, 10)}"
        self.pin = run_root / "router"
        self.pins = run_root / "netns"
        try:
            self._subnet = ipaddress.IPv4Network(uplink)
        except ValueError as e:
            raise Invalid(f"uplink {uplink!r}: {e}") from None
        if self._subnet.prefixlen != 30:
            raise Invalid(f"uplink {uplink!r}: must be a /30")
        self.address = ""
        """The router's own, on the uplink."""
        self.host_fd = self.fd = -1
        self._handles = ExitStack()
        self.host: netlink.Socket
        self.net: netlink.Socket
        self.host_rules: nft.Rules
        self.net_rules: nft.Rules

    @property
    def near(self) -> str:
        """The node's own address on the uplink."""
        return str(ipaddress.IPv4Address(self.address) - 1)

    @property
    def uplink(self) -> str:
        """The subnet of both."""
        return str(ipaddress.IPv4Network(f"{self.address}/30", strict=False))

    @property
    def is_open(self) -> bool:
        return self.fd >= 0

    def open(self) -> None:
        """Make or find; the calling thread is in the host's namespace."""
        self.run_root.mkdir(parents=True, exist_ok=True)
        netns.share(self.pins)
        if not netns.pinned(self.pin):
            self.pin.unlink(missing_ok=True)
            netns.make(self.pin)
        with ExitStack() as stack:
            self._open_handles(stack)
            self.lay()
            self._handles = stack.pop_all()

    def _open_handles(self, stack: ExitStack) -> None:
        self.host_fd, self.fd = netns.opened(), netns.opened(self.pin)
        stack.callback(self._close_descriptors)
        self.host = stack.enter_context(netlink.Socket())
        with netns.entered(self.fd):
            self.net = stack.enter_context(netlink.Socket())
        self.host_rules = stack.enter_context(closing(nft.rules(self.host_fd)))
        self.net_rules = stack.enter_context(closing(nft.rules(self.fd)))

    def lay(self) -> None:
        """The uplink and the fixed rules, and what of them is there already stays."""
        with netns.entered(self.fd):
            netns.set_sysctls(IPV4_ROUTER)
            without_ipv6()
        self._lay_uplink()
        egress = egress_ports() if self.aside else None
        self.net_rules.run(rules.router(self.table, self.address, self.near, egress))
        with netns.entered(self.fd):
            # a packet that conntrack cannot place in its window is still the connection's: it must not leave with the wrong address
            netns.set_sysctls({"net.netfilter.nf_conntrack_tcp_be_liberal": "1"})
        text = rules.host_aside if self.aside else rules.host
        self.host_rules.run(text(self.table, self.link, self.address))
        if self.aside:
            self.host_rules.run(leaving_addresses(self.table, self.host, self.link))

    def _lay_uplink(self) -> None:
        index = self.host.index(self.link)
        with netns.entered(self.fd):
            inside = self.net.index(UPLINK)
        if index and not inside:
            self.host.send([netlink.del_link(self.link)])
        if not inside:
            mtu = max(1500, self.underlay_mtu(""))
            self.host.send([netlink.new_veth(self.link, peer=UPLINK, peer_namespace=self.fd, peer_group=UPLINK_GROUP, mtu=mtu)])
            index, inside = self.host.index(self.link), self.net.index(UPLINK)
        there = [a.address for a in self.net.addresses() if a.device == inside]
        if there:
            self.address = there[0]
        elif not self.address:
            subnet = self._free_subnet()
            self.address = str(subnet[2])
        near = self.near
        self.host.send([netlink.set_link(index, f"{self.link} up", up=True), netlink.address(index, near, 30, what=self.link)])
        lo = netlink.set_link(1, "lo", up=True)
        self.net.send(
            [lo, netlink.set_link(inside, UPLINK, up=True, group=UPLINK_GROUP), netlink.address(inside, self.address, 30, what=UPLINK)]
        )
        self.net.send([netlink.route("0.0.0.0", 0, index=inside, via=near)])
        with netns.entered(self.fd):
            netns.set_sysctls({f"net/ipv4/conf/{UPLINK}/{k}": v for k, v in NOT_FOR_CONTAINERS.items()})
        netns.set_sysctls(
            {f"net/ipv4/conf/{self.link}/{k}": v for k, v in {"route_localnet": "1", "rp_filter": "0", "send_redirects": "0"}.items()}
        )
        if not self.aside:
            netns.set_sysctls({"net.ipv4.ip_forward": "1"})

    def _free_subnet(self) -> ipaddress.IPv4Network:
        """The first /30 from the one asked for, downwards, that nothing of the host's overlaps."""
        taken = used_networks(self.host)
        first = int(self._subnet.network_address)
        for start in range(first, first - 4 * 256, -4):
            subnet = ipaddress.IPv4Network((start, 30))
            if not any(subnet.overlaps(t) for t in taken):
                return subnet
        raise SkepError(f"no free /30 for the router's uplink at or below {self._subnet}: name another with the setting `uplink`")

    def underlay_mtu(self, address: str) -> int:
        """Of the host's interface with this address; without one, of the way to the world; 1500 where there is neither."""
        links = {link.device: link for link in self.host.links().values()}
        index = next((a.device for a in self.host.addresses() if a.address == address), 0)
        if not index:
            way = self.host.route_to("192.0.2.1")
            index = way.device if way else 0
        return links[index].mtu if index in links and links[index].name != "lo" else 1500

    def close(self) -> None:
        self._handles.close()

    def _close_descriptors(self) -> None:
        os.close(self.fd)
        os.close(self.host_fd)
        self.host_fd = self.fd = -1

    def destroy(self) -> None:
        """Everything but the sandboxes. Idempotent; needs no `open`."""
        self.close()
        if netns.pinned(self.pin):
            fd = netns.opened(self.pin)
            try:
                with netns.entered(fd), netlink.Socket() as net:
                    # a device that only goes with its namespace keeps its VNI for a while
                    delete_links(net, [link.name for link in net.links().values() if link.kind == "vxlan"])
            finally:
                os.close(fd)
        with netlink.Socket() as host:
            host.send([netlink.del_link(self.link)])
        delete_table(self.table)
        netns.remove(self.pin)


def delete_links(net: netlink.Socket, names: list[str]) -> None:
    """Several at once, as a group: one by one the kernel takes 10 to 30 ms each."""
    if len(names) > 1:
        indexes = [index for name in names if (index := net.index(name))]
        net.send([netlink.set_link(index, "group", group=LEAVING_GROUP) for index in indexes])
        net.send([netlink.del_group(LEAVING_GROUP)])
    else:
        net.send([netlink.del_link(name) for name in names])


def delete_table(table: str) -> None:
    """Our table in the thread's namespace; fine when there is none."""
    fd = netns.opened()
    try:
        handle = nft.rules(fd)
        try:
            handle.run(rules.remove(table))
        finally:
            handle.close()
    finally:
        os.close(fd)


def without_ipv6() -> None:
    """For links made from now on in the thread's namespace; loopback keeps ::1. Fine on a kernel without IPv6."""
    with suppress(Invalid):
        netns.set_sysctls({"net.ipv6.conf.default.disable_ipv6": "1"})


def used_networks(host: netlink.Socket) -> list[ipaddress.IPv4Network]:
    """What the thread's host has addresses in or routes to; broad routes (/8 and shorter, as of a VPN) do not count: ours are narrower."""
    nets = [ipaddress.IPv4Interface(f"{a.address}/{a.prefix}").network for a in host.addresses()]
    nets += [ipaddress.IPv4Network(f"{r.destination}/{r.prefix}") for r in host.routes() if r.prefix > 8 and r.kind == 1]
    return nets


def host_networks(name: str) -> list[HostNetwork]:
    """What the thread's host reaches by itself, without what the data path of this name has laid: where containers' subnets must not be."""
    with netlink.Socket() as host:
        own = host.index(f"sk{rules.tag(name, 10)}")
        found = [HostNetwork(network=ipaddress.IPv4Interface(f"{a.address}/{a.prefix}").network, connected=True) for a in host.addresses()]
        found += [
            HostNetwork(network=ipaddress.IPv4Network(f"{r.destination}/{r.prefix}"), connected=False)
            for r in host.routes()
            if r.prefix > 8 and r.kind == 1 and not (own and r.device == own and r.protocol == netlink.PROTOCOL)
        ]
    return found


def egress_ports() -> tuple[int, int]:
    """Source ports for connections that begin inside: none that the host itself picks, so that answers can be told apart."""
    low, high = (int(w) for w in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if 65535 - high >= LEAST_EGRESS_PORTS:
        return high + 1, 65535
    if low - 1 - 1024 >= LEAST_EGRESS_PORTS:
        return 1024, low - 1
    raise SkepError(f"net.ipv4.ip_local_port_range {low} {high} leaves no 1024 ports for containers: make it narrower")


def leaving_addresses(table: str, host: netlink.Socket, link: str) -> str:
    """The nft text that says with which address each of the host's interfaces sends what begins inside."""
    names = {found.device: found.name for found in host.links().values()}
    first: dict[str, str] = {}
    for a in host.addresses():
        name = names.get(a.device, "")
        if name not in ("", "lo", link) and not a.address.startswith("169.254."):
            first.setdefault(name, a.address)
    text = f"flush map ip {table} addresses\n"
    if first:
        text += f"add element ip {table} addresses {{ " + ", ".join(f'"{n}" : {a}' for n, a in sorted(first.items())) + " }\n"
    return text
