"""Network namespaces: made, pinned on a file, entered by one thread for the time of a few system calls.

Entering costs 5 us, so no helper process is needed: a socket (netlink, UDP, TCP, nft) made inside stays bound to that namespace and is used
from anywhere afterwards. `ip netns exec` is never used: it mounts /sys anew and hides the cgroups. Python 3.11 lacks os.setns: ctypes.
See docs/network.md.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from skep.errors import Invalid, SkepError

CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED, MNT_DETACH = 4096, 16384, 1 << 20, 2
NSFS_MAGIC = 0x6E736673
OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, flags: int) -> None:
    _checked(_libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None), f"mount on {target}")


def _unmount(target: str) -> None:
    _checked(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


@contextmanager
def entered(namespace: int) -> Iterator[None]:
    """Run the block inside `namespace` (an open descriptor). The thread comes back whatever happens; nothing in the block may await."""
    home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(namespace, CLONE_NEWNET), "setns")
        try:
            yield
        finally:
            # a thread that cannot come back would do every later thing in the wrong place: better no daemon than that
            if _libc.setns(home, CLONE_NEWNET):
                os.abort()
    finally:
        os.close(home)


def opened(path: str | Path = OWN) -> int:
    """A descriptor of the namespace pinned at `path`; by default of the calling thread's own. The caller closes it."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def make(path: Path) -> None:
    """Make a namespace and pin it on `path`. Raises FileExistsError when something is there."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    failed: list[BaseException] = []

    def unshare() -> None:
        # in a thread that ends here: nothing has to find its way back
        try:
            _checked(_libc.unshare(CLONE_NEWNET), "unshare")
            _mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", str(path), MS_BIND)
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=unshare, name="netns")
    thread.start()
    thread.join()
    if failed:
        path.unlink(missing_ok=True)
        raise failed[0]


def pin(namespace: int, path: Path) -> None:
    """Pin an open descriptor's namespace (again)."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    _mount(f"/proc/self/fd/{namespace}", str(path), MS_BIND)


def pinned(path: Path) -> bool:
    """Whether a namespace is pinned there (and not only a file that a crash has left)."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Unpin. The namespace goes when nothing else holds it. Idempotent."""
    while pinned(path):
        _unmount(str(path))
    path.unlink(missing_ok=True)


def share(folder: Path) -> None:
    """Make `folder` a place for pins that other mount namespaces follow (a container runtime in a mount namespace of its own sees new
    pins)."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    try:
        _mount("", str(folder), MS_SHARED | MS_REC)
    except OSError:
        # not a mount point yet
        _mount(str(folder), str(folder), MS_BIND | MS_REC)
        _mount("", str(folder), MS_SHARED | MS_REC)


def unshare(folder: Path) -> None:
    """Undo `share`; pins below go with it."""
    with suppress(OSError):
        while True:
            _unmount(str(folder))


def set_sysctls(values: Mapping[str, str]) -> None:
    """Write `net.*` sysctls of the namespace the thread is in. Dots or slashes as separators, as sysctl(8) has them."""
    for name, value in values.items():
        path = sysctl_path(name)
        try:
            with open(path, "w") as file:
                file.write(value)
        except FileNotFoundError:
            raise Invalid(f"sysctl {name}: there is no such setting in a network namespace of this kernel") from None
        except OSError as e:
            raise SkepError(f"sysctl {name}={value}: {os.strerror(e.errno or 0)}") from None


def sysctl_path(name: str) -> str:
    """The file of a `net.*` sysctl. Raises Invalid for any other: those are the host's."""
    first = next((c for c in name if c in "./"), ".")
    parts = name.replace("." if first == "." else "/", "\0").split("\0")
    if first == ".":
        parts = [p.replace("/", ".") for p in parts]
    if parts[0] != "net" or len(parts) < 3 or any(p in ("", ".", "..") or "/" in p for p in parts):
        raise Invalid(f"sysctl {name!r}: only settings below net. belong to a container's network namespace")
    return "/proc/sys/" + "/".join(parts)
