"""`skep cluster up|status|exec|start|stop|kill|down`: a cluster on this machine, from the command line.

What is shown on the way goes to standard error, results to standard output. An interrupted `up` (Ctrl-C, SIGTERM, SIGHUP) removes what it
has made. Exit codes: 0 done, 1 refused or failed, 125 a command line that cannot be understood, 130 interrupted; `status` 1 when a node
does not run; `exec` that of the command.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from skep.errors import Invalid, SkepError
from skep.local.layout import layout, names

MOST_WORKERS = 64


def port_pair(text: str) -> tuple[int, int]:
    """`8000:8080` -> (8000, 8080); `8000` means the same on both sides."""
    found = re.fullmatch(r"([0-9]{1,5})(?::([0-9]{1,5}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: must be HOSTPORT:NODEPORT")
    pair = int(found[1]), int(found[2] or found[1])
    if not all(1 <= p <= 65535 for p in pair):
        raise argparse.ArgumentTypeError(f"{text!r}: ports go from 1 to 65535")
    return pair


def worker_count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from 0 to {MOST_WORKERS}")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """What is wrong in one line; no flag is guessed from its beginning."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        self.exit(125, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    p = _Parser(prog="skep cluster", description="A cluster on this machine, for trying, developing and testing. Needs root.")
    sub = p.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    up = sub.add_parser("up", help="make a cluster and wait until its nodes are ready")
    up.add_argument("--workers", type=worker_count, default=3, metavar="N", help="workers beside the manager (default: 3)")
    up.add_argument("--registry", action="store_true", help="run a registry at registry:5000, with the tutorial's images built from files")
    up.add_argument(
        "--stand-ins",
        action="store_true",
        help="let the registry stand in for Docker Hub: an image built from this machine's packages takes the place of\n"
        "gihyodocker/nginx-proxy, and is named when it is made (implies --registry)",
    )
    up.add_argument(
        "--publish",
        type=port_pair,
        action="append",
        default=[],
        metavar="HOST:NODE",
        help="lead a port of this host to a port of the manager; repeatable",
    )
    up.add_argument("--stack", default="", metavar="DIR", help="show this folder as /stack in the manager")
    status = sub.add_parser("status", help="show the nodes of a cluster, or of all")
    execute = sub.add_parser("exec", help="run a command in a node", usage="skep cluster exec [--name NAME] NODE [--] COMMAND [ARG...]")
    execute.add_argument("node", metavar="NODE")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    start = sub.add_parser("start", help="start nodes that do not run, or all of a cluster, also after this machine was booted anew")
    start.add_argument("node", nargs="*", metavar="NODE")
    stop = sub.add_parser("stop", help="stop a node's skepd in order; its containers go on")
    kill = sub.add_parser("kill", help="lose nodes as machines are lost: skepd, containers and network at once")
    for s in (stop, kill):
        s.add_argument("node", nargs="+", metavar="NODE")
    down = sub.add_parser("down", help="remove a cluster and everything of it")
    for s in (up, execute, start, stop, kill, down):
        s.add_argument("--name", default="default", metavar="NAME", help="which cluster (default: default)")
    status.add_argument("--name", default="", metavar="NAME", help="which cluster (default: all)")
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What follows the first `--` is never ours: argparse's versions do not agree on which of them they take away."""
    words = list(argv)
    if words[:1] != ["exec"] or "--" not in words:
        return parser().parse_args(words)
    cut = words.index("--")
    args = parser().parse_args(words[:cut])
    args.command = [*args.command, "--", *words[cut + 1 :]] if args.command else words[cut + 1 :]
    return args


def main(argv: Sequence[str]) -> int:
    try:
        args = parse(argv)
    except SystemExit as ended:
        return int(ended.code or 0)
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "up": _up, "status": _status, "exec": _exec, "start": _start, "stop": _stop, "kill": _kill, "down": _down,
    }  # fmt: skip
    try:
        with _interruptible():
            return verbs[args.verb](args)
    except SkepError as e:
        _say(f"skep cluster: {e.text}")
        return 1
    except BrokenPipeError:
        raise
    except OSError as e:
        _say(f"skep cluster: {f'{e.filename}: ' if e.filename else ''}{e.strerror or e}")
        return 1
    except KeyboardInterrupt:
        _say("skep cluster: interrupted")
        return 130


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP are what Ctrl-C is. The first of them counts: what cleans up after it is not interrupted itself."""
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: Any) -> None:
        for other in wanted:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {}
    for number in wanted:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN:
            with suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """To who may have gone: that must not end what is going on."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _up(args: argparse.Namespace) -> int:
    from skep.local import cluster

    begun = time.monotonic()
    os.umask(0o022)

    def say(text: str) -> None:
        _say(f"[{time.monotonic() - begun:5.1f} s] {text}")

    at = cluster.up(
        args.name,
        workers=args.workers,
        registry=args.registry,
        stand_ins=args.stand_ins,
        publish=args.publish,
        stack=args.stack,
        say=say,
    )
    print(f"# host socket: unix://{at.host_socket}")
    print(f"export DOCKER_HOST=unix://{at.socket('manager')}", flush=True)
    return 0


def _status(args: argparse.Namespace) -> int:
    from skep.local import cluster

    known = [args.name] if args.name else names()
    if not known:
        print("no cluster on this machine")
        return 0
    well = True
    for name in known:
        at = layout(name)
        if not at.nodes and not args.name:
            print(f"cluster {name}: only pieces are left: `skep cluster down --name {name}` removes them")
            well = False
            continue
        rows = cluster.status(name)
        well = well and at.ready and all(row["state"] == "running" for row in rows)
        served = "" if cluster.pids(at, "host") else " (not served)"
        print(f"cluster {name}: underlay {at.subnet}/24, host socket unix://{at.host_socket}{served}")
        if not at.ready:
            print("  it was never finished, or is being made")
        for host_port, node_port in at.publish:
            print(f"  port {host_port} of this host -> port {node_port} of the manager")
        print(f"  {'NODE':<10} {'ROLE':<9} {'ADDRESS':<15} {'STATE':<8} {'PID':<8} SOCKET")
        for row in rows:
            shown = f"  {row['node']:<10} {row['role']:<9} {row['address']:<15} {row['state']:<8} {row['pid'] or '-':<8} {row['socket']}"
            print(shown.rstrip())
    return 0 if well else 1


def _exec(args: argparse.Namespace) -> int:
    from skep.local import cluster
    from skep.local.nodes import check_node
    from skep.local.process import become

    at = cluster.whole(args.name)
    check_node(at, args.node)
    if not args.command:
        raise Invalid("what to run is missing: skep cluster exec NODE -- COMMAND [ARG...]")
    if os.geteuid():
        raise Invalid("skep cluster exec enters namespaces: run it as root, or through sudo")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    become(at, args.node, args.command)
    return 1


def _start(args: argparse.Namespace) -> int:
    from skep.local import cluster

    os.umask(0o022)
    cluster.resume(args.name, args.node, say=_say)
    return 0


def _stop(args: argparse.Namespace) -> int:
    from skep.local import cluster

    return _each(args, cluster.stop_node)


def _kill(args: argparse.Namespace) -> int:
    from skep.local import cluster

    return _each(args, cluster.kill_node)


def _each(args: argparse.Namespace, act: Callable[[Any, str], None]) -> int:
    from skep.local import cluster
    from skep.local.nodes import check_node

    at = cluster.whole(args.name)
    if os.geteuid():
        raise Invalid(f"skep cluster {args.verb} ends processes: run it as root, or through sudo")
    for node in args.node:
        check_node(at, node)
    with cluster.alone(at):
        for node in args.node:
            act(at, node)
            print(node)
    return 0


def _down(args: argparse.Namespace) -> int:
    from skep.local import cluster

    if not cluster.down(args.name, say=_say):
        _say(f"there was no cluster {args.name}")
    return 0
