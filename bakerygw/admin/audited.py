"""Operators' changes of the shared state: each is audited, however it ended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bakerygw.admin.fields import state_unavailable
from bakerygw.core.http import RequestHead
from bakerygw.core.times import iso_time
from bakerygw.ports import Audit, KeyUnreadable, StoreUnavailable

UNCONFIRMED = "The store did not confirm the change; look at the tenant, or repeat it."


@contextmanager
def audited(
    audit: Audit,
    event: str,
    head: RequestHead,
    now: Callable[[], float],
    *,
    unconfirmed: str = UNCONFIRMED,
    **fields: object,
) -> Iterator[dict[str, object]]:
    """Audit the change that the block makes, with these fields, which it may still alter; `now` gives Unix seconds.

    One that was not confirmed may have happened, so it is audited too. Raises `Refused` state-unavailable for it, with
    `unconfirmed` as detail.
    """
    outcome = "unconfirmed"
    try:
        yield fields
        outcome = "done"
    except (StoreUnavailable, KeyUnreadable) as error:
        raise state_unavailable(unconfirmed) from error
    finally:
        audit(event, who="admin", client=head.client, when=iso_time(now()), **fields, outcome=outcome)
