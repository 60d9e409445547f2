"""Random streams of clients and answers of services, for a minute: what is understood is what was meant, or nothing.

`FUZZ_SECONDS` says for how long in all, `FUZZ_SEED` which cases: the same seed plays the same ones, in the same order.
A failure names its case as `seed:number`; `one(seed, number)` of the module, or `Fuzzed.play`, plays it again.
"""

import os
import time
from collections.abc import Callable

import pytest

from tests.e2e.calling import until
from tests.fuzz import memory, service_memory
from tests.fuzz.process import fuzzed
from tests.minting import Issuer

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
WARM_UP_S = 3.0
MAY_GROW = 16 << 20


@pytest.mark.parametrize("one", [memory.one, service_memory.one], ids=["client streams", "service answers"])
def test_in_memory_nothing_is_misread_and_every_connection_ends(one: Callable[[int, int], None]) -> None:
    ends = time.monotonic() + SECONDS / 6
    number = 0
    while time.monotonic() < ends:
        try:
            one(SEED, number)
        except Exception as error:
            pytest.fail(f"case {SEED}:{number}: {error!r}")
        number += 1
    print(f"{number} cases")
    assert number > SECONDS


def test_a_gateway_neither_misreads_nor_hangs_nor_leaks_nor_stumbles(issuer: Issuer) -> None:
    with fuzzed(SEED, issuer) as run:
        run.run(WARM_UP_S)
        run.settle()
        before, files = run.gateway.rss(), run.open_files()

        found = run.run(SECONDS * 2 / 3 - WARM_UP_S)

        print(f"{found.cases} cases; answers: {dict(found.statuses)}")
        assert not found.faults, "\n\n".join(found.faults)
        assert {200, 400, 413, 502} <= found.statuses.keys()
        run.settle()
        until(lambda: run.open_files() <= files)  # probes of health come and go
        assert run.gateway.rss() - before < MAY_GROW
        until(lambda: not run.untold())
