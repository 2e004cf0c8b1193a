"""What a one-machine cluster needs of the host's kernel: a wire of its own between its nodes, and ports of this host that lead to a node.

The bridge between the nodes stands in a namespace of its own, so no iptables FORWARD chain and no bridge-nf-call-iptables of the host ever
sees a frame between nodes. The host is joined to it by one pair of links. Published ports, and what the nodes ask of the world outside,
pass the host by its input and output paths, never by FORWARD (skep.datapath.rules.host_aside), so they work where that chain drops
everything, and no sysctl and no rule of anyone's is changed. Limits: docs/network.md.

Promises: names follow from the cluster's name, so `destroy` needs no state and may be repeated; `create` begins with it. All calls act on
the network namespace of the calling thread: that is "the host". Synchronous: seconds at most, used by a command.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from skep.datapath import netlink, netns, nft, rules
from skep.datapath.router import delete_table, egress_ports, leaving_addresses, used_networks, without_ipv6
from skep.errors import Invalid, NotFound, SkepError
from skep.local.layout import base_run

BRIDGE, TO_HOST = "br0", "host0"
GATEWAY, HOST = 1, 254
"""Last bytes of the addresses that the bridge's namespace and this host have in the subnet; the nodes have the others."""
PROTOCOLS = ("tcp", "udp")
_SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.default.send_redirects": "0",
}


class Underlay:
    """The wire of the cluster `name`; pins are in `run` (by default the cluster's own folder)."""

    def __init__(self, name: str, run: Path | None = None) -> None:
        self.name = name
        self.table = rules.table_name(f"cluster_{name}")
        self.link = f"skc{rules.tag(name, 10)}"
        self._run = run or Path(base_run()) / name / "net"
        self._pin = self._run / "underlay"

    def create(self, subnet: str) -> None:
        """`subnet`: a /24 as `10.210.3.0`, or with `/24`. Raises Invalid where the host uses it."""
        base = _subnet(subnet)
        self.destroy()
        with netlink.Socket() as host:
            taken = next((n for n in used_networks(host) if n.overlaps(base)), None)
            if taken is not None:
                raise Invalid(f"subnet {base}: this host uses {taken}")
            self._run.mkdir(parents=True, exist_ok=True)
            netns.make(self._pin)
            try:
                self._lay(host, base)
            except BaseException:
                self.destroy()
                raise

    def _lay(self, host: netlink.Socket, base: ipaddress.IPv4Network) -> None:
        gateway, own = str(base[GATEWAY]), str(base[HOST])
        mtu = _way_out_mtu(host)
        with self._inside() as (fd, inside):
            host.send([netlink.new_veth(self.link, peer=TO_HOST, peer_namespace=fd, mtu=mtu)])
            netns.set_sysctls({f"net/ipv4/conf/{self.link}/route_localnet": "1", f"net/ipv4/conf/{self.link}/rp_filter": "0"})
            with netns.entered(fd):
                netns.set_sysctls(_SYSCTLS)
                without_ipv6()
                if Path("/proc/sys/net/bridge").exists():
                    netns.set_sysctls({"net.bridge.bridge-nf-call-iptables": "0"})
            inside.send([netlink.set_link(1, "lo", up=True), netlink.new_bridge(BRIDGE, mtu=mtu, address=_card(gateway))])
            bridge, up = inside.index(BRIDGE), inside.index(TO_HOST)
            inside.send(
                [
                    netlink.set_link(up, TO_HOST, up=True),
                    netlink.address(bridge, gateway, 24, what=BRIDGE),
                    netlink.route(own, 32, index=up),
                    netlink.route("0.0.0.0", 0, index=up, via=own),
                ]
            )
            with netns.entered(fd):
                # nodes look for the host's address on their own wire
                netns.set_sysctls({f"net/ipv4/conf/{BRIDGE}/proxy_arp": "1", f"net/ipv4/neigh/{BRIDGE}/proxy_delay": "0"})
            index = host.index(self.link)
            host.send([netlink.address(index, own, 32, what=self.link)])
            host.send([netlink.route(gateway, 32, index=index), netlink.route(str(base[0]), 24, index=index, via=gateway, source=own)])
            low, high = egress_ports()
            _run_nft(fd, _inside_rules(self.table, str(base), gateway, own, low, high))
        with _own_namespace() as here:
            _run_nft(here, rules.host_aside(self.table, self.link, gateway) + leaving_addresses(self.table, host, self.link))

    @contextmanager
    def _inside(self) -> Iterator[tuple[int, netlink.Socket]]:
        """The bridge's namespace: a descriptor, and a socket in it."""
        if not netns.pinned(self._pin):
            raise NotFound(f"cluster {self.name} has no underlay")
        with ExitStack() as stack:
            fd = netns.opened(self._pin)
            stack.callback(os.close, fd)
            with netns.entered(fd):
                inside = stack.enter_context(netlink.Socket())
            yield fd, inside

    def node_path(self, node: str) -> Path:
        if not node or "/" in node or node in (".", "..", "underlay"):
            raise Invalid(f"node name {node!r}: must be a plain file name")
        return self._run / f"node-{node}"

    def add_node(self, node: str, address: str) -> Path:
        """A namespace on the wire: eth0 with `address`, a default route, lo. Gives back its pin; one that is there is made anew."""
        path = self.node_path(node)
        with self._inside() as (fd, inside):
            gateway = next(a for a in inside.addresses() if a.device == inside.index(BRIDGE))
            base = ipaddress.IPv4Interface(f"{gateway.address}/{gateway.prefix}").network
            if ipaddress.IPv4Address(address) not in list(base.hosts())[GATEWAY : HOST - 1]:
                raise Invalid(f"node address {address}: must be between {base[GATEWAY + 1]} and {base[HOST - 1]}")
            self.remove_node(node)
            netns.make(path)
            with ExitStack() as stack:
                node_fd = netns.opened(path)
                stack.callback(os.close, node_fd)
                with netns.entered(node_fd):
                    there = stack.enter_context(netlink.Socket())
                    without_ipv6()
                mtu = next(link.mtu for link in inside.links().values() if link.name == BRIDGE)
                link = _port(node)
                inside.send([netlink.new_veth(link, peer="eth0", peer_namespace=node_fd, peer_mac=_card(address), mtu=mtu)])
                inside.send([netlink.set_link(inside.index(link), f"{link} master {BRIDGE}", master=inside.index(BRIDGE))])
                eth0 = there.index("eth0")
                there.send([netlink.set_link(1, "lo", up=True), netlink.set_link(eth0, "eth0", up=True)])
                there.send([netlink.address(eth0, address, 24, what="eth0")])
                there.send([netlink.route("0.0.0.0", 0, index=eth0, via=gateway.address)])
        return path

    def remove_node(self, node: str) -> None:
        """Cut its wire and unpin it. Idempotent."""
        if netns.pinned(self._pin):
            with self._inside() as (_, inside):
                inside.send([netlink.del_link(_port(node))])
        netns.remove(self.node_path(node))

    def publish(self, host_port: int, node_address: str, node_port: int, proto: str = "tcp") -> None:
        """Connections to `host_port` at any address of this host reach `node_address:node_port`; published again, it moves there.

        The node sees the client's own address; for clients on this host that call 127.0.0.1 it sees this host's address on the wire.
        """
        if proto not in PROTOCOLS:
            raise Invalid(f"protocol {proto!r}: must be tcp or udp")
        key = f"{proto} . {host_port}"
        there = f"add element ip {self.table} to {{ {key} : {node_address} . {node_port} }}\n"
        with self._inside() as (fd, _):
            old = _run_nft(fd, f"list map ip {self.table} to")
            gone = f"delete element ip {self.table} to {{ {key} }}\n" if f"{key} :" in " ".join(old.split()) else ""
            _run_nft(fd, gone + there)
        with _own_namespace() as here:
            _run_nft(here, f"add element ip {self.table} pub {{ {key} }}\n")

    def unpublish(self, host_port: int, proto: str = "tcp") -> None:
        """Idempotent."""
        key = f"{proto} . {host_port}"
        with _own_namespace() as here:
            _run_nft(here, f"add element ip {self.table} pub {{ {key} }}\ndelete element ip {self.table} pub {{ {key} }}\n")
        with self._inside() as (fd, _):
            old = _run_nft(fd, f"list map ip {self.table} to")
            if f"{key} :" in " ".join(old.split()):
                _run_nft(fd, f"delete element ip {self.table} to {{ {key} }}\n")

    def refresh(self) -> None:
        """After this host's own addresses have changed (another Wi-Fi): what the nodes ask of the world leaves with the new one."""
        with netlink.Socket() as host, _own_namespace() as here:
            _run_nft(here, leaving_addresses(self.table, host, self.link))

    def destroy(self) -> None:
        """Remove everything of this cluster's wire. Idempotent, needs nothing but the name; nodes that still run lose their links."""
        if netns.pinned(self._pin):
            with self._inside() as (_, inside):
                # the pairs go at once; namespaces that a process holds stay as long as it does
                inside.send([netlink.del_link(link.name) for link in inside.links().values() if link.kind in ("veth", "bridge")])
        with netlink.Socket() as host:
            host.send([netlink.del_link(self.link)])
        delete_table(self.table)
        if self._run.is_dir():
            for pin in list(self._run.iterdir()):
                netns.remove(pin)
            shutil.rmtree(self._run)


def subnets_in_use() -> set[str]:
    """/24s between 10.210.0.0 and 10.249.255.0 that this host has an address in or a route to, each as `10.a.b.0`."""
    pool = [ipaddress.IPv4Network(f"10.{n}.0.0/16") for n in range(210, 250)]
    out: set[str] = set()
    with netlink.Socket() as host:
        for used in used_networks(host):
            if used.prefixlen >= 24:
                out.add(str(used.supernet(new_prefix=24).network_address))
                continue
            for block in pool:
                if used.overlaps(block):
                    part = used if used.prefixlen > 16 else block
                    out |= {str(n.network_address) for n in part.subnets(new_prefix=24)}
    return out


def _subnet(text: str) -> ipaddress.IPv4Network:
    try:
        base = ipaddress.IPv4Network(text if "/" in text else f"{text}/24")
    except ValueError as e:
        raise Invalid(f"subnet {text!r}: {e}") from None
    if base.prefixlen != 24:
        raise Invalid(f"subnet {text!r}: must be a /24")
    return base


def _port(node: str) -> str:
    """The name of a node's link on the bridge's side."""
    return f"n-{rules.tag(node, 12)}"


def _card(address: str) -> str:
    """The MAC address that goes with an address on the wire. A node keeps it when it is made anew, as a machine does: its neighbours need
    not find out first, which takes seconds, that the one they know is stale."""
    return "02:5b:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)


def _way_out_mtu(host: netlink.Socket) -> int:
    way = host.route_to("192.0.2.1")
    found = next((link.mtu for link in host.links().values() if way and link.device == way.device and link.name != "lo"), 1500)
    if found < 576:
        raise SkepError(f"the way out of this host has an MTU of {found}: too small for an overlay")
    return min(found, 9000)


@contextmanager
def _own_namespace() -> Iterator[int]:
    fd = netns.opened()
    try:
        yield fd
    finally:
        os.close(fd)


def _run_nft(namespace: int, script: str) -> str:
    with closing(nft.rules(namespace)) as handle:
        return handle.run(script)


def _inside_rules(table: str, subnet: str, gateway: str, host: str, low: int, high: int) -> str:
    """In the bridge's namespace: published ports to their nodes; what nodes ask of the world gets the gateway's address and a port that
    this host does not use itself. To this host they show their own addresses."""
    return f"""
table ip {table} {{
 map to {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
 chain pre {{
  type nat hook prerouting priority dstnat; policy accept;
  iifname "{TO_HOST}" ip daddr {gateway} dnat ip to meta l4proto . th dport map @to
  iifname "{TO_HOST}" ip daddr != {subnet} dnat ip to meta l4proto . th dport map @to
 }}
 chain clamp {{
  type filter hook forward priority mangle; policy accept;
  tcp flags syn tcp option maxseg size set rt mtu
 }}
 chain post {{
  type nat hook postrouting priority srcnat; policy accept;
  oifname "{TO_HOST}" ip daddr {host} accept
  oifname "{TO_HOST}" ip saddr {subnet} meta l4proto {{ tcp, udp }} snat to {gateway}:{low}-{high}
  oifname "{TO_HOST}" ip saddr {subnet} snat to {gateway}
 }}
}}
"""
