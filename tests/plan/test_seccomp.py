"""The seccomp profile: conversion by table, and, where the library is there, the compiled program run over whole system calls."""

from __future__ import annotations

import ctypes
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.engine.oci import bpf
from skep.engine.oci.runtime import PROFILE
from skep.engine.oci.seccomp import oci_profile, tightened
from skep.engine.oci.spec import CAPABILITIES
from skep.errors import Invalid

SHIPPED = json.loads(PROFILE.read_bytes())
X86_64 = 0xC000003E
ALLOW = 0x7FFF0000
ERRNO = 0x00050000


def names(profile: dict[str, Any], action: str = "SCMP_ACT_ALLOW", plain: bool = True) -> set[str]:
    return {
        name for rule in profile["syscalls"] if rule["action"] == action and (not plain or "args" not in rule) for name in rule["names"]
    }


def docker(*more: str, machine: str = "x86_64") -> dict[str, Any]:
    return oci_profile(tightened(SHIPPED), {*CAPABILITIES, *more}, machine, "6.1.0-13-amd64")


def test_rules_depend_on_capabilities() -> None:
    for call, capability in (
        ("mount", "CAP_SYS_ADMIN"),
        ("unshare", "CAP_SYS_ADMIN"),
        ("bpf", "CAP_SYS_ADMIN"),
        ("reboot", "CAP_SYS_BOOT"),
    ):
        assert call not in names(docker()) and call in names(docker(), "SCMP_ACT_ERRNO"), call
        assert call in names(docker(capability)), call
    assert "chroot" in names(docker()) and "chroot" not in names(oci_profile(tightened(SHIPPED), (), "x86_64", "6.1"))


def test_nothing_is_allowed_and_denied() -> None:
    for more in ((), ("CAP_SYS_ADMIN",), ("CAP_SYS_BOOT", "CAP_SYS_ADMIN")):
        made = docker(*more)
        assert not names(made) & names(made, "SCMP_ACT_ERRNO")


def test_every_call_an_ordinary_program_makes_is_there() -> None:
    ordinary = [
        "read",
        "write",
        "openat",
        "close",
        "mmap",
        "execve",
        "fork",
        "vfork",
        "futex",
        "epoll_wait",
        "socket",
        "connect",
        "accept4",
        "exit_group",
        "wait4",
        "kill",
        "nanosleep",
    ]
    assert set(ordinary) <= names(docker())
    assert {"keyctl", "add_key", "pivot_root"} <= names(docker("CAP_SYS_ADMIN"), "SCMP_ACT_ERRNO")
    assert docker()["defaultErrnoRet"] == 38


def test_architectures() -> None:
    assert docker()["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert docker(machine="aarch64")["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert "arch_prctl" in names(docker()) and "arch_prctl" not in names(docker(machine="aarch64"))
    assert "architectures" not in oci_profile({"defaultAction": "SCMP_ACT_ALLOW"}, (), "x86_64", "6.1")


def test_kernel_versions_and_old_forms() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"name": "read", "action": "SCMP_ACT_ALLOW", "args": None, "includes": {"minKernel": "4.8"}},
            {"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.10"}},
            {"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2, "excludes": {"minKernel": "5.0"}},
            {"names": ["close"], "action": "SCMP_ACT_ALLOW", "errnoRet": 2, "comment": "x", "excludes": {"arches": ["arm64"]}},
        ],
    }
    made = oci_profile(profile, (), "x86_64", "4.19.0-1")
    assert made == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2},
            {"names": ["close"], "action": "SCMP_ACT_ALLOW"},
        ],
    }
    assert names(oci_profile(profile, (), "aarch64", "5.11")) == {"read", "write"}


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_no_profile_is_refused_in_one_line(rubbish: Any) -> None:
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rubbish]} if not isinstance(rubbish, dict) else rubbish
    try:
        oci_profile(profile, (), "x86_64", "6.1")
    except Invalid as error:
        assert "\n" not in error.text


def run(program: bytes, number: int, args: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """What the kernel would answer: a small interpreter of classic BPF over seccomp_data."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *(args + (0,) * (6 - len(args))))
    accumulator, index, at = 0, 0, 0
    code = [struct.unpack_from("<HBBI", program, offset) for offset in range(0, len(program), 8)]
    while True:
        op, yes, no, k = code[at]
        at += 1
        match op:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x06:
                return k
            case 0x05:
                at += k
            case 0x15:
                at += yes if accumulator == k else no
            case 0x25:
                at += yes if accumulator > k else no
            case 0x35:
                at += yes if accumulator >= k else no
            case 0x45:
                at += yes if accumulator & k else no
            case 0x54:
                accumulator &= k
            case _:
                raise AssertionError(f"instruction {op:#x} at {at - 1}, index {index}")


def library() -> ctypes.CDLL | None:
    try:
        return bpf.library()
    except OSError:
        return None


@pytest.mark.skipif(library() is None or library().seccomp_arch_native() != X86_64, reason="needs libseccomp on x86-64")  # type: ignore[union-attr]
def test_the_compiled_program_does_what_the_profile_says() -> None:
    """Each call of the table of this machine, by number."""
    lib = library()
    assert lib is not None
    for more in ((), ("CAP_SYS_ADMIN",)):
        made = docker(*more)
        program = bpf.compile_filter(made, lib)
        allowed, denied = names(made), names(made, "SCMP_ACT_ERRNO")
        checked = 0
        for name in sorted(allowed | denied):
            number = lib.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue
            checked += 1
            assert run(program, number) == (ALLOW if name in allowed else ERRNO | (38 if name == "clone3" else 1)), name
        assert checked > 300
        assert run(program, 100_000) == ERRNO | 38, "what nobody knows does not exist"
        assert run(program, 0, arch=0x12345) == 0, "a foreign architecture is killed"
    plain = bpf.compile_filter(docker(), lib)
    assert run(plain, 56, (0x11,)) == ALLOW
    for flag in (0x10000000, 0x20000, 0x40000000):
        assert run(plain, 56, (flag | 0x11,)) != ALLOW, "no new namespaces by clone"
    assert run(plain, 135, (0xFFFFFFFF,)) == ALLOW and run(plain, 135, (5,)) != ALLOW, "personality by its argument"


@pytest.mark.skipif(library() is None, reason="needs libseccomp")
def test_what_cannot_be_compiled_says_so() -> None:
    for profile in (
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]},
    ):
        with pytest.raises(bpf.Unsupported):
            bpf.compile_filter(profile)
