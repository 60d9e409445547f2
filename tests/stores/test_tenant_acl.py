"""The Redis users that docs/tenants.md proposes: nobody but the tenant service can give access."""

import re
from pathlib import Path

import pytest
import pytest_twisted
from store_fakes import RecordingTelemetry, invalidations_of, link_to, store_over, trusted
from twisted.internet.task import Clock

from bakerygw.core.alerts import parse_alert
from bakerygw.core.tenancy import ReadOnly
from bakerygw.ports import StoreUnavailable
from bakerygw.stores.events import RedisEventLog
from bakerygw.stores.hierarchy import RedisHierarchy
from bakerygw.stores.mirror import Mirror
from tests.redis_server import RedisServer

DOCS = Path(__file__).parents[2] / "docs"
PARENT, HOLD, CHANGED = "tenant:shop:parent", "tenant:shop:read_only", "tenant:shop:subscription_changed_at"


def rules(page: str, user: str) -> list[str]:
    line = re.search(rf"^    ACL SETUSER {user} (.+)$", (DOCS / page).read_text(), re.MULTILINE)
    assert line is not None
    return line[1].split()


async def outcome(server: RedisServer, user: str, *command: str) -> str:
    """What Redis answers to this user: `OK`, or the first word of the error."""
    link = link_to(server, RecordingTelemetry(), username=user, password="PASSWORD")
    await link.start()
    try:
        await link.call(*command)
    except StoreUnavailable as error:
        return str(error).split()[0]
    finally:
        await link.stop()
    return "OK"


@pytest_twisted.ensureDeferred
async def test_the_tenant_service_may_write_parents_and_billing_may_not():
    with RedisServer() as server:
        for user in ("tenant-service", "billing"):
            assert server.command("ACL", "SETUSER", user, *rules("tenants.md", user)) == b"+OK"

        assert await outcome(server, "tenant-service", "SET", PARENT, "chain") == "OK"
        assert await outcome(server, "billing", "SET", PARENT, "evil") == "NOPERM"
        assert await outcome(server, "billing", "DEL", PARENT) == "NOPERM"
        for user in ("tenant-service", "billing"):
            assert await outcome(server, user, "SET", HOLD, "held") == "OK"
            assert await outcome(server, user, "SET", CHANGED, "5") == "OK"
            assert await outcome(server, user, "SET", "bakerygw:revoked:x", "1") == "NOPERM"
            assert await outcome(server, user, "CONFIG", "GET", "*") == "NOPERM"
        assert server.command("GET", PARENT) == b"chain"


def gateway_rules(*, narrow: bool) -> list[str]:
    """The gateway's user, with the narrower patterns where wanted."""
    patterns = re.search(r"^    (%R~tenant:.+)$", (DOCS / "tenants.md").read_text(), re.MULTILINE)
    assert patterns is not None
    words = rules("operators.md", "bakerygw")
    assert "~tenant:*" in words
    return [word for part in words for word in (patterns[1].split() if narrow and part == "~tenant:*" else [part])]


@pytest.mark.parametrize("narrow", [False, True])
@pytest_twisted.ensureDeferred
async def test_the_gateways_own_user_may_read_parents_and_do_its_work(narrow):
    from twisted.internet import reactor  # noqa: PLC0415

    with RedisServer() as server:
        version = int(re.search(rb"redis_version:(\d+)", server.command("INFO", "server"))[1])
        made = server.command("ACL", "SETUSER", "bakerygw", *gateway_rules(narrow=narrow))
        if narrow and version < 7:
            assert made.startswith(b"-ERR")  # as the page says
            return
        assert made == b"+OK"
        server.command("SET", PARENT, "chain")
        link, mirror = link_to(server, RecordingTelemetry(), username="bakerygw", password="PASSWORD"), Mirror()
        invalidations = invalidations_of(server, link, mirror, username="bakerygw", password="PASSWORD")
        await link.start()
        invalidations.start()
        await trusted(mirror)
        store = store_over(link, mirror)
        assert await RedisHierarchy(link, mirror, reactor).ancestors("shop") == ("chain",)
        await store.set_read_only("shop", ReadOnly(reason="held"))
        await store.subscription_changed("shop", 5.0)
        await store.clear_read_only("shop")
        assert (await store.flags("shop")).changed_at == 5.0
        if narrow:
            with pytest.raises(StoreUnavailable, match="NOPERM"):
                await link.call("SET", PARENT, "evil")
        await invalidations.stop()
        await link.stop()


@pytest_twisted.ensureDeferred
async def test_the_gateways_own_user_may_keep_the_history_of_alerts_and_publish_them():
    with RedisServer() as server:
        assert server.command("ACL", "SETUSER", "bakerygw", *gateway_rules(narrow=False)) == b"+OK"
        link = link_to(server, RecordingTelemetry(), username="bakerygw", password="PASSWORD")
        await link.start()
        log = RedisEventLog(link, clock=Clock(), history_events=2, history_s=60)
        said = [parse_alert("shop", b'{"message": "%d", "channels": ["email"]}' % number) for number in range(4)]
        await log.append(said)
        for number in range(3):
            await log.publish(parse_alert("shop", b'{"message": "m", "alert_id": "a-%d"}' % number))
        head = await log.head("shop")
        assert (await log.read("shop", head, count=9, max_bytes=999)).first == 6
        await log.begin_era(await log.era())
        assert (await log.head("shop")).epoch > head.epoch
        assert server.command("HGET", "bakerygw:notify:body", f"shop:{head.epoch}-1") == said[0].payload
        await link.stop()


@pytest_twisted.ensureDeferred
async def test_a_service_that_publishes_may_do_nothing_else():
    with RedisServer() as server:
        assert server.command("ACL", "SETUSER", "alerts", *rules("services.md", "alerting")) == b"+OK"
        assert await outcome(server, "alerts", "PUBLISH", "alerts:tenant:shop", "{}") == "OK"
        assert await outcome(server, "alerts", "PUBLISH", "bakerygw:signals", "{}") == "NOPERM"
        assert await outcome(server, "alerts", "GET", HOLD) == "NOPERM"


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_may_not_read_parents_grants_nothing():
    from twisted.internet import reactor  # noqa: PLC0415

    with RedisServer() as server:
        server.command("ACL", "SETUSER", "narrow", "on", ">PASSWORD", "~tenant:*:read_only", "&*", "+@all")
        server.command("SET", PARENT, "chain")
        link, mirror = link_to(server, RecordingTelemetry(), username="narrow", password="PASSWORD"), Mirror()
        await link.start()
        with pytest.raises(StoreUnavailable):
            await RedisHierarchy(link, mirror, reactor).ancestors("shop")
        await link.stop()
