"""What several tests of stores begin from."""

import time

import pytest_twisted
from store_fakes import RecordingTelemetry, link_to

from bakerygw.stores.records import MemoryRecords, RedisRecords


@pytest_twisted.async_yield_fixture(params=["memory", "redis"])
async def records(request):
    """`Records` in this process, and in a real Redis."""
    if request.param == "memory":
        yield MemoryRecords(time.time)
        return
    link = link_to(request.getfixturevalue("redis_server"), RecordingTelemetry())
    await link.start()
    yield RedisRecords(link)
    await link.stop()
