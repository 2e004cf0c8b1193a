"""What this node says of itself when it joins a session: host name, platform, resources, engine, plugins, and whom it trusts."""

from __future__ import annotations

import base64
import os
import platform
import socket
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from skep.config import Settings
from skep.errors import ConfigError
from skep.model.node import EngineDescription, NodeDescription, Plugin, Resources, TLSInfo
from skep.model.spec import DiscreteGenericResource, GenericResource, NamedGenericResource, Platform

PLUGINS = (
    Plugin(type="Log", name="json-file"),
    Plugin(type="Log", name="local"),
    Plugin(type="Network", name="bridge"),
    Plugin(type="Network", name="host"),
    Plugin(type="Network", name="overlay"),
    Plugin(type="Volume", name="local"),
)


def generic_resources(pairs: tuple[str, ...]) -> tuple[GenericResource, ...]:
    """`gpu=2` is a number of them, `gpu=GPU-1a` (repeated) names each."""
    out: list[GenericResource] = []
    for pair in pairs:
        kind, _, value = pair.partition("=")
        if not kind or not value:
            raise ConfigError(f"generic-resource {pair!r}: must be KIND=NUMBER or KIND=NAME")
        if value.isdigit():
            out.append(GenericResource(discrete_resource_spec=DiscreteGenericResource(kind=kind, value=int(value))))
        else:
            out.append(GenericResource(named_resource_spec=NamedGenericResource(kind=kind, value=value)))
    return tuple(out)


def tls_info(root_pem: str) -> TLSInfo:
    cert = x509.load_pem_x509_certificate(root_pem.encode())
    key = cert.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return TLSInfo(
        trust_root=root_pem,
        cert_issuer_subject=base64.b64encode(cert.subject.public_bytes()).decode(),
        cert_issuer_public_key=base64.b64encode(key).decode(),
    )


def memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def describer(settings: Settings, version: str, underlay_mtu: Callable[[], int]) -> Callable[[str], NodeDescription]:
    """A function from the cluster's root certificate (PEM) to the description; what cannot change is read once."""
    labels = dict(pair.partition("=")[::2] for pair in settings.label)
    resources = Resources(
        nano_cpus=len(os.sched_getaffinity(0)) * 1_000_000_000,
        memory_bytes=memory_bytes(),
        generic_resources=generic_resources(settings.generic_resource) or None,
    )
    known: dict[str, TLSInfo] = {}

    def describe(root_pem: str) -> NodeDescription:
        if root_pem not in known:
            known.clear()
            known[root_pem] = tls_info(root_pem)
        return NodeDescription(
            hostname=settings.hostname or socket.gethostname(),
            platform=Platform(architecture=platform.machine(), os="linux"),
            resources=resources,
            engine=EngineDescription(engine_version=version, labels=labels or None, plugins=PLUGINS),
            tls_info=known[root_pem],
            underlay_mtu=underlay_mtu(),
        )

    return describe
