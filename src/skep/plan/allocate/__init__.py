"""The allocator: subnets and VNIs for networks, indexes for nodes, ports and VIPs for services, addresses for tasks.

A task leaves NEW for PENDING when everything it needs is given, all or nothing; what cannot be given is said in its error and tried again
with each plan. Whatever is given is held by the object that carries it: it is free again when that object is gone or, for a task, when it
has ended. Cursors are stored, so that numbers come in turn across leaders. See docs/scheduling.md.
"""

from __future__ import annotations

from skep.plan.allocate.addresses import unfit
from skep.plan.allocate.networks import subnet_conflict, vni_conflict
from skep.plan.allocate.ports import own_ports, port_conflict
from skep.plan.allocate.state import Allocation
from skep.plan.allocate.work import Work
from skep.plan.ops import Plan
from skep.plan.view import View

__all__ = ["Allocation", "own_ports", "plan_allocate", "port_conflict", "subnet_conflict", "unfit", "vni_conflict"]


def plan_allocate(view: View, now: int, allocation: Allocation | None = None) -> Plan:
    """Everything that can be given now. `allocation` is the caller's, marked with what changed since its last plan; None = read all.

    The caller applies the plan before it plans again. Nothing is retried by the clock: what was lacking is looked for in each plan.
    """
    state = allocation or Allocation()
    state.read(view)
    work = Work(view, now, state)
    work.give_networks()
    work.give_nodes()
    work.give_services()
    work.give_tasks()
    return work.plan()
