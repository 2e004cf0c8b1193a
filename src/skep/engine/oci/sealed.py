"""The runtime's program, run from a copy in our memory that nobody can change.

crun and runc trust no other file: lest a container overwrite it through /proc/self/exe (CVE-2019-5736), each makes a copy of itself and
runs that, at every call. A sealed one they take as it is, which saves half of what starting the program costs, and is as safe: the
seals are the same. A newer program on disk is taken with the next start of ours. See docs/engine.md.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess

import msgspec

from skep.engine.oci.runtime import Runtime

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_TIMEOUT = 30.0


def seal(chosen: Runtime) -> tuple[Runtime, int]:
    """(the same, run from a sealed copy; the copy's descriptor, which stays open as long as it is used). (chosen, -1) where this host does
    not run programs from memory."""
    fd = -1
    try:
        fd = os.memfd_create(chosen.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(chosen.path, "rb") as source, open(fd, "wb", closefd=False) as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        path = f"/proc/{os.getpid()}/fd/{fd}"
        subprocess.run([path, "--version"], capture_output=True, timeout=_TIMEOUT, check=True)
        return msgspec.structs.replace(chosen, sealed=path), fd
    except (OSError, subprocess.SubprocessError):
        if fd >= 0:
            os.close(fd)
        return chosen, -1
