"""config.json from a container's configuration: Docker's values, without a kernel."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from skep.engine.base import ContainerConfig, ExecConfig, Limits, Mount, Ulimit
from skep.engine.oci.contents import clean
from skep.engine.oci.limits import DeviceNode, change_of
from skep.engine.oci.signals import signal_number
from skep.engine.oci.spec import (
    ALL_CAPABILITIES,
    CAPABILITIES,
    Host,
    Joined,
    Paths,
    capabilities,
    environment,
    exec_process,
    hosts_file,
    oci_spec,
)
from skep.engine.oci.users import Identity, identify
from skep.engine.oci.view import base_name, go_mode
from skep.errors import Invalid

HOST = Host(rlimits={"RLIMIT_NOFILE": 20000, "RLIMIT_CORE": -1, "RLIMIT_NPROC": 500}, init="/usr/bin/tini-static")
PATHS = Paths(rootfs="/r", hosts="/c/hosts", hostname="/c/hostname", resolv_conf="/c/resolv.conf", cgroup="/skep/x")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/home/web:/bin/sh\nbad:line\n# comment\n1000:x:7:7::/odd:\n"
GROUP = "root:x:0:\nweb:x:102:\nlog:x:200:web,other\nextra:x:300:\n"


def config(**fields: Any) -> ContainerConfig:
    return ContainerConfig(id="ab" * 32, name="c", image="i", args=fields.pop("args", ("true",)), **fields)


def spec(host: Host = HOST, **fields: Any) -> dict[str, Any]:
    return oci_spec(config(**fields), Identity(), PATHS, host)


def mounts(**fields: Any) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in spec(**fields)["mounts"]}


def test_the_plain_container() -> None:
    made = spec()
    assert made["process"]["capabilities"]["bounding"] == list(CAPABILITIES)
    assert made["hostname"] == "abababababab"
    assert made["linux"]["cgroupsPath"] == "/skep/x"
    assert [ns["type"] for ns in made["linux"]["namespaces"]] == ["mount", "uts", "ipc", "pid", "network"]
    assert made["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert "/proc/kcore" in made["linux"]["maskedPaths"] and "/proc/sys" in made["linux"]["readonlyPaths"]
    assert "memory" not in made["linux"]["resources"] and "seccomp" not in made["linux"]
    assert mounts()["/sys/fs/cgroup"]["options"][0] == "ro"
    assert mounts()["/etc/hosts"]["source"] == "/c/hosts"
    assert "size=67108864" in mounts()["/dev/shm"]["options"]


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), (), set(CAPABILITIES)),
        (("NET_ADMIN",), (), {*CAPABILITIES, "CAP_NET_ADMIN"}),
        ((), ("CAP_CHOWN",), set(CAPABILITIES) - {"CAP_CHOWN"}),
        (("CAP_CHOWN",), ("chown",), set(CAPABILITIES)),
        ((), ("ALL",), set()),
        (("kill",), ("ALL",), {"CAP_KILL"}),
        (("ALL",), ("CAP_SYS_ADMIN",), set(ALL_CAPABILITIES) - {"CAP_SYS_ADMIN"}),
    ],
)
def test_capabilities_are_tweaked_as_docker_does(add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]) -> None:
    assert set(capabilities(config(capabilities_add=add, capabilities_drop=drop), HOST)) == expected


def test_nobody_gets_a_capability_the_host_has_not() -> None:
    poor = Host(capabilities=frozenset({"CAP_CHOWN"}))
    assert capabilities(config(privileged=True), poor) == ("CAP_CHOWN",)
    with pytest.raises(Invalid, match='unknown capability: "CAP_X"'):
        capabilities(config(capabilities_add=("X",)), HOST)


def test_another_user_holds_nothing_but_may_gain() -> None:
    made = oci_spec(config(), Identity(uid=5, gid=6, groups=(7,)), PATHS, HOST)["process"]
    assert made["capabilities"]["effective"] == [] and made["capabilities"]["bounding"]
    assert made["user"] == {"uid": 5, "gid": 6, "additionalGids": [6, 7], "umask": 0o022}


def test_limits() -> None:
    made = spec(limits=Limits(nano_cpus=1_500_000_000, memory=64 << 20, pids=9, cpu_shares=512, cpuset_cpus="0"))["linux"]["resources"]
    assert made["memory"] == {"limit": 64 << 20, "swap": 128 << 20}
    assert made["cpu"] == {"period": 100_000, "quota": 150_000, "shares": 512, "cpus": "0"}
    assert made["pids"] == {"limit": 9}
    unlimited = spec(limits=Limits(memory=64 << 20, memory_swap=-1))["linux"]["resources"]["memory"]
    assert unlimited["swap"] == -1
    with pytest.raises(Invalid, match="Minimum memoryswap limit"):
        spec(limits=Limits(memory=64 << 20, memory_swap=1 << 20))
    without = Host(swap_limit=False)
    assert spec(host=without, limits=Limits(memory=64 << 20))["linux"]["resources"]["memory"] == {"limit": 64 << 20}


def test_rlimits_stay_below_the_daemons_own() -> None:
    asked = (Ulimit(name="core", soft=-1, hard=-1), Ulimit(name="nproc", soft=100, hard=10000), Ulimit(name="nofile", soft=5, hard=6))
    limits = {one["type"]: (one["soft"], one["hard"]) for one in spec(ulimits=asked)["process"]["rlimits"]}
    assert limits == {"RLIMIT_NOFILE": (5, 6), "RLIMIT_CORE": ((1 << 64) - 1,) * 2, "RLIMIT_NPROC": (100, 500)}
    assert spec()["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 20000, "hard": 20000}]
    with pytest.raises(Invalid, match="invalid ulimit type: nosuch"):
        spec(ulimits=(Ulimit(name="nosuch", soft=1, hard=1),))


def test_mounts_parents_first_and_the_users_in_place_of_ours() -> None:
    given = (
        Mount(target="/data/inner", source="/h/inner", read_only=True),
        Mount(target="/data", source="/h/data", propagation="rslave", recursive=False),
        Mount(target="/etc/hosts", source="/h/hosts"),
        Mount(target="/dev/shm/", kind="tmpfs", options=("size=1",), read_only=True),
    )
    made = spec(mounts=given)
    order = [mount["destination"] for mount in made["mounts"]]
    assert order.index("/data") < order.index("/data/inner")
    found = mounts(mounts=given)
    assert found["/etc/hosts"]["source"] == "/h/hosts"
    assert found["/data"]["options"] == ["bind", "rw", "rslave"]
    assert found["/data/inner"]["options"] == ["rbind", "ro", "rprivate"]
    assert found["/dev/shm/"]["options"][-2:] == ["size=1", "ro"] and "/dev/shm" not in found
    assert made["linux"]["rootfsPropagation"] == "slave"
    with pytest.raises(Invalid, match="must be absolute"):
        spec(mounts=(Mount(target="data", source="/h"),))


def test_network_privileges_and_init() -> None:
    assert {"type": "network", "path": "/n"} in spec(netns="/n")["linux"]["namespaces"]
    assert "network" not in [ns["type"] for ns in spec(host_network=True)["linux"]["namespaces"]]
    assert {"type": "cgroup"} in spec(host=Host(cgroup2=True))["linux"]["namespaces"]
    free = spec(privileged=True)["linux"]
    assert "maskedPaths" not in free and free["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    made = spec(init=True, args=("a", "b"))
    assert made["process"]["args"] == ["/sbin/docker-init", "--", "a", "b"]
    assert mounts(init=True)["/sbin/docker-init"]["options"] == ["bind", "ro"]
    with pytest.raises(Invalid, match='exec: "docker-init": executable file not found'):
        spec(host=Host(), init=True)
    with pytest.raises(Invalid, match="no command specified"):
        spec(args=())


def test_the_environment() -> None:
    made = environment(config(env=("B=2", "A=1", "B=3", "PATH=/x", "C"), tty=True), Identity(home="/home/web"))
    assert made == ["PATH=/x", "HOSTNAME=abababababab", "TERM=xterm", "B=3", "A=1", "HOME=/home/web"]
    assert "HOME=/own" in environment(config(env=("HOME=/own",)), Identity(home="/home/web"))


def test_an_exec_is_in_the_same_cage() -> None:
    base = config(env=("A=1",), cwd="/w", no_new_privileges=True, capabilities_drop=("ALL",))
    made = exec_process(base, ExecConfig(args=("x",), env=("A=2",), tty=True, rows=3, columns=4), Identity(), HOST)
    assert made["cwd"] == "/w" and "A=2" in made["env"] and "TERM=xterm" in made["env"]
    assert made["capabilities"]["bounding"] == [] and made["noNewPrivileges"]
    assert made["terminal"] and made["consoleSize"] == {"height": 3, "width": 4}
    free = exec_process(base, ExecConfig(args=("x",), privileged=True), Identity(), HOST)
    assert len(free["capabilities"]["effective"]) == len(ALL_CAPABILITIES)


def test_the_hosts_file() -> None:
    lines = hosts_file(config(hosts=("10.0.0.1\tdb",))).splitlines()
    assert lines[0] == "127.0.0.1\tlocalhost" and lines[-1] == "10.0.0.1\tdb"


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", (), Identity(uid=0, gid=0, home="/root")),
        ("web", (), Identity(uid=101, gid=102, groups=(200,), home="/home/web")),
        ("101", ("extra", "9"), Identity(uid=101, gid=102, groups=(9, 200, 300), home="/home/web")),
        ("web:extra", (), Identity(uid=101, gid=300, home="/home/web")),
        ("web:0", (), Identity(uid=101, gid=0, home="/home/web")),
        ("5000", (), Identity(uid=5000, gid=0, home="/")),
        ("5000:6000", (), Identity(uid=5000, gid=6000, home="/")),
        ("1000", (), Identity(uid=1000, gid=0, home="/")),
    ],
)
def test_users(user: str, groups: tuple[str, ...], expected: Identity) -> None:
    assert identify(user, groups, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("ghost", "unable to find user ghost: no matching entries in passwd file"),
        ("web:ghost", "unable to find group ghost: no matching entries in group file"),
        ("99999999999", "uids and gids must be in range 0-2147483647"),
    ],
)
def test_users_that_are_not_there(user: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        identify(user, (), PASSWD, GROUP)


def test_an_image_without_a_passwd_file_runs_as_root() -> None:
    assert identify("", (), "", "") == Identity(home="/root")
    assert identify("root", (), "", "").uid == 0


@pytest.mark.parametrize(("name", "number"), [("SIGTERM", 15), ("kill", 9), ("15", 15), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("usr1", 10)])
def test_signals(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "SIGNOPE", "0", "65", "TERM+1", "RTMIN+x", "-9", "٣"])
def test_no_signals(name: str) -> None:
    with pytest.raises(Invalid, match="invalid signal"):
        signal_number(name)


def test_every_limit() -> None:
    given = Limits(
        memory=64 << 20,
        memory_reservation=32 << 20,
        memory_swappiness=0,
        oom_kill_disable=True,
        cpu_period=50_000,
        cpu_quota=25_000,
        cpu_realtime_period=1000,
        cpu_realtime_runtime=500,
        cpuset_mems="0",
        blkio_weight=300,
    )
    made = spec(limits=given)["linux"]["resources"]
    assert made["memory"] == {"limit": 64 << 20, "swap": 128 << 20, "reservation": 32 << 20, "swappiness": 0, "disableOOMKiller": True}
    assert made["cpu"] == {"period": 50_000, "quota": 25_000, "mems": "0", "realtimePeriod": 1000, "realtimeRuntime": 500}
    assert made["blockIO"] == {"weight": 300}
    poor = Host(missing=frozenset({"memory_swappiness", "oom_kill_disable", "blkio_weight", "cpu_realtime_period", "cpu_realtime_runtime"}))
    made = spec(host=poor, limits=given)["linux"]["resources"]
    assert set(made["memory"]) == {"limit", "swap", "reservation"} and "blockIO" not in made and "realtimePeriod" not in made["cpu"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(memory_swap=1 << 20), "You should always set the Memory limit when using Memoryswap limit, see usage"),
        (
            Limits(memory=1 << 20, memory_reservation=2 << 20),
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        (Limits(memory_swappiness=101), "Invalid value: 101, valid memory swappiness range is 0-100"),
        (Limits(nano_cpus=1, cpu_period=1), "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
        (Limits(nano_cpus=1, cpu_quota=1), "Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
        (Limits(blkio_weight=9), "Range of blkio weight is from 10 to 1000"),
    ],
)
def test_limits_that_cannot_be(limits: Limits, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        spec(limits=limits)


def test_limits_that_change_and_that_go() -> None:
    old = Limits(memory=1 << 30, memory_reservation=1 << 20, nano_cpus=10**9, pids=5, cpu_shares=10)
    assert change_of(old, Limits()).released == ("swap", "memory", "reservation", "quota", "shares", "pids")
    assert change_of(old, Limits()).resources == {}
    assert change_of(old, old).released == () and change_of(old, old).resources["pids"] == {"limit": 5}
    assert change_of(Limits(), old).released == ()


def test_namespaces_of_others() -> None:
    def kinds(**fields: Any) -> dict[str, str]:
        host = fields.pop("host", HOST)
        joined = Joined(namespaces={"pid": "/proc/7/ns/pid", "ipc": "/proc/8/ns/ipc"}, shm="/shm")
        made = oci_spec(config(**fields), Identity(), PATHS, host, joined=joined)
        return {one["type"]: one.get("path", "") for one in made["linux"]["namespaces"]}

    assert kinds(pid_mode="container:x", ipc_mode="container:y")["pid"] == "/proc/7/ns/pid"
    assert kinds(pid_mode="container:x", ipc_mode="container:y")["ipc"] == "/proc/8/ns/ipc"
    assert set(kinds(pid_mode="host", ipc_mode="host", uts_mode="host", host_network=True)) == {"mount"}
    assert "cgroup" in kinds(cgroupns_mode="private") and "cgroup" not in kinds()
    v2 = Host(cgroup2=True)
    assert "cgroup" in kinds(host=v2, privileged=True) and "cgroup" not in kinds(host=v2, cgroupns_mode="host")
    assert "hostname" not in spec(uts_mode="host") and spec(domainname="d")["linux"]["sysctl"] == {"kernel.domainname": "d"}
    assert "/dev/shm" not in mounts(ipc_mode="none")


def test_devices_and_their_rules() -> None:
    node = DeviceNode(path="/dev/x", kind="b", major=7, minor=1, mode=0o660, uid=1, gid=2, access="r")
    made = oci_spec(config(device_rules=("c 10:* rw", "a *:* m")), Identity(), PATHS, HOST, devices=(node,))["linux"]
    assert made["devices"] == [{"path": "/dev/x", "type": "b", "major": 7, "minor": 1, "fileMode": 0o660, "uid": 1, "gid": 2}]
    assert made["resources"]["devices"][-3:] == [
        {"allow": True, "type": "b", "major": 7, "minor": 1, "access": "r"},
        {"allow": True, "type": "c", "access": "rw", "major": 10},
        {"allow": True, "type": "a", "access": "m"},
    ]
    for rule in ("", "c 1:2", "x 1:2 r", "c 1:2 rwmx", "c a:b r", "c 1:2 r\n"):
        with pytest.raises(Invalid, match="invalid device cgroup rule format"):
            spec(device_rules=(rule,))
    with pytest.raises(Invalid, match="invalid device mode: q"):
        oci_spec(config(), Identity(), PATHS, HOST, devices=(msgspec.structs.replace(node, access="q"),))


def test_paths_masked_and_tmpfs() -> None:
    made = spec(masked_paths=(), readonly_paths=("/x",))["linux"]
    assert "maskedPaths" not in made and made["readonlyPaths"] == ["/x"]
    assert spec(privileged=True, masked_paths=("/y",))["linux"]["maskedPaths"] == ["/y"]
    options = mounts(mounts=(Mount(target="/t", kind="tmpfs", options=("exec", "size=1", "size=2", "dev"), read_only=True),))["/t"][
        "options"
    ]
    assert options == ["exec", "nosuid", "dev", "size=2", "ro"]


def test_paths_as_docker_reads_them() -> None:
    cases = {"etc": "/etc", "/etc/": "/etc/", "/etc/.": "/etc/.", "/a/../b//c": "/b/c", "/": "/", "": "/.", "/../..": "/", "//x": "/x"}
    assert {path: clean(path) for path in cases} == cases
    assert [base_name(path) for path in ("/etc", "/etc/", "/etc/.", "/")] == ["etc", "etc", ".", "/"]
    assert go_mode(0o100755) == 0o755 and go_mode(0o041777) == 1 << 31 | 1 << 20 | 0o777 and go_mode(0o104755) == 1 << 23 | 0o755
    assert go_mode(0o020600) == 1 << 26 | 1 << 21 | 0o600
