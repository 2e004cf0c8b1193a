"""What the fuzzer makes requests of, and the answers with 500 that are Docker's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

API = json.loads((Path(__file__).parents[1] / "data/engine-api-1.50.json").read_text())

WORDS = ("", "a", "0", "-1", "true", "none", "no", "all", "local", "default", "host", "bridge", "ingress", "latest", "json-file", "always")
ODD = (
    " ",
    "ä\u0301\U0001f600",
    "\x00",
    "\x1b[31m",
    "a\nb",
    "../../etc/passwd",
    "/",
    "//",
    "a b",
    "%s%n",
    "{{.Node.ID}}",
    "{{.X",
    "'\"`$(x)",
    "-",
    "--",
    "a=b=c",
    "=",
    ":",
    "::",
    "a:b:c:d",
    "@",
    "x@sha256:zz",
    "sha256:" + "0" * 64,
    "0" * 64,
    "999999999999999999999999",
    "1e400",
    "NaN",
    "0x10",
    "1.5",
    "10.0.0.0/8",
    "256.1.1.1",
    "fe80::1/64",
    "80/tcp",
    "70000/tcp",
    "8080-8090/udp",
    "x" * 300,
    "é" * 5000,
    "(" * 50,
    "[a-",
    "\ud800",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    80,
    255,
    1000,
    65535,
    65536,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64,
    10**30,
)
FILTERS = (
    *("id", "name", "names", "label", "label!", "status", "until", "since", "before", "dangling", "reference", "type", "driver", "scope"),
    *(
        "health",
        "exited",
        "ancestor",
        "volume",
        "network",
        "node",
        "role",
        "membership",
        "desired-state",
        "service",
        "mode",
        "event",
        "is-task",
    ),
    *(
        "container",
        "image",
        "expose",
        "publish",
        "isolation",
        "runtime",
        "_up-to-date",
        "node.label",
        "plugin",
        "daemon",
        "custom",
        "all",
        "x",
    ),
)
VALUES = (
    "running",
    "true",
    "false",
    "0",
    "1h",
    "2020-01-01T00:00:00Z",
    "custom",
    "worker",
    "manager",
    "ready",
    "global",
    "80/tcp",
    "a=b",
    "*",
)
KINDS = ("application/json", "application/json; charset=utf-8", "text/plain", "application/x-tar", "", "x", "/", "application/json, x", "é")
NO_JSON = (
    *(
        b"",
        b" ",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b"}",
        b"{}x",
        b"{} {}",
        b"\x00",
        b"\xff\xfe",
        b'{"a":\xff}',
        b'{"Name":"\xed\xa0\x80"}',
    ),
    *(
        b"NaN",
        b"[NaN]",
        b"1e999",
        b"{1:2}",
        b"{'a':1}",
        b"\xef\xbb\xbf{}",
        b'{"a":1,"a":2}',
        b"true",
        b"-",
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ),
    *(b'"' + b"x" * 1_000_000 + b'"', b"[" + b"0," * 200_000 + b"0]", b'{"Labels":{"a":' + b"9" * 10_000 + b"}}"),
)
FIXED = {
    "t": (0, 1, "x", -1, ""),
    "Timeout": (0, 1),
    "Image": ("box:1", "box:1", "box:1", "nosuch", "", "Ä", None),
    "fromImage": ("box:1", "nosuch:1", "UPPER"),
}
CONTAINER = {"Image": "box:1", "Cmd": ["true"], "HostConfig": {"NetworkMode": "net"}}
SERVICE = {
    "Name": "web",
    "TaskTemplate": {"ContainerSpec": {"Image": "box:1"}},
    "Mode": {"Replicated": {"Replicas": 2}},
    "EndpointSpec": {},
}
SWARM = {"Name": "default", "Orchestration": {}, "Raft": {}, "Dispatcher": {}, "CAConfig": {}, "TaskDefaults": {}, "EncryptionConfig": {}}
BASES = {
    "/containers/create": CONTAINER,
    "/containers/{id}/update": {"Memory": 1 << 24, "RestartPolicy": {"Name": "always"}},
    "/containers/{id}/exec": {"Cmd": ["true"], "AttachStdout": True},
    "/networks/create": {"Name": "n1", "IPAM": {"Config": [{"Subnet": "10.9.0.0/24"}]}},
    "/networks/{id}/connect": {"Container": "c1", "EndpointConfig": {"IPAMConfig": {}}},
    "/networks/{id}/disconnect": {"Container": "c2"},
    "/volumes/create": {"Name": "v1", "DriverOpts": {"type": "tmpfs", "device": "tmpfs"}},
    "/services/create": {**SERVICE, "Name": "w2"},
    "/services/{id}/update": SERVICE,
    "/nodes/{id}/update": {"Role": "manager", "Availability": "active"},
    "/swarm/update": SWARM,
    "/swarm/join": {"RemoteAddrs": ["192.0.2.9:2377"], "JoinToken": "SWMTKN-1-a-b"},
}

DOCKERS_OWN_500 = tuple(
    re.compile(text)
    for text in (
        r"Bad parameters: you must choose at least one stream",  # logs of services and tasks; containers' say 400
        r"Container [0-9a-f]{64} is not paused",
        r"rpc error: code = Unknown desc = update out of sequence",
        r"(?s)error running ps: .+",
        r"(?s)Invalid (membership|role|desired-state) filter: '.*'",
        r"rpc error: code = Unknown desc = constraint expected one operator from ==, !=",
        r"invalid join token",
        r"service does not have a previous spec",
        r"(?s)unrecognized rollback option .*",
        r"unsupported registryAuthFrom value",
    )
)
"""Answers with 500 that Docker gives too, with the case in which it does."""

UNREACHED = re.compile(r"(?s)Get \"https?://.*\": (dial tcp.*: .+|tls: .+|net/http: request canceled .+)")
"""500 of credentials, digests and pulls alone: the registry cannot be reached."""
