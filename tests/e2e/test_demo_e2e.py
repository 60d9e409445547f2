"""`--demo`: every line of its banner, pasted into a shell, does what it says."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from bakerygw.demo.accounts import PASSWORD, demo_directory
from bakerygw.demo.banner import Command, banner_commands
from tests.e2e.calling import code_of, until
from tests.e2e.harness import Gateway, clean_environment, free_ports, run_twistd

MARK = "@@ line"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Gateway({"ADMIN_TOKEN": None}, demo=True) as running:
        until(lambda: "Paste into a shell" in running.output)
        yield running


@pytest.fixture(scope="module")
def commands(gateway: Gateway) -> list[Command]:
    wanted = banner_commands(
        public_url=gateway.base_url,
        admin_url=gateway.admin_url,
        admin_token_file=str(gateway.folder / "bakerygw-admin-token"),
        accounts=demo_directory(time.time).accounts,
    )
    until(lambda: wanted[-1].shell in gateway.output)
    return wanted


@pytest.fixture(scope="module")
def took() -> list[float]:
    """How many seconds all lines took."""
    return []


@pytest.fixture(scope="module")
def printed(gateway: Gateway, commands: list[Command], took: list[float]) -> list[str]:
    """What each line printed, all run in one shell from top to bottom."""
    assert shutil.which("curl"), "the banner's lines need curl"
    script = "".join(f"echo '{MARK} {number}'\n{command.shell}\n" for number, command in enumerate(commands))
    began = time.monotonic()
    ran = subprocess.run(
        ["sh"],
        input=script + f"echo '{MARK} {len(commands)}'\n",
        env=clean_environment({}, gateway.folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    took.append(time.monotonic() - began)
    marks = list(re.finditer(rf"{MARK} \d+\n", ran.stdout))
    assert len(marks) == len(commands) + 1, ran.stdout
    return [ran.stdout[one.end() : two.start()] for one, two in pairwise(marks)]


def test_the_lines_are_those_of_the_banner(gateway: Gateway, commands: list[Command]) -> None:
    places = [gateway.output.find(command.shell + "\n") for command in commands]

    assert -1 not in places
    assert places == sorted(places)
    assert all(f"# {command.title}" in gateway.output for command in commands if command.title)


def test_every_line_does_what_it_says(commands: list[Command], printed: list[str]) -> None:
    wrong = [
        f"{command.title or command.shell}: expected {command.expect!r}, got {text!r}"
        for command, text in zip(commands, printed, strict=True)
        if command.expect not in text or "not found" in text
    ]

    assert wrong == []


def test_there_is_a_line_for_each_refusal(commands: list[Command]) -> None:
    expected = " ".join(command.expect for command in commands)

    for code in ("subscription-expired", "tenant-read-only", "tenant-forbidden", "demo-isolation", "429"):
        assert code in expected


def test_the_excess_is_refused_only_beyond_the_limit(printed: list[str], took: list[float]) -> None:
    counted = dict(reversed(line.split()) for line in printed[-1].splitlines())

    assert set(counted) == {"200", "429"}
    assert 300 <= int(counted["200"]) <= 301 + 5 * took[0]  # five come back in a second while it runs
    assert int(counted["200"]) + int(counted["429"]) == 400


def test_the_banner_names_addresses_and_every_account(gateway: Gateway) -> None:
    for text in (gateway.base_url, gateway.admin_url, PASSWORD, f"{gateway.base_url}/docs"):
        assert text in gateway.output
    assert [a.email for a in demo_directory(time.time).accounts if a.email not in gateway.output] == []


def test_it_listens_on_loopback_only(gateway: Gateway) -> None:
    sockets = Path(f"/proc/{gateway.pid}/net/tcp").read_text().splitlines()[1:]
    inodes = {os.readlink(link) for link in Path(f"/proc/{gateway.pid}/fd").iterdir() if link.is_symlink()}
    listening = [
        fields[1]
        for fields in (line.split() for line in sockets)
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes
    ]

    assert len(listening) > 10  # the gateway, its admin port and the services
    assert {address.partition(":")[0] for address in listening} == {"0100007F"}


def test_every_account_signs_in_and_sees_itself() -> None:
    with Gateway(demo=True) as other, other.client() as client:
        for account in demo_directory(time.time).accounts:
            signed_in = client.post("/api/v1/auth/login", json={"email": account.email, "password": PASSWORD})
            assert signed_in.status_code == 200, account.email
            token = signed_in.json()["access_token"]
            me = client.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"})
            assert (me.status_code, me.json()["email"]) == (200, account.email)
        wrong = client.post("/api/v1/auth/login", json={"email": account.email, "password": "wrong"})
        assert wrong.status_code == 401


def test_all_services_are_healthy_and_the_documentation_is_served(gateway: Gateway) -> None:
    with gateway.client() as client:
        until(lambda: set(client.get("/health").json()["services"].values()) == {"healthy"})
        health = client.get("/health").json()
        assert (health["status"], health["redis"]) == ("healthy", "embedded")
        assert len(health["services"]) >= 16
        assert client.get("/openapi.json").json()["openapi"].startswith("3.1")
        page = client.get("/docs")
        assert page.status_code == 200
        links = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
        assert links
        assert not [link for link in links if "//" in link]
        for link in links:
            assert client.get(httpx.URL(f"{gateway.base_url}/docs").join(link).path).status_code == 200, link


def test_tokens_of_one_demo_do_not_open_another(gateway: Gateway) -> None:
    with Gateway(demo=True) as other, other.client() as client:
        token = client.post("/api/v1/auth/login", json={"email": "ana@espiga.example", "password": PASSWORD}).json()[
            "access_token"
        ]

    with gateway.client(token) as client:
        assert code_of(client.get("/api/v1/sales")) == (401, "token-invalid")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ENVIRONMENT": "prod"}, "ENVIRONMENT"),
        ({"ENVIRONMENT": "prod", "TRUSTED_PROXIES": "10.0.0.0/8"}, "ENVIRONMENT"),
        ({"HOST": "0.0.0.0"}, "HOST"),
        ({"HOST": "::"}, "HOST"),
        ({"ADMIN_HOST": "0.0.0.0", "ADMIN_TOKEN": "x" * 20}, "ADMIN_HOST"),
        ({"LISTEN": "tcp:0"}, "LISTEN"),
    ],
)
def test_it_refuses_prod_and_other_networks(settings: dict[str, str], named: str) -> None:
    public, admin = free_ports(2)
    ended = run_twistd("--demo", env={"PORT": str(public), "ADMIN_PORT": str(admin), **settings})

    assert ended.returncode == 1
    assert any(line.startswith(f"bakerygw: {named}:") and "demo" in line for line in ended.stdout.splitlines())
