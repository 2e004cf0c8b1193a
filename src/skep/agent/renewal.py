"""A node's certificate is renewed at a random point between 50 and 80 % of its life; failures are tried again, at most an hour apart."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from skep.clock import HOUR, SECOND, Clock
from skep.errors import SkepError
from skep.ids import Random
from skep.link.tls import Certificates, renewal_time

log = logging.getLogger(__name__)

RETRY = 5 * SECOND
RETRY_LIMIT = HOUR
LONGEST_SLEEP = HOUR
"""The clock may be set while we sleep."""


async def keep_renewed(
    certificates: Certificates,
    renew: Callable[[], Awaitable[None]],
    clock: Clock,
    rng: Random,
    on_renewed: Callable[[], None] = lambda: None,
) -> None:
    """Until cancelled. `renew` writes the new files (`skep.link.client.Client.renew`, or the manager's own authority)."""
    while True:
        at = renewal_time(certificates.certificate(), rng.uniform)
        while (left := at - clock.now()) > 0:
            await clock.sleep(min(left, LONGEST_SLEEP))
        wait = RETRY
        while True:
            try:
                await renew()
                break
            except (SkepError, OSError) as error:
                reason = error.message if isinstance(error, SkepError) else str(error)
                log.warning("the node's certificate could not be renewed", extra={"reason": reason, "retry_ns": wait})
                await clock.sleep(int(rng.uniform(wait / 2, wait)))
                wait = min(2 * wait, RETRY_LIMIT)
        log.info("the node's certificate was renewed", extra={"not_after": certificates.certificate().not_after})
        on_renewed()
