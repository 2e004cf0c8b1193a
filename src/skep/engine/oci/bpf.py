"""A seccomp profile compiled once. libseccomp needs 20 ms of CPU for Docker's profile, more than half of what starting a container costs;
crun takes the finished program from an annotation (`run.oci.seccomp_bpf_data`) instead. See docs/engine.md.

Through ctypes on libseccomp.so.2, which crun and runc are linked against. Blocks: call it from a worker thread.
"""

from __future__ import annotations

import base64
import ctypes
import os
from collections.abc import Mapping
from typing import Any

_ARCHES = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x16,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_EPERM = 1
_EEXIST = 17


class _Arg(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class Unsupported(Exception):
    """The profile asks for something that is not compiled here; the runtime may still do it from the JSON."""


def _action(name: str, errno: int | None) -> int:
    number = _EPERM if errno is None else errno
    match name:
        case "SCMP_ACT_ALLOW":
            return 0x7FFF0000
        case "SCMP_ACT_ERRNO":
            return 0x00050000 | (number & 0xFFFF)
        case "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD":
            return 0
        case "SCMP_ACT_KILL_PROCESS":
            return 0x80000000
        case "SCMP_ACT_LOG":
            return 0x7FFC0000
        case "SCMP_ACT_TRAP":
            return 0x00030000
    raise Unsupported(f"seccomp action {name}")


def library() -> ctypes.CDLL:
    """Raises OSError where libseccomp is missing."""
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_release.argtypes = [ctypes.c_void_p]
    lib.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.seccomp_arch_native.restype = ctypes.c_uint32
    lib.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    lib.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Arg)]
    lib.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return lib


def compile_filter(profile: Mapping[str, Any], lib: ctypes.CDLL | None = None) -> bytes:
    """The BPF program of an OCI `linux.seccomp`. Raises Unsupported (flags, notify, tracing) or OSError."""
    if profile.get("flags"):
        raise Unsupported("seccomp flags")
    lib = lib or library()
    context = lib.seccomp_init(_action(profile["defaultAction"], profile.get("defaultErrnoRet")))
    if not context:
        raise Unsupported(f"seccomp default action {profile['defaultAction']}")
    try:
        native = lib.seccomp_arch_native()
        for name in profile.get("architectures") or ():
            token = _ARCHES.get(name)
            if token is None:
                raise Unsupported(f"seccomp architecture {name}")
            if token != native:
                _check(lib.seccomp_arch_add(context, token), name, ok=_EEXIST)
        for rule in profile.get("syscalls") or ():
            _add(lib, context, rule, profile)
        return _export(lib, context)
    finally:
        lib.seccomp_release(context)


def _add(lib: ctypes.CDLL, context: int, rule: Mapping[str, Any], profile: Mapping[str, Any]) -> None:
    action = _action(rule["action"], rule.get("errnoRet"))
    if action == _action(profile["defaultAction"], profile.get("defaultErrnoRet")):
        return  # libseccomp refuses a rule that says what holds anyway
    args = rule.get("args") or ()
    array = (_Arg * max(len(args), 1))()
    indexes = [arg["index"] for arg in args]
    for slot, arg in zip(array, args, strict=False):
        slot.arg, slot.op, slot.a, slot.b = arg["index"], _OPERATORS[arg["op"]], arg["value"], arg["valueTwo"]
    for name in rule["names"]:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            continue  # not known here: the default action holds
        if len(set(indexes)) == len(indexes):
            _check(lib.seccomp_rule_add_array(context, action, number, len(args), array), name)
        else:  # several conditions on one argument: any of them, as runc reads it
            for slot in array:
                one = (_Arg * 1)(slot)
                _check(lib.seccomp_rule_add_array(context, action, number, 1, one), name)


def _check(code: int, what: str, ok: int = 0) -> None:
    if code < 0 and -code not in (ok, _EEXIST):
        raise OSError(-code, os.strerror(-code), what)


def _export(lib: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(lib.seccomp_export_bpf(context, fd), "export")
        size = os.lseek(fd, 0, os.SEEK_END)
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


def annotation(program: bytes) -> str:
    """The value of `run.oci.seccomp_bpf_data`."""
    return base64.b64encode(program).decode()
