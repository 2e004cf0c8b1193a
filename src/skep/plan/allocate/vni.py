"""VXLAN network identifiers: in turn from 4096 to 2^24 - 1, a freed one comes back only after the rest was gone through."""

from __future__ import annotations

from collections.abc import Container, Mapping

from skep.model.defaults import FIRST_VNI

OPTION = "com.docker.network.driver.overlay.vxlanid_list"
LAST_VNI = (1 << 24) - 1


def next_vni(cursor: int, used: Container[int]) -> int | None:
    """`cursor` is the last one given, 0 = none yet."""
    vni = max(cursor, FIRST_VNI - 1)
    for _ in range(LAST_VNI - FIRST_VNI + 1):
        vni = vni + 1 if vni < LAST_VNI else FIRST_VNI
        if vni not in used:
            return vni
    return None


def asked_vni(options: Mapping[str, str]) -> int | None:
    """The one the user put into the driver's options; None when there is none that can be used: numbers below 4096 name networks of
    single nodes in the router."""
    text = options.get(OPTION, "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 and FIRST_VNI <= int(text) <= LAST_VNI else None
