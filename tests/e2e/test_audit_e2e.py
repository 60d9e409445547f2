"""The audit trail of two instances with a real Redis, and of one with a file: kept, exported, erased."""

import json
import re
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.e2e.calling import SALES, code_of, until
from tests.e2e.harness import Gateway, RecordingUpstream, answer, clean_environment
from tests.e2e.stage import NO_LIMITS
from tests.minting import OTHER_TENANT_ID, TENANT_ID, Issuer
from tests.redis_server import RedisServer
from tests.test_docs import page, rows

COMMAND = "import sys; from bakerygw.cli import main; sys.exit(main())"
LOGIN = "/api/v1/auth/login"
NOBODY = {"X-Tenant-ID": OTHER_TENANT_ID}
PROVOKED = {
    "login.failed",
    "request.refused",
    "demo.crossing",
    "admin.refused",
    "admin.tenant.read_only.set",
    "admin.tenant.read_only.cleared",
    "admin.tenant.subscription_changed",
    "admin.tenant.disconnected",
    "admin.log_level.set",
}


def documented_events() -> set[str]:
    """Every event in the operators' table."""
    section = page("docs/operators.md").partition("\n## Audit\n")[2].partition("\n## ")[0]
    table = section.partition("| event | when |")[2].partition("\n\n")[0]
    return set(re.findall(r"`([a-z_]+\.[a-z_.]+)`", "\n".join(line.split(" | ")[0] for line in table.splitlines())))


def documented_fields() -> set[str]:
    section = page("docs/operators.md").partition("\n## Audit\n")[2].partition("\n## ")[0]
    cells = [cell for row in rows(section) for cell in row[:1]]
    return set(re.findall(r"[a-z_]+", " ".join(cells))) | {"user", "instances"}


class Trail:
    """What `bakerygw audit` and Redis say, with the settings of a gateway."""

    def __init__(self, settings: dict[str, str | None], folder: Path) -> None:
        self._env, self._folder = clean_environment(settings, folder), folder

    def call(self, action: str, user: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", COMMAND, "audit", action, "--user", user],
            cwd=self._folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def export(self, user: str) -> list[dict[str, Any]]:
        """The head and the entries; nothing if nothing is kept."""
        done = self.call("export", user)
        assert done.returncode == (0 if done.stdout else 1), done
        return [json.loads(line) for line in done.stdout.splitlines()]


class Pair:
    def __init__(self, gateways: list[Gateway], auth: RecordingUpstream, other: redis.Redis, trail: Trail) -> None:
        self.gateways, self.auth, self.other, self.trail = gateways, auth, other, trail

    def raw(self) -> list[dict[str, Any]]:
        """All entries as they are in Redis."""
        streams = (self.other.xrange(name) for name in ("bakerygw:audit", "bakerygw:audit:refusals"))
        return [json.loads(fields[b"e"]) for stream in streams for _, fields in stream]

    def wait_for(self, number: int) -> None:
        """Until so many entries are in Redis."""
        until(lambda: len(self.raw()) >= number)

    def keys(self) -> set[bytes]:
        return set(self.other.scan_iter("bakerygw:audit-key:*"))


def settings_of(issuer: Issuer, service: RecordingUpstream, **more: str | None) -> dict[str, str | None]:
    return {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
        **NO_LIMITS,
        **more,
    }


@pytest.fixture(scope="module")
def pair(issuer: Issuer, service: RecordingUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two instances on one Redis; the logs of the second are anonymous."""
    with ExitStack() as running:
        server, auth = running.enter_context(RedisServer()), running.enter_context(RecordingUpstream())
        settings = settings_of(
            issuer, service, AUTH_SERVICE_URL=auth.url, REDIS_HOST=server.host, REDIS_PORT=str(server.port)
        )
        gateways = [
            running.enter_context(Gateway({**settings, "LOG_ANONYMIZE": anonymous})) for anonymous in ("false", "true")
        ]
        other = running.enter_context(redis.Redis(port=server.port))
        until(lambda: dict(other.pubsub_numsub("bakerygw:signals"))[b"bakerygw:signals"] == 2)
        yield Pair(gateways, auth, other, Trail(settings, tmp_path_factory.mktemp("operator")))


def refuse(gateway: Gateway, token: str) -> None:
    with gateway.client(token) as client:
        assert code_of(client.get(SALES, headers=NOBODY)) == (403, "tenant-forbidden")


def user(issuer: Issuer, **claims: Any) -> tuple[str, str]:
    """A new user's id and token."""
    its_id = str(uuid.uuid4())
    return its_id, issuer.token(user_id=its_id, email=f"{its_id[:8]}@panaderia.example", **claims)


def test_each_kind_of_event_is_kept_under_its_documented_name_and_fields(pair: Pair, issuer: Issuer) -> None:
    one, other = pair.gateways
    _, token = user(issuer)
    pair.other.set(f"tenant:{OTHER_TENANT_ID}:demo", "1")
    refuse(one, token)
    crossing = issuer.token(tenant_access=[{"id": OTHER_TENANT_ID, "role": "admin", "tier": "starter"}])
    pair.auth.always(answer(401, b'{"detail": "wrong password"}', reason="Unauthorized"))
    with other.client() as client:
        assert client.post(LOGIN, json={"email": "x@y.example", "password": "no"}).status_code == 401
        assert code_of(client.get(SALES)) == (401, "token-missing")
    with other.client(crossing) as client:
        assert code_of(client.get(SALES, headers=NOBODY)) == (403, "demo-isolation")
    with one.admin() as admin, other.admin(headers={"Authorization": "Bearer no"}) as stranger:
        tenant = f"/api/tenants/{TENANT_ID}"
        assert stranger.get(tenant).status_code == 401
        assert admin.put(f"{tenant}/read-only", json={"reason": "stock-taking", "by": "maria"}).status_code == 200
        assert admin.delete(f"{tenant}/read-only").status_code == 200
        assert admin.put("/api/log-level", json={"level": "INFO"}).status_code == 200
        assert admin.post(f"{tenant}/disconnect").json()["instances"] == 2
        assert admin.post(f"/api/tenants/{uuid.uuid4()}/subscription-changed").status_code == 200
    until(lambda: {entry["event"] for entry in pair.raw()} >= PROVOKED)
    assert {entry["event"] for entry in pair.raw()} == PROVOKED
    assert documented_events() > PROVOKED
    assert {name for entry in pair.raw() for name in entry} - {"sealed"} <= documented_fields()
    (hold,) = [entry for entry in pair.raw() if entry["event"] == "admin.tenant.read_only.set"]
    assert (hold["before"]["read_only"], hold["after"]["read_only"]["by"]) == (None, "maria")
    assert (hold["who"], hold["tenant_id"], hold["outcome"]) == ("admin", TENANT_ID, "done")
    (failed,) = [entry for entry in pair.raw() if entry["event"] == "login.failed"]
    assert (failed["client"], failed["route"]) == ("127.0.0.0/24", LOGIN)


def test_drain_is_kept_though_the_process_ends(issuer: Issuer, service: RecordingUpstream, pair: Pair) -> None:
    port = str(pair.other.connection_pool.connection_kwargs["port"])
    with Gateway(settings_of(issuer, service, REDIS_HOST="127.0.0.1", REDIS_PORT=port)) as gateway:
        with gateway.admin() as admin:
            assert admin.post("/api/drain").status_code == 202
        gateway.wait()
    assert "admin.drain" in {entry["event"] for entry in pair.raw()}


def test_one_users_entries_of_all_instances_are_exported_and_erased_and_the_others_stay_whole(
    pair: Pair, issuer: Issuer
) -> None:
    (ana, anas), (eva, evas) = user(issuer), user(issuer)
    before, start = pair.keys(), len(pair.raw())
    for gateway in pair.gateways:
        refuse(gateway, anas)
        refuse(gateway, evas)
    pair.wait_for(start + 4)
    head, *entries = pair.trail.export(ana)
    assert (head["user_id"], head["entries"]) == (ana, 2)
    for entry in entries:
        assert (entry["user_id"], entry["client"], entry["code"]) == (ana, "127.0.0.1", "tenant-forbidden")
        assert any(
            entry["request_id"] == event["request_id"] for of in pair.gateways for event in of.events("request.done")
        )
    everything = json.dumps(pair.raw())
    assert ana not in everything
    assert not any(entry["request_id"] in everything for entry in entries)
    assert len(pair.keys() - before) == 2
    raw_before = pair.raw()

    erased = pair.trail.call("erase", ana)
    assert (erased.returncode, erased.stderr) == (0, "")
    assert erased.stdout.startswith(f"erased: 2 entries about {ana} ")

    assert pair.trail.export(ana) == []
    assert pair.raw() == raw_before
    assert [entry["user_id"] for entry in pair.trail.export(eva)] == [eva] * 3
    for gateway in pair.gateways:  # both have been told, so nothing new is under the old key
        with gateway.client(anas) as client:
            client.get(SALES, headers={"X-Tenant-ID": "another"})
    pair.wait_for(start + 6)
    new_head, *new = pair.trail.export(ana)
    assert new_head["pseudonym"] != head["pseudonym"]
    assert not {entry["id"] for entry in new} & {entry["id"] for entry in entries}


def test_anonymous_logs_name_nobody_but_the_pseudonym_that_an_export_tells(pair: Pair, issuer: Issuer) -> None:
    plain, anonymous = pair.gateways
    ana, token = user(issuer)
    start = len(pair.raw())
    for gateway in pair.gateways:
        refuse(gateway, token)
        with gateway.client(token) as client:
            assert client.get(SALES).status_code == 200
    pair.wait_for(start + 2)
    pseudonym = pair.trail.export(ana)[0]["pseudonym"]
    lines = [event for event in anonymous.events("request.done") if event.get("user_id") == pseudonym]
    assert [line["status"] for line in lines] == [403, 200]
    assert {event["client"] for event in anonymous.log if "client" in event} == {"127.0.0.0/24"}
    assert not re.search(rf"{ana}|127\.0\.0\.1\"", anonymous.output.replace("127.0.0.1:", ""))
    assert ana in plain.output
    with anonymous.admin() as admin:
        assert {note["user"] for note in admin.get(f"/api/tenants/{TENANT_ID}").json()["refusals"]} >= {pseudonym}


def test_a_flood_is_few_entries(pair: Pair, issuer: Issuer) -> None:
    ana, token = user(issuer)
    before = len(pair.raw())
    with pair.gateways[0].client(token) as client:
        for _ in range(100):
            client.get(SALES, headers=NOBODY)
    pair.wait_for(before + 1)
    time.sleep(1.1)
    assert len(pair.raw()) == before + 1
    assert pair.trail.export(ana)[1]["code"] == "tenant-forbidden"


def test_while_redis_is_away_requests_go_on_and_entries_are_written_when_it_is_back(
    issuer: Issuer, service: RecordingUpstream, own_redis: RedisServer, tmp_path: Path
) -> None:
    settings = settings_of(issuer, service, REDIS_HOST=own_redis.host, REDIS_PORT=str(own_redis.port))
    trail = Trail(settings, tmp_path)
    (ana, anas), (eva, evas) = user(issuer), user(issuer)
    with Gateway(settings) as gateway, gateway.client(anas) as client:
        refuse(gateway, anas)
        until(lambda: trail.export(ana))
        own_redis.kill()
        until(lambda: client.get("/health").json()["redis"] == "disconnected")
        began = time.monotonic()
        refuse(gateway, evas)
        assert client.get(SALES).status_code == 200
        assert time.monotonic() - began < 8.0, "waited for Redis"
        away = trail.call("export", eva)
        assert (away.returncode, away.stdout) == (1, "")
        assert "did not answer" in away.stderr
        gateway.wait_for_event("audit.store", lambda event: event["state"] == "failing")
        own_redis.start()
        gateway.wait_for_event("audit.store", lambda event: event["state"] == "writing")
        assert [entry["code"] for entry in trail.export(eva)[1:]] == ["tenant-forbidden"]
        # This Redis has lost all that it knew. What is told of her from now on is hers all the same.
        assert code_of(client.post(SALES, headers=NOBODY)) == (403, "tenant-forbidden")
        assert until(lambda: trail.export(ana))[0]["entries"] == 1


def test_without_redis_the_trail_is_in_a_file(issuer: Issuer, service: RecordingUpstream, tmp_path: Path) -> None:
    settings = settings_of(issuer, service, XDG_STATE_HOME=str(tmp_path / "state"), LOG_ANONYMIZE="true")
    trail = Trail(settings, tmp_path)
    (ana, anas), (eva, evas) = user(issuer), user(issuer)
    with Gateway(settings) as gateway:
        refuse(gateway, anas)
        refuse(gateway, evas)
        kept = tmp_path / "state" / "bakerygw-audit.jsonl.refusals"
        until(lambda: kept.exists() and kept.read_bytes().count(b"\n") == 2)
        head = trail.export(ana)[0]
        assert trail.call("erase", ana).returncode == 0
        with gateway.client(anas) as client:
            # It looks once a second whether keys are gone; what it writes before that is nobody's.
            tenants = (f"another-{number}" for number in count())
            until(lambda: client.get(SALES, headers={"X-Tenant-ID": next(tenants)}) and trail.export(ana))
    new = trail.export(ana)
    assert len(new) >= 2
    assert new[0]["pseudonym"] != head["pseudonym"]
    assert len(trail.export(eva)) == 2
    files = list((tmp_path / "state").iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert not any(ana in path.read_text() for path in files)
    assert ana not in gateway.output


def test_where_the_file_cannot_be_written_the_gateway_serves_and_says_so(
    issuer: Issuer, service: RecordingUpstream, tmp_path: Path
) -> None:
    settings = settings_of(issuer, service, AUDIT_FILE="/proc/nowhere/audit.jsonl")
    with Gateway(settings) as gateway:
        refuse(gateway, issuer.token())
        told = gateway.wait_for_event("audit.store")
        assert (told["state"], "/proc/nowhere" in told["reason"]) == ("failing", True)
        with gateway.client(issuer.token()) as client:
            assert client.get(SALES).status_code == 200


def test_while_the_disk_is_full_requests_go_on_and_afterwards_the_file_is_whole(
    issuer: Issuer, service: RecordingUpstream, tmp_path: Path
) -> None:
    kept = tmp_path / "audit.jsonl.refusals"
    people = [user(issuer) for _ in range(3)]
    with Gateway(settings_of(issuer, service, AUDIT_FILE=str(tmp_path / "audit.jsonl"))) as gateway:
        refuse(gateway, people[0][1])
        before = until(lambda: kept.exists() and kept.read_bytes())
        _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (len(before) + 100, hard))
        refuse(gateway, people[1][1])
        told = gateway.wait_for_event("audit.store")
        assert (told["state"], str(kept) in told["reason"]) == ("failing", True)
        refuse(gateway, people[2][1])
        with gateway.client(people[0][1]) as client:
            assert client.get(SALES).status_code == 200
        assert kept.read_bytes() == before
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        gateway.wait_for_event("audit.store", lambda event: event["state"] == "writing")
        assert len(gateway.events("audit.store")) == 2
    lines = kept.read_bytes().splitlines(keepends=True)
    assert lines[0] == before
    assert [json.loads(line)["code"] for line in lines] == ["tenant-forbidden"] * 3
