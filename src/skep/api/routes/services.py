"""`/services…` (managers only)."""

from __future__ import annotations

import msgspec
from aiohttp import web

from skep.api.body import convert, read_json
from skep.api.filters import swarm_labels
from skep.api.logs import service_logs
from skep.api.query import go_bool, version
from skep.api.routing import Call, Routes, answer, nothing
from skep.api.spelling import spelled
from skep.api.wire import services as wire
from skep.api.wire.ageing import as_of
from skep.api.wire.canonical import service_spec
from skep.errors import Forbidden, NotFound
from skep.model.service import Service
from skep.model.spec import NetworkAttachmentConfig, ServiceSpec

ROUTES = Routes()
Places = tuple[NetworkAttachmentConfig, ...] | None


def _mode(service: Service) -> str:
    mode = service.spec.mode
    if mode.global_ is not None:
        return "global"
    if mode.replicated_job is not None:
        return "replicated-job"
    return "global-job" if mode.global_job is not None else "replicated"


@ROUTES.add("GET", "/services")
async def ls(call: Call) -> web.StreamResponse:
    cluster = call.cluster
    wanted = call.filters("id", "name", "label", "mode", "runtime")
    status = call.version >= (1, 41) and go_bool(call.query, "status")

    def passes(service: Service) -> bool:
        return (
            wanted.prefix("id", service.id)
            and wanted.prefix("name", service.name)
            and wanted.exact("mode", _mode(service))
            and wanted.exact("runtime", "container")
            and swarm_labels(service.spec.labels, wanted.get("label"))
        )

    shown: list[object] = []
    for service in cluster.view.all(Service):
        if not passes(service):
            continue
        if status:
            shown.append(wire.service(service, status=wire.service_status(service, cluster.view)))
        else:
            shown.append(_encoded(call, service))
    return answer(shown)


def _encoded(call: Call, service: Service) -> msgspec.Raw:
    return call.state.encoded.get(service, lambda: wire.service(service))


async def _spec(call: Call) -> ServiceSpec:
    spec = service_spec(convert(as_of(call.version, spelled(await read_json(call.request), ServiceSpec)), ServiceSpec))
    template = spec.task_template
    return msgspec.structs.replace(
        spec,
        networks=_of_cluster(call, spec.networks),
        task_template=msgspec.structs.replace(template, networks=_of_cluster(call, template.networks)),
    )


def _of_cluster(call: Call, wanted: Places) -> Places:
    """A network of this node alone is refused in Docker's words; `bridge` and `host`, also by this node's own ids, mean every node's."""
    if not wanted:
        return wanted
    meant = []
    for place in wanted:
        try:
            call.cluster.network(place.target)
        except NotFound:
            local = call.context.networks.get(place.target)
            if local is not None and not local.predefined:
                raise Forbidden(
                    f"The network {local.name} cannot be used with services. Only networks scoped to the swarm can be used, such as those"
                    " created with the overlay driver."
                ) from None
            place = msgspec.structs.replace(place, target=local.name) if local is not None else place
        meant.append(place)
    return tuple(meant)


@ROUTES.add("POST", "/services/create")
async def create(call: Call) -> web.StreamResponse:
    spec = await _spec(call)
    auth = call.request.headers.get("X-Registry-Auth", "")
    service, warnings = await call.cluster.create_service(spec, registry_auth=auth)
    return answer({"ID": service.id, "Warnings": warnings or None}, 201)


@ROUTES.add("GET", "/services/{id}")
async def inspect(call: Call) -> web.StreamResponse:
    insert = go_bool(call.query, "insertDefaults")
    service = call.cluster.service(call.path["id"])
    if insert:
        return answer(wire.service(service, insert_defaults=True))
    return answer(_encoded(call, service))


@ROUTES.add("POST", "/services/{id}/update")
async def update(call: Call) -> web.StreamResponse:
    spec = await _spec(call)
    number = version(call.query, "service")
    warnings = await call.cluster.update_service(
        call.path["id"],
        number,
        spec,
        registry_auth=call.request.headers.get("X-Registry-Auth") or None,
        registry_auth_from=call.query.get("registryAuthFrom", ""),
        rollback=call.query.get("rollback", ""),
    )
    return answer({"Warnings": warnings or None})


@ROUTES.add("DELETE", "/services/{id}")
async def remove(call: Call) -> web.StreamResponse:
    await call.cluster.remove_service(call.path["id"])
    return nothing()


ROUTES.add("GET", "/services/{id}/logs")(service_logs)
