"""Which OCI runtime runs the containers here, found by trying it once at start.

crun with a compiled seccomp filter starts a container in a sixth of runc's time, so it comes first: as it is where it works, else in a
private view of the cgroup tree. crun 1.8 refuses a hybrid host (v1 controllers and an empty v2 tree at `unified`); the view is a pinned
mount namespace whose /sys/fs/cgroup has no `unified`, a slave of ours, which only conmon and crun enter. Else runc. See docs/engine.md.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import select
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from skep.engine.oci import bpf, kernel, seccomp
from skep.errors import Unavailable

PROFILE = Path(__file__).with_name("seccomp.json")
_TIMEOUT = 30.0


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime chosen. `namespace`: pin of the mount namespace it runs in; empty: ours."""

    name: str
    path: str
    version: str
    why: str
    namespace: str = ""
    compiled: bool = False
    """Takes the seccomp filter as a compiled program."""
    direct: bool = False
    """A created container is let go through its FIFO, without a process of the runtime (`let_go`)."""
    sealed: str = ""
    """What is run in the place of `path` (sealed.py)."""

    @property
    def program(self) -> str:
        return self.sealed or self.path

    def command(self, state: Path) -> list[str]:
        return [self.program, *self.options(state)]

    def options(self, state: Path) -> list[str]:
        return ["--root", str(state), *(["--cgroup-manager=cgroupfs"] if self.name == "crun" else [])]


def hybrid(root: str = "/sys/fs/cgroup") -> bool:
    """v1 controllers with a v2 tree beside them at `unified`."""
    return os.path.isdir(f"{root}/unified") and not os.path.exists(f"{root}/cgroup.controllers")


def cgroup2(root: str = "/sys/fs/cgroup") -> bool:
    return os.path.exists(f"{root}/cgroup.controllers")


def choose(wanted: str, run_root: Path, cgroup_parent: str) -> Runtime:
    """Blocks (about 50 ms; 1 ms when a former start on this boot has left its finding). Raises Unavailable when nothing runs here.

    `wanted`: auto, crun or runc.
    """
    known = run_root / "runtime.json"
    key = _fingerprint(wanted)
    found = _remembered(known, key)
    if found is not None:
        return found
    chosen = _try_all(wanted, run_root, cgroup_parent)
    temporary = known.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode({"key": key, "runtime": chosen}))
    temporary.rename(known)
    return chosen


def _fingerprint(wanted: str) -> str:
    parts = [wanted, kernel.boot_id(), str(os.stat("/sys/fs/cgroup").st_ino)]
    for name in ("crun", "runc"):
        path = shutil.which(name)
        if path:
            status = os.stat(path)
            parts.append(f"{path}:{status.st_size}:{status.st_mtime_ns}")
    return " ".join(parts)


class _Remembered(msgspec.Struct):
    key: str
    runtime: Runtime


def _remembered(file: Path, key: str) -> Runtime | None:
    try:
        known = msgspec.json.decode(file.read_bytes(), type=_Remembered)
    except (OSError, msgspec.MsgspecError):
        return None
    if known.key != key or (known.runtime.namespace and not _pinned(known.runtime.namespace)):
        return None
    return known.runtime


def _try_all(wanted: str, run_root: Path, cgroup_parent: str) -> Runtime:
    refused: list[str] = []
    crun, runc = shutil.which("crun"), shutil.which("runc")
    if wanted in ("auto", "crun"):
        if crun is None:
            refused.append("crun is not installed")
        else:
            chosen = _try_crun(crun, run_root, cgroup_parent, refused)
            if chosen is not None:
                return chosen
    if wanted in ("auto", "runc"):
        if runc is None:
            refused.append("runc is not installed")
        else:
            why = "asked for" if wanted == "runc" else "; ".join(refused)
            chosen = Runtime(name="runc", path=runc, version=_version(runc), why=why)
            error = _probe(chosen, run_root, cgroup_parent)
            if not error:
                return _direct(chosen, run_root, cgroup_parent)
            refused.append(f"runc: {error}")
    raise Unavailable(f"no container runtime works on this host: {'; '.join(refused) or f'unknown runtime {wanted}'}")


def _try_crun(path: str, run_root: Path, cgroup_parent: str, refused: list[str]) -> Runtime | None:
    version = _version(path)
    compiled = True
    try:
        bpf.library()
    except OSError:
        compiled = False
    plain = Runtime(name="crun", path=path, version=version, why="works as it is", compiled=compiled)
    error = _probe(plain, run_root, cgroup_parent)
    if not error:
        return _direct(plain, run_root, cgroup_parent)
    refused.append(f"crun: {error}")
    if not hybrid():
        return None
    try:
        pin = prepare_view(run_root)
    except OSError as problem:
        refused.append(f"crun in a private cgroup view: {problem}")
        return None
    inside = msgspec.structs.replace(plain, namespace=pin, why=f"in a private view of the hybrid cgroup tree ({error})")
    error = _probe(inside, run_root, cgroup_parent)
    if not error:
        return _direct(inside, run_root, cgroup_parent)
    refused.append(f"crun in a private cgroup view: {error}")
    release_view(run_root)
    return None


def _direct(chosen: Runtime, run_root: Path, cgroup_parent: str) -> Runtime:
    """The same runtime, letting containers go by itself if that works as well."""
    direct = msgspec.structs.replace(chosen, direct=True)
    return chosen if _probe(direct, run_root, cgroup_parent) else direct


def let_go(name: str, state: Path, id: str, pid: int, timeout: float = 10.0) -> bool:
    """What `start` does, without its process: a created container waits at the FIFO `exec.fifo` in the runtime's state, crun's to read a
    byte, runc's to write one; with the FIFO gone it counts as running. False: it does not look as it should, let the runtime do it.
    """
    fifo = state / id / "exec.fifo"
    try:
        fd = os.open(fifo, (os.O_WRONLY if name == "crun" else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if name == "crun":
            fifo.unlink()
            return os.write(fd, b"\0") == 1
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            poll.poll(100)
            try:
                if os.read(fd, 64):
                    fifo.unlink()
                    return True
            except BlockingIOError:
                continue
            if not os.path.exists(f"/proc/{pid}"):
                return False
            time.sleep(0.001)  # end of file: it has not opened its end yet
        return False
    finally:
        os.close(fd)


def _version(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    first = (done.stdout or done.stderr).splitlines()[:1]
    return first[0].split()[-1] if first else "unknown"


# the private cgroup view


def _pinned(pin: str) -> bool:
    """The pin is there and is a namespace, not the bare file under it."""
    return any(point.path == os.path.realpath(pin) and point.kind == "nsfs" for point in kernel.mounts())


def prepare_view(run_root: Path) -> str:
    """Path of the pinned mount namespace; made if it is not there. The pin lies on a private mount, else the kernel refuses it."""
    folder = run_root / "ns"
    pin = folder / "mnt"
    if _pinned(str(pin)):
        return str(pin)
    release_view(run_root)
    folder.mkdir(parents=True, exist_ok=True)
    kernel.mount("tmpfs", str(folder), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, "size=64k,mode=700")
    kernel.mount("", str(folder), flags=kernel.MS_PRIVATE)
    pin.touch()
    view = folder / "cgroup"
    view.mkdir()
    # A namespace may be pinned only in one that was made before it, and recent kernels hand out the ids that tell before from after in
    # batches per processor: one made on another processor may look older than ours. One of the processors always gives a later id.
    for processor in sorted(os.sched_getaffinity(0)):
        try:
            _pin_view(str(view), str(pin), processor)
            return str(pin)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            refused = error
    raise refused


def _pin_view(view: str, pin: str, processor: int) -> None:
    ready, done = threading.Event(), threading.Event()
    outcome: list[Exception | int] = []

    def enter() -> None:
        try:
            os.sched_setaffinity(0, {processor})
            kernel.unshare(kernel.CLONE_NEWNS)
            _hide_unified(view)
            outcome.append(threading.get_native_id())
        except Exception as error:
            outcome.append(error)
        ready.set()
        done.wait()

    thread = threading.Thread(target=enter, name="skep-cgroup-view")
    thread.start()
    try:
        ready.wait()
        made = outcome[0]
        if isinstance(made, Exception):
            raise made
        kernel.mount(f"/proc/self/task/{made}/ns/mnt", pin, flags=kernel.MS_BIND)
    finally:
        done.set()
        thread.join()


def _hide_unified(view: str) -> None:
    """Unmounting `unified` alone will not do: crun would leave directories on the tmpfs under it that nobody can remove."""
    root = "/sys/fs/cgroup"
    kernel.mount("", "/", flags=kernel.MS_SLAVE | kernel.MS_REC)
    kernel.mount("tmpfs", view, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, "mode=755")
    for entry in sorted(os.listdir(root)):
        source, target = f"{root}/{entry}", f"{view}/{entry}"
        if entry == "unified":
            continue
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.ismount(source):
            os.mkdir(target)
            kernel.mount(source, target, flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.umount(f"{root}/unified")
    kernel.mount(view, root, flags=kernel.MS_BIND | kernel.MS_REC)


def release_view(run_root: Path) -> None:
    """Unpin; the namespace goes when the last process in it has gone."""
    folder = run_root / "ns"
    kernel.umount(str(folder / "mnt"))
    if any(point.path == os.path.realpath(folder) for point in kernel.mounts()):
        kernel.umount(str(folder))


def enter(namespace: str) -> None:
    """Put the calling thread, for good, where the runtime runs; what it spawns from then on is there too."""
    kernel.unshare(kernel.CLONE_FS)
    if namespace:
        kernel.setns(namespace, kernel.CLONE_NEWNS)


# the probe


def _probe(runtime: Runtime, run_root: Path, cgroup_parent: str) -> str:
    """Run one container the way all will be run. Returns what is wrong, in one line; empty: nothing."""
    bundle = run_root / f"probe-{os.getpid()}"
    shutil.rmtree(bundle, ignore_errors=True)
    try:
        spec = _probe_spec(runtime, bundle, f"{cgroup_parent.rstrip('/')}/probe-{os.getpid()}")
        (bundle / "config.json").write_text(json.dumps(spec))
        return _run_probe(runtime, bundle)
    finally:
        shutil.rmtree(bundle, ignore_errors=True)


def _run_probe(runtime: Runtime, bundle: Path) -> str:
    base = runtime.command(bundle / "state")
    name = bundle.name
    result: list[str] = []

    def work() -> None:
        try:
            enter(runtime.namespace)
            output, error = _create_and_start(runtime, bundle, base, name)
            result.append(error or ("" if "Seccomp:\t2" in output else "the seccomp filter was not applied"))
            subprocess.run([*base, "delete", "--force", name], capture_output=True, timeout=_TIMEOUT, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            result.append(str(error))

    thread = threading.Thread(target=work, name="skep-runtime-probe")
    thread.start()
    thread.join()
    return result[0]


def _create_and_start(runtime: Runtime, bundle: Path, base: list[str], name: str) -> tuple[str, str]:
    """(what the container said, what is wrong)."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, encoding="utf-8", errors="replace") as output, open(bundle / "errors", "w+", encoding="utf-8") as errors:
        create = [*base, "create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid"), name]
        try:
            done = subprocess.run(create, stdin=subprocess.DEVNULL, stdout=writer, stderr=errors, timeout=_TIMEOUT, check=False)
        finally:
            os.close(writer)
        if done.returncode:
            errors.seek(0)
            lines = errors.read().strip().splitlines()
            return "", lines[-1] if lines else f"exit code {done.returncode}"
        if not runtime.direct:
            subprocess.run([*base, "start", name], capture_output=True, timeout=_TIMEOUT, check=False)
        elif not let_go(runtime.name, bundle / "state", name, int((bundle / "pid").read_text()), timeout=2.0):
            return "", "its FIFO is not as expected"
        return (output.read() if select.select([reader], [], [], _TIMEOUT)[0] else ""), ""


def _probe_spec(runtime: Runtime, bundle: Path, cgroup: str) -> dict[str, Any]:
    """The host's own programs, read-only, reading /proc/self/status under the default profile."""
    rootfs = bundle / "rootfs"
    rootfs.mkdir(parents=True)
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
    ]
    for name in ("usr", "bin", "lib", "lib64"):
        source = Path("/") / name
        if source.is_symlink():
            (rootfs / name).symlink_to(source.readlink())
        elif source.is_dir():
            mounts.append({"destination": f"/{name}", "type": "bind", "source": str(source), "options": ["bind", "ro"]})
    uname = platform.uname()
    profile = seccomp.oci_profile(json.loads(PROFILE.read_bytes()), (), uname.machine, uname.release)
    linux: dict[str, Any] = {
        "cgroupsPath": cgroup,
        "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")],
        "resources": {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": 64}},
    }
    annotations = {}
    if runtime.compiled:
        annotations["run.oci.seccomp_bpf_data"] = bpf.annotation(bpf.compile_filter(profile))
    else:
        linux["seccomp"] = profile
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["cat", "/proc/self/status"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {},
        },
        "root": {"path": str(rootfs), "readonly": True},
        "mounts": mounts,
        "linux": linux,
        "annotations": annotations,
    }
