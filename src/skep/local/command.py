"""`skep cluster up|status|exec|down`: a cluster on this machine, from the command line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from skep.errors import Invalid, NotFound, SkepError
from skep.local.layout import layout, names


def port_pair(text: str) -> tuple[int, int]:
    """`8000:8080` -> (8000, 8080); `8000` means the same on both sides."""
    left, _, right = text.partition(":")
    try:
        pair = int(left), int(right or left)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be HOSTPORT:NODEPORT") from None
    if not all(1 <= p <= 65535 for p in pair):
        raise argparse.ArgumentTypeError(f"{text!r}: ports go from 1 to 65535")
    return pair


def worker_count(text: str) -> int:
    if not text.isdigit() or int(text) > 64:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from 0 to 64")
    return int(text)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="skep cluster", description="A cluster on this machine, for trying, developing and testing. Needs root."
    )
    sub = p.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    up = sub.add_parser("up", help="make a cluster and wait until its nodes are ready")
    up.add_argument("--workers", type=worker_count, default=3, metavar="N", help="workers beside the manager (default: 3)")
    up.add_argument("--registry", action="store_true", help="run a registry at registry:5000, with the tutorial's images built from files")
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
    execute = sub.add_parser("exec", help="run a command in a node", usage="skep cluster exec [--name NAME] NODE -- COMMAND [ARG...]")
    execute.add_argument("node", metavar="NODE")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    down = sub.add_parser("down", help="remove a cluster and everything of it")
    for s in (up, execute, down):
        s.add_argument("--name", default="default", metavar="NAME", help="which cluster (default: default)")
    status.add_argument("--name", default="", metavar="NAME", help="which cluster (default: all)")
    return p


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    try:
        return {"up": _up, "status": _status, "exec": _exec, "down": _down}[args.verb](args)
    except SkepError as e:
        print(f"skep cluster: {e.text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("skep cluster: interrupted", file=sys.stderr)
        return 130


def _up(args: argparse.Namespace) -> int:
    from skep.local import cluster

    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.1f} s] {text}", file=sys.stderr, flush=True)

    at = cluster.up(args.name, workers=args.workers, registry=args.registry, publish=args.publish, stack=args.stack, say=say)
    print(f"# host socket: unix://{at.host_socket}")
    print(f"export DOCKER_HOST=unix://{at.socket('manager')}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from skep.local import cluster

    known = [args.name] if args.name else names()
    if not known:
        print("no cluster on this machine")
        return 0
    dead = False
    for name in known:
        rows = cluster.status(name)
        at = layout(name)
        print(f"cluster {name}: underlay {at.subnet}/24, host socket unix://{at.host_socket}")
        for host_port, node_port in at.publish:
            print(f"  port {host_port} of this host -> port {node_port} of the manager")
        print(f"  {'NODE':<12} {'ROLE':<9} {'ADDRESS':<16} {'STATE':<8} {'PID':<8} SOCKET")
        for row in rows:
            dead = dead or row["state"] != "running"
            print(
                f"  {row['node']:<12} {row['role']:<9} {row['address']:<16} {row['state']:<8} {row['pid'] or '':<8} {row['socket']}".rstrip()
            )
    return 1 if dead else 0


def _exec(args: argparse.Namespace) -> int:
    from skep.local.process import run

    at = layout(args.name)
    line = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not at.nodes:
        raise NotFound(f"no cluster {args.name!r} on this machine")
    if at.node(args.node) is None:
        raise NotFound(f"no node {args.node!r} in cluster {args.name!r}: there are {', '.join(n.name for n in at.nodes)}")
    if not line:
        raise Invalid("what to run is missing: skep cluster exec NODE -- COMMAND [ARG...]")
    return run(at, args.node, line)


def _down(args: argparse.Namespace) -> int:
    from skep.local import cluster

    layout(args.name)
    if not cluster.down(args.name, say=lambda text: print(text, file=sys.stderr)):
        print(f"there was no cluster {args.name}", file=sys.stderr)
    return 0
