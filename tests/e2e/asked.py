"""What a real Redis was asked while something ran, without what gateways ask and tell of their own accord."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

ASKING = frozenset({"EVAL", "EVALSHA", "GET", "MGET", "GETRANGE", "EXISTS", "PTTL", "TTL", "HGET", "HGETALL"})
OWN = ("bakerygw:notify:", "bakerygw:audit")


@contextmanager
def asked(program: redis.Redis) -> Iterator[Counter[str]]:
    """Counts of the commands that answer a request's question, by name; complete once the block has ended.

    Left out: what scripts call, the audit trail, connections' upkeep, and the look for notifications, which
    every instance takes now and then.
    """
    counts: Counter[str] = Counter()
    with program.monitor() as monitor:
        yield counts
        program.echo("the end of what was asked")
        while (seen := monitor.next_command())["command"] != "ECHO the end of what was asked":
            name = seen["command"].split(maxsplit=1)[0].upper()
            if seen["client_type"] != "lua" and name in ASKING and not any(key in seen["command"] for key in OWN):
                counts[name] += 1


def settled_cost(program: redis.Redis, run: Callable[[], object], within_s: float = 20.0) -> Counter[str]:
    """What `run` costs, as soon as it costs nothing but `EVALSHA`: at once, as a rule.

    But an instance that had to wait for the processor, or has known a tenant for a minute, first reads again.
    """
    deadline = time.monotonic() + within_s
    while True:
        with asked(program) as commands:
            run()
        if set(commands) == {"EVALSHA"} or time.monotonic() > deadline:
            return commands
