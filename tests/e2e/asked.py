"""What a real Redis was asked while something ran, without what gateways ask of their own accord."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import redis

OWN_ACCORD = frozenset({"PING", "CLIENT", "PUBLISH", "SUBSCRIBE", "PSUBSCRIBE", "HELLO", "PUBSUB"})
OUTBOX = "bakerygw:notify:"


@contextmanager
def asked(program: redis.Redis) -> Iterator[Counter[str]]:
    """Counts of the commands that came for requests' sake, by upper-case name; complete once the block has ended.

    Left out: what scripts call, connections' upkeep, and the look for notifications, which every instance takes now
    and then.
    """
    counts: Counter[str] = Counter()
    with program.monitor() as monitor:
        yield counts
        program.echo("the end of what was asked")
        while (seen := monitor.next_command())["command"] != "ECHO the end of what was asked":
            name = seen["command"].split(maxsplit=1)[0].upper()
            if seen["client_type"] != "lua" and name not in OWN_ACCORD and OUTBOX not in seen["command"]:
                counts[name] += 1
