"""The fixed part of our nft tables, as texts. Pure. The changing part (elements, chains of published ports) comes from skep.datapath.diff.

One table per namespace, of our name; nothing else is read or written. Each text can be run again over what is there: it empties and fills
our own chains, leaves sets, maps and the chain `user` alone, and is one transaction. See docs/network.md for the packet's way through it.

What a packet of an open connection passes (`mangle`, and `forward` as far as `established`) costs throughput: there each rule begins with
what is read in a few nanoseconds (conntrack's word, a number) and fails for nearly all of them; sets and names come behind.
"""

from __future__ import annotations

import hashlib
import re

from skep.datapath.facts import UPLINK_GROUP

UPLINK = "up0"
"""The uplink's name inside the router."""
BRIDGES = "16-4095"
"""Groups of this node's own networks."""
EGRESS_TCP, EGRESS_UDP, EGRESS_PING = "1d", "5m", "30s"


def table_name(name: str) -> str:
    """A name that nft accepts, different for different names."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return f"skep_{plain}" if plain == name and len(name) < 32 else f"skep_{plain[:20]}_{tag(name, 8)}"


def tag(text: str, length: int) -> str:
    """Letters and digits that stand for `text`: 5 bits each."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    return "".join("0123456789abcdefghijklmnopqrstuv"[number >> 5 * i & 31] for i in range(length))


def marks(body: tuple[str, ...]) -> tuple[str, ...]:
    """A comment for each rule of a chain's body, different for different bodies: by them a chain is known again without reading its rules'
    meaning."""
    whole = tag("\n".join(body), 12)
    return tuple(f"{whole}.{i}" for i in range(len(body)))


def router(table: str, address: str, near: str, egress_ports: tuple[int, int] | None) -> str:
    """In the router namespace. `near`: the host's end of the uplink. `egress_ports`: the host rewrites our address statelessly, so egress
    must keep to these source ports. One rule set, read from top to bottom, so in one piece."""
    if egress_ports is None:
        egress = f'  oifname "{UPLINK}" masquerade'
    else:
        egress = f"""  oifname "{UPLINK}" meta l4proto {{ tcp, udp }} snat to {address}:{egress_ports[0]}-{egress_ports[1]}
  oifname "{UPLINK}" snat to {address}"""
    return f"""
table ip {table} {{
 set samenet {{ type devgroup . devgroup; }}
 set egress {{ type devgroup; }}
 set ovl {{ type ipv4_addr; flags interval; }}
 set mesh {{ type ifname; }}
 set dead {{ type ipv4_addr; flags timeout; timeout 10m; }}
 map ways {{ type ether_addr : mark; }}
 map pub {{ type inet_proto . inet_service : verdict; }}
 map hostpub {{ type inet_proto . inet_service : verdict; }}
 set own {{ type devgroup . ipv4_addr; }}
 map vip {{ type devgroup . ipv4_addr : verdict; }}
 map self {{ type ipv4_addr . ipv4_addr : ipv4_addr; }}
 set bridges {{ type ipv4_addr; flags interval; }}
 map gateways {{ type ipv4_addr : ipv4_addr; flags interval; }}
 set asis {{ type ipv4_addr; flags interval; }}
 set here {{ type ipv4_addr; }}
 map hostat {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
 set open {{ type ipv4_addr . inet_proto . inet_service; }}
 chain user {{ }}
 chain ports {{ }}
}}
{_fresh(table, "mangle", "type filter hook prerouting priority mangle; policy accept;")}
{_fresh(table, "pre", "type nat hook prerouting priority dstnat; policy accept;")}
{_fresh(table, "input", "type filter hook input priority filter; policy accept;")}
{_fresh(table, "forward", "type filter hook forward priority filter; policy drop;")}
{_fresh(table, "post", "type nat hook postrouting priority srcnat; policy accept;")}
{_fresh(table, "uplink")}
{_fresh(table, "bridged")}
table ip {table} {{
 chain mangle {{
  ct mark != 0 ct direction reply iifname != @mesh iifgroup != {UPLINK_GROUP} meta mark set ct mark
  ct state new iifname @mesh ip saddr != @ovl ip saddr != 169.254.0.0/16 ct mark set ether saddr map @ways
 }}
 chain pre {{
  iifname "{UPLINK}" goto uplink
  iifgroup {BRIDGES} jump bridged
  meta l4proto {{ tcp, udp, sctp }} meta iifgroup . ip daddr vmap @vip
 }}
 chain uplink {{
  ip daddr . meta l4proto . th dport vmap @hostat
  ip daddr . meta l4proto . th dport @open accept
  ip daddr @bridges meta iifgroup . ip daddr != @own accept
  meta l4proto . th dport vmap @hostpub
  meta l4proto . th dport vmap @pub
 }}
 chain bridged {{
  ip daddr . meta l4proto . th dport vmap @hostat
  ip daddr @here meta l4proto . th dport vmap @hostpub
  meta iifgroup . ip daddr != @own return
  meta l4proto . th dport vmap @hostpub
  meta l4proto {{ tcp, udp, sctp }} dnat to {near}
 }}
 chain input {{
  iifname "lo" accept
  ip daddr @ovl meta iifgroup . ip daddr != @own drop
  ip daddr @bridges meta iifgroup . ip daddr != @own drop
  ct direction original meta l4proto tcp reject with tcp reset
  ct direction original meta l4proto udp reject with icmp port-unreachable
 }}
 chain forward {{
  tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
  oifgroup {UPLINK_GROUP} ip daddr @dead meta l4proto tcp reject with tcp reset
  jump user
  ct state invalid oifgroup {UPLINK_GROUP} drop
  ct state established,related accept
  meta iifgroup . meta oifgroup @samenet accept
  iifname "{UPLINK}" ct status dnat accept
  iifname "{UPLINK}" ip saddr {near} oifgroup {BRIDGES} accept
  iifname "{UPLINK}" ip daddr . meta l4proto . th dport @open accept
  iifgroup {BRIDGES} oifname "{UPLINK}" ip daddr {near} ct status dnat accept
  iifgroup {BRIDGES} iifgroup @egress oifname != "{UPLINK}" ct status dnat accept
  oifname "{UPLINK}" ip daddr @bridges reject with icmp type host-unreachable
  oifname "{UPLINK}" ip daddr @ovl reject with icmp type host-unreachable
  iifgroup @egress oifname "{UPLINK}" accept
 }}
 chain post {{
  iifgroup {BRIDGES} oifname "{UPLINK}" ip daddr {near} accept
  oifname "{UPLINK}" ip saddr @asis accept
{egress}
  ct status dnat snat to ip saddr . ip daddr map @self
  ip saddr {near} snat to ip daddr map @gateways
  oifgroup {BRIDGES} accept
  ct status dnat ip saddr != @ovl meta l4proto {{ tcp, udp }} goto ports
 }}
}}
"""


def _fresh(table: str, chain: str, hook: str = "") -> str:
    return f"add chain ip {table} {chain}" + (f" {{ {hook} }}" if hook else "") + f"\nflush chain ip {table} {chain}"


_BOUND = """ set guard { type ipv4_addr; flags interval; }
 set atpub { type ipv4_addr . inet_proto . inet_service; }
 map at { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
"""
"""In the host's namespace: what nobody but the host itself sends to; ports at one of its addresses."""
_AT = "meta l4proto { tcp, udp, sctp } dnat ip to ip daddr . meta l4proto . th dport map @at"


def host(table: str, link: str, router_address: str) -> str:
    """In the host's namespace, through its own forwarding: recipe D3.

    `strangers` is passed at forwarding, so not by what is for the host itself, as all VXLAN is; what counts is the address that was asked
    for. An earlier version had it at prerouting (`guarded`): that goes.
    """
    return f"""
table ip {table} {{
 set pub {{ type inet_proto . inet_service; }}
{_BOUND}}}
{_fresh(table, "guarded")}
delete chain ip {table} guarded
{_fresh(table, "strangers", "type filter hook forward priority mangle; policy accept;")}
{_fresh(table, "pre", "type nat hook prerouting priority dstnat; policy accept;")}
{_fresh(table, "out", "type nat hook output priority -100; policy accept;")}
{_fresh(table, "post", "type nat hook postrouting priority srcnat; policy accept;")}
table ip {table} {{
 chain strangers {{
  ct state new iifname != {{ "{link}", "lo" }} ct original ip daddr @guard drop
  ct state invalid,untracked iifname != {{ "{link}", "lo" }} ip daddr @guard drop
 }}
 chain pre {{
  {_AT}
  fib daddr type local meta l4proto . th dport @pub dnat to {router_address}
 }}
 chain out {{
  {_AT}
  fib daddr type local meta l4proto . th dport @pub dnat to {router_address}
 }}
 chain post {{
  oifname "{link}" ip saddr 127.0.0.0/8 masquerade
  iifname "{link}" oifname "{link}" masquerade
  iifname "{link}" ip saddr {router_address} masquerade
 }}
}}
"""


def host_aside(table: str, link: str, inner: str) -> str:
    """In the host's namespace, past its forwarding: no FORWARD chain, no conntrack, no sysctl of the host takes part.

    `dup` sends a copy by the host's own output path, and the original is dropped; so a packet of a published port goes to `inner` (the
    address at the other end of `link`) as it is, and its answer goes out as it is. Connections that begin inside come with the source
    `inner`, get the address of the interface they leave by (`addresses`), and their answers are known by `out`. Both rewrite one address,
    no port.
    """
    flow = "ip daddr . meta l4proto . th dport . th sport"
    answer = "ip saddr . meta l4proto . th sport . th dport"
    aside = f'dup to {inner} device "{link}" drop'
    return f"""
table ip {table} {{
 set pub {{ type inet_proto . inet_service; }}
{_BOUND} set out {{ type ipv4_addr . inet_proto . inet_service . inet_service; flags dynamic,timeout; size 65535; timeout 5m; }}
 set pings {{ typeof ip daddr . icmp id; flags dynamic,timeout; size 4096; timeout 30s; }}
 map addresses {{ type ifname : ipv4_addr; }}
}}
{_fresh(table, "aside", "type filter hook prerouting priority raw; policy accept;")}
{_fresh(table, "leave", "type filter hook postrouting priority srcnat; policy accept;")}
{_fresh(table, "out", "type nat hook output priority -100; policy accept;")}
{_fresh(table, "post", "type nat hook postrouting priority srcnat; policy accept;")}
add chain ip {table} begin
flush chain ip {table} begin
table ip {table} {{
 chain begin {{
  meta l4proto tcp update @out {{ {flow} timeout {EGRESS_TCP} }}
  meta l4proto udp update @out {{ {flow} timeout {EGRESS_UDP} }}
  icmp type echo-request update @pings {{ ip daddr . icmp id timeout {EGRESS_PING} }}
  dup to ip daddr drop
 }}
 chain aside {{
  iifname "{link}" fib saddr type local meta l4proto . th sport @pub dup to ip daddr drop
  iifname "{link}" ip saddr . meta l4proto . th sport @atpub dup to ip daddr drop
  iifname "{link}" ip saddr {inner} fib daddr type unicast meta l4proto {{ tcp, udp, icmp }} goto begin
  iifname {{ "{link}", "lo" }} accept
  ip daddr @guard drop
  fib daddr type local meta l4proto . th dport @pub {aside}
  ip daddr . meta l4proto . th dport @atpub {aside}
  fib daddr type local icmp type echo-reply ip saddr . icmp id @pings ip daddr set {inner} {aside}
  fib daddr type local {answer} @out ip daddr set {inner} {aside}
 }}
 chain leave {{ ip saddr {inner} ip saddr set oifname map @addresses; }}
 chain out {{
  {_AT}
  fib daddr type local meta l4proto . th dport @pub dnat to {inner}
 }}
 chain post {{ oifname "{link}" ip saddr 127.0.0.0/8 masquerade; }}
}}
"""


def remove(table: str) -> str:
    return f"table ip {table}\ndelete table ip {table}\n"
