"""What a plain container finds in /etc/hosts and /etc/resolv.conf, the names it answers to, the ports it wants. Hardly any I/O."""

from __future__ import annotations

from pathlib import Path

from skep.datapath.base import HostPort
from skep.engine.base import Container
from skep.errors import Invalid, SkepError
from skep.model.spec import DNSConfig
from skep.node.base import LocalNetwork
from skep.node.container import NodeFacts, resolv_conf
from skep.node.plain_check import split_port, split_range
from skep.node.plain_config import EndpointSettings, Record

RESOLVER = "127.0.0.11"
SHORT = 12


def resolver_conf(record: Record, facts: NodeFacts) -> str:
    """Names are asked of the resolver in the sandbox; it forwards what it does not know."""
    host = record.host
    asked = DNSConfig(nameservers=(RESOLVER,), search=host.dns_search or None, options=host.dns_options or None)
    text = resolv_conf(asked, facts.resolv_conf)
    if "ndots:" in text:
        return text
    head, options, rest = text.partition("options ")
    return f"{head}options {rest.strip()} ndots:0\n" if options else f"{text}options ndots:0\n"


def own_resolv(record: Record, facts: NodeFacts) -> str:
    """Without a resolver of ours: the node's servers, or those asked for."""
    host = record.host
    asked = DNSConfig(nameservers=host.dns or None, search=host.dns_search or None, options=host.dns_options or None)
    return resolv_conf(asked, facts.resolv_conf)


def mode_is_none(record: Record) -> bool:
    return record.host.network_mode == "none" or record.config.network_disabled or not record.joined


def check_settings(name: str, settings: EndpointSettings) -> None:
    """Raises Invalid where the default networks cannot do it."""
    ipam = settings.ipam_config
    complaints = []
    if ipam is not None and (ipam.ipv6_address or ipam.link_local_ips):
        raise Invalid(f"invalid config for network {name}: skep gives containers IPv4 addresses only")
    if name in ("bridge", "host", "none"):
        if settings.address:
            complaints.append("user specified IP address is supported on user defined networks only")
        if settings.aliases:
            complaints.append("network-scoped alias is supported only for containers in user defined networks")
    if settings.driver_opts:
        complaints.append(f"skep knows no driver options of endpoints: {', '.join(sorted(settings.driver_opts))}")
    if complaints:
        raise Invalid(f"invalid config for network {name}: invalid endpoint settings:\n" + "\n".join(complaints))


def own_names(container: Container, record: Record, settings: EndpointSettings) -> tuple[str, ...]:
    """Docker's DNSNames: name, aliases, short id, and the host name where one was chosen."""
    config = container.config
    names = [config.name, *settings.aliases, config.id[:SHORT]]
    if record.config.hostname:
        names.append(record.config.hostname)
    return tuple(dict.fromkeys(names))


def wanted_ports(record: Record) -> tuple[HostPort, ...]:
    found = []
    bindings = record.host.port_bindings
    for port in sorted(bindings, key=lambda text: (split_port(text)[1], split_port(text)[0])):
        target, protocol = split_port(port)
        for binding in bindings[port]:
            first, last = split_range(binding.host_port)
            address = "" if binding.host_ip in ("0.0.0.0", "::") else binding.host_ip
            found.append(HostPort(target=target, protocol=protocol, published=first, last=last, address=address))
    if record.host.publish_all_ports:
        for port in record.config.exposed_ports:
            if not bindings.get(port):
                target, protocol = split_port(port)
                found.append(HostPort(target=target, protocol=protocol))
    return tuple(found)


def standard_less(text: str) -> list[str]:
    """The lines of a hosts file beyond those that every container has."""
    standard = {"localhost", "ip6-localhost", "ip6-loopback", "ip6-localnet", "ip6-mcastprefix", "ip6-allnodes", "ip6-allrouters"}
    kept = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) > 1 and not standard.issuperset(words[1:]):
            kept.append("\t".join((words[0], " ".join(words[1:]))))
    return kept


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def host_gateway(bridge: LocalNetwork | None) -> str:
    """`host-gateway` of --add-host."""
    gateway = next((config.gateway for config in bridge.ipam if config.gateway), "") if bridge is not None else ""
    if not gateway:
        raise SkepError("unable to derive the IP value for host-gateway")
    return gateway.partition("/")[0]
