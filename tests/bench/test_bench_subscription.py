"""What `bench/subscription.py` makes of what Redis and the build tell it."""

import os
import threading
import urllib.request

import pytest
from builds import plain
from subscription import TenantService, calls_of, checks, counted

STATS = (
    "$200\r\n# Commandstats\r\ncmdstat_evalsha:calls=12,usec=300,usec_per_call=25.00,rejected_calls=0\r\n"
    "cmdstat_client|tracking:calls=1,usec=2,usec_per_call=2.00\r\n\r\n"
)


def test_commands_are_counted_by_name():
    assert calls_of(STATS) == {"evalsha": 12, "client|tracking": 1}


def test_what_counts_is_what_came_since_for_each_request():
    assert counted({"evalsha": 2, "ping": 1}, {"evalsha": 12, "get": 5, "ping": 90, "info": 2}, 10) == {
        "evalsha": 1.0,
        "get": 0.5,
    }


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="what is measured has a core of its own")
def test_every_kind_of_subscription_is_timed_by_the_build():
    times = checks(plain(), 50)
    assert set(times) == {"active", "in grace", "past due", "expired", "cancelled"}
    assert all(0 < its["p50"] <= its["p99.9"] for its in times.values())


def test_the_tenant_service_counts_its_callers_but_for_its_health():
    with TenantService() as service:
        for path in ("/health", "/api/v1/tenants/t/subscription/status"):
            urllib.request.urlopen(service.url + path, timeout=30).close()
        assert service.asked == ["/api/v1/tenants/t/subscription/status"]
    assert not [it for it in threading.enumerate() if it.name.startswith("Thread") and not it.daemon]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(service.url, timeout=30)
