"""`make setup` on a bare Debian 12: it installs what is needed, starts nothing, and is quick the second time.

The bare Debian is made by debootstrap in a folder of the test's own, without a policy-rc.d and without anything in /usr/local/bin.
A package that starts or enables a service would do so there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
pytestmark = [pytest.mark.root, pytest.mark.setup]


def run(*argv: object, timeout: float = 900, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout, **more)  # type: ignore[call-overload,no-any-return]


def debian_mirror() -> str:
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        if path.is_file():
            for word in path.read_text().split():
                if "://" in word and word.rstrip("/").endswith("/debian"):
                    return word
    pytest.skip("no Debian mirror stands in this machine's sources")


def enabled_units(root: Path) -> set[str]:
    """What systemd would start: links below /etc/systemd/system, and rc?.d start scripts."""
    found = {str(p.relative_to(root)) for p in (root / "etc/systemd/system").rglob("*") if p.is_symlink()}
    return found | {str(p.relative_to(root)) for p in (root / "etc").glob("rc[2345].d/S*")}


def processes(root: Path) -> set[str]:
    """Those that live there, or are programs from there: whoever listens for it is among them. What else listens on this machine is
    others' business."""
    found = set()
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(p / "root") == str(root) or Path(os.readlink(p / "exe")).is_relative_to(root):
                found.add((p / "comm").read_text().strip())
        except OSError:
            continue
    return found


@pytest.fixture
def bare() -> Iterator[Path]:
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed: apt-get install debootstrap")
    root = Path(f"/var/tmp/skt-setup-{os.getpid()}")
    mounts = [("proc", "proc", root / "proc"), ("tmpfs", "tmpfs", root / "dev/shm")]
    try:
        made = run("debootstrap", "--variant=minbase", "--include=make,python3,ca-certificates", "bookworm", root, debian_mirror())
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
        (root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        for kind, source, target in mounts:
            target.mkdir(parents=True, exist_ok=True)
            assert run("mount", "-t", kind, source, target).returncode == 0
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        for name in ("pip.conf", "hosts", "ssl/certs/ca-certificates.crt"):
            if Path("/etc", name).exists():
                shutil.copy(Path("/etc", name), root / "etc" / name)
        shutil.rmtree(root / "etc/apt", ignore_errors=True)
        shutil.copytree("/etc/apt", root / "etc/apt", symlinks=True)
        yield root
    finally:
        for _, _, target in mounts:
            run("umount", "-l", target)
        shutil.rmtree(root, ignore_errors=True)


def test_setup_starts_nothing_and_is_quick_the_second_time(bare: Path) -> None:
    clone = bare / "root/skep"
    assert run("git", "clone", "-q", PROJECT, clone).returncode == 0
    before = enabled_units(bare)
    # the chroot has the caches of this machine's package clients by their environment only
    env = {k: v for k, v in os.environ.items() if not k.startswith("SKEP")} | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    for name in ("VIRTUAL_ENV", "PYENV_VERSION", "PYTHONPATH"):
        env.pop(name, None)
    first = run("chroot", bare, "make", "-C", "/root/skep", "setup", env=env)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert enabled_units(bare) - before == set()
    assert processes(bare) == set()
    assert (clone / ".cache/tools/docker-registry/usr/bin/docker-registry").exists()
    assert (clone / ".cache/tools/docker-cli/usr/bin/docker").exists(), "a bare Debian 12 has no docker client: Debian 13's is unpacked"
    works = run("chroot", bare, "/root/skep/.venv/bin/skep", "--help", env=env)
    assert works.returncode == 0, works.stderr

    begun = time.monotonic()
    second = run("chroot", bare, "make", "-C", "/root/skep", "setup", env=env)
    assert second.returncode == 0 and second.stderr == "", second.stderr
    # not a benchmark: a second run that installed something would take minutes
    assert time.monotonic() - begun < 20
