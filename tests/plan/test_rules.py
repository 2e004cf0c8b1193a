"""The fixed rules: what every packet of an open connection passes is little, and begins with what costs little."""

from __future__ import annotations

import re

from skep.datapath import rules

ROUTER = rules.router("skep_x", "172.31.255.2", "172.31.255.1", None)
HOST = rules.host("skep_x", "skabc", "172.31.255.2")
CHEAP = ("ct ", "tcp flags ", "oifgroup 1 ", "jump user")
"""Conntrack's word, a number of the packet, a number of the device; and the user's chain, where a rule is the user's own affair."""


def body(text: str, chain: str) -> list[str]:
    found = re.search(rf"^ chain {chain} {{\n(.*?)^ }}$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return [rule.strip() for rule in found[1].splitlines()]


def test_what_an_open_connection_passes_in_the_router_begins_with_what_costs_little() -> None:
    """Sets and names of devices cost 100 ns each, and would be asked about every packet: they come behind a word that most fail."""
    forward = body(ROUTER, "forward")
    open_ones = forward.index("ct state established,related accept")
    assert open_ones <= 4, "nothing of what only new connections need comes before"
    for rule in body(ROUTER, "mangle") + forward[: open_ones + 1]:
        assert rule.startswith(CHEAP), rule
    assert len(body(ROUTER, "mangle")) == 2


def test_what_is_for_the_host_itself_as_all_vxlan_is_passes_no_filter_of_ours() -> None:
    """Chains of type nat see the first packet of a connection alone."""
    assert re.findall(r"type (\w+) hook (\w+)", HOST) == [
        ("filter", "forward"),
        ("nat", "prerouting"),
        ("nat", "output"),
        ("nat", "postrouting"),
    ]
