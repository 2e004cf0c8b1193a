"""config.json from a container's configuration: Docker's values, without a kernel."""

from __future__ import annotations

from typing import Any

import pytest

from skep.engine.base import ContainerConfig, ExecConfig, Limits, Mount, Ulimit
from skep.engine.oci.signals import signal_number
from skep.engine.oci.spec import ALL_CAPABILITIES, CAPABILITIES, Host, Paths, capabilities, environment, exec_process, hosts_file, oci_spec
from skep.engine.oci.users import Identity, identify
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
