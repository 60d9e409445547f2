"""The banner: complete, pasteable, and its shell lines do what they say on the far side of a shell."""

import subprocess
from random import Random
from typing import Any

import pytest
import pytest_twisted
from demo_calls import NOW
from twisted.internet import reactor
from twisted.internet.utils import getProcessOutputAndValue

from bakerygw.demo.accounts import demo_directory
from bakerygw.demo.banner import Command, banner, banner_commands
from bakerygw.demo.services import DemoServices

DIRECTORY = demo_directory(lambda: NOW)


def commands(admin_file: str | None = "/run/admin file", public_url: str = "http://127.0.0.1:8000") -> list[Command]:
    return banner_commands(
        public_url=public_url,
        admin_url="http://127.0.0.1:9000",
        admin_token_file=admin_file,
        accounts=DIRECTORY.accounts,
    )


@pytest.fixture(scope="module")
def text() -> str:
    return banner(
        public_url="http://127.0.0.1:8000",
        admin_url="http://127.0.0.1:9000",
        admin_token_file="/run/bakerygw-admin-token",
        accounts=DIRECTORY.accounts,
        tenants=DIRECTORY.tenants,
        services={"auth": "http://127.0.0.1:4001", "sales": "http://127.0.0.1:4002"},
    )


def run(*lines: str, given: str = "") -> str:
    done = subprocess.run(["sh", "-c", "\n".join(lines)], input=given, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "word", ["/docs", "/health", "http://127.0.0.1:9000", "/run/bakerygw-admin-token", "auth :4001", "sales :4002"]
)
def test_the_banner_names_every_address(text: str, word: str) -> None:
    assert word in text


def test_the_banner_has_every_account_with_bakery_and_plan(text: str) -> None:
    for account in DIRECTORY.accounts:
        row = next(line for line in text.splitlines() if line.strip().startswith(account.email))
        tenant = DIRECTORY.tenants[account.tenant_id]
        assert all(part in row for part in (account.role, tenant.name, tenant.tier, tenant.valid_until[:10]))


def test_the_banner_prints_each_command_as_a_line_of_its_own(text: str) -> None:
    lines = text.splitlines()
    for command in commands("/run/bakerygw-admin-token"):
        assert command.shell in lines


def test_the_banner_fits_a_screen(text: str) -> None:
    assert len(text.splitlines()) <= 96
    assert max(map(len, text.splitlines())) <= 170


@pytest.mark.parametrize(
    "refusal",
    [
        "401 token-missing",
        "401 token-invalid",
        "402 subscription-expired",
        "403 tenant-read-only",
        "403 tenant-forbidden",
        "403 demo-isolation",
        "400 bad-request",
        "404 not-found",
        "429",
    ],
)
def test_there_is_a_line_for_each_refusal(refusal: str) -> None:
    assert any(command.expect.strip() == refusal for command in commands())


def test_a_shell_accepts_the_whole_banner_as_one_script() -> None:
    script = "\n".join(f"# {command.title}\n{command.shell}" for command in commands())
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_titles_can_be_pasted_where_comments_are_not_known() -> None:
    assert not any(set(command.title) & set("'\"`$();|&<>*?") for command in commands())


def test_all_lines_together_stay_below_the_limit_on_sign_ins() -> None:
    assert sum(command.shell.count("$(login ") for command in commands()) < 20


def test_variables_are_set_before_they_are_used() -> None:
    script = "curl() { :; }; cat() { :; }\n" + "\n".join(command.shell for command in commands())
    done = subprocess.run(["sh", "-u", "-c", script], capture_output=True, text=True, check=False)
    assert "not set" not in done.stderr


def test_why_shows_status_and_code_of_a_problem() -> None:
    why = next(command.shell for command in commands() if command.shell.startswith("why()"))
    problem = '{"type": "https://x/problems/a", "status": 402, "code": "subscription-expired", "tier": "starter"} 402\n'
    assert run(why, "why", given=problem) == "402 subscription-expired\n"
    assert run(why, "why", given=problem.replace(": ", ":")) == "402 subscription-expired\n"


def test_the_changed_token_differs_from_the_true_one() -> None:
    changed = next(command.shell for command in commands() if "somebody has changed" in command.title)
    argument = changed.partition("Bearer ")[2].partition('"')[0]
    assert run("ANA=head.payload.signature", f'echo "{argument}"') == "head.payload.signAAAAA\n"


def test_the_admin_token_comes_from_its_file_or_from_the_environment(tmp_path: Any) -> None:
    file = tmp_path / "admin token"
    file.write_text("s3cret\n")

    def token(commands_: list[Command]) -> str:
        line = next(command.shell for command in commands_ if command.shell.startswith("OP="))
        return run("ADMIN_TOKEN=given", line.partition(";")[0], 'echo "$OP"')

    assert token(commands(str(file))) == "s3cret\n"
    assert token(commands(None)) == "given\n"


@pytest_twisted.ensureDeferred
async def test_login_in_a_shell_picks_the_token_from_the_real_answer() -> None:
    services = DemoServices(reactor, now=lambda: NOW, random=Random(1))
    await services.start()
    try:
        preparation = [command.shell for command in commands(public_url=services.urls["auth"])[:4]]
        script = "\n".join([*preparation, "login ana@espiga.example"])
        output, errors, status = await getProcessOutputAndValue("/bin/sh", ["-c", script], env=None)
    finally:
        await services.stop()
    assert (status, errors) == (0, b"")
    assert len(output.strip().split(b".")) == 3
    assert b'"' not in output
