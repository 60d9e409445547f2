"""The `bakerygw` command: what it prints and how it ends."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from twisted.internet.defer import Deferred

from bakerygw.cli import main, run
from bakerygw.stores.audit_file import FileAudit
from bakerygw.telemetry.subjects import name_of
from tests.deferreds import success_of
from tests.e2e.harness import clean_environment


def invoke(*argv: str, **environ: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return run(argv, environ=environ, out=out, err=err), out.getvalue(), err.getvalue()


def private_pem(key: object, encryption: object = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


RSA = rsa.generate_private_key(65537, 2048)
PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "private.pem"
    file.write_bytes(private_pem(RSA))
    return file


def claims_of(token: str, **options: object) -> dict[str, object]:
    return jwt.decode(token.strip(), PUBLIC, algorithms=["RS256"], issuer="bakery-auth", **options)


def test_check_says_in_one_line_that_all_is_well() -> None:
    status, out, err = invoke("check", JWT_PUBLIC_KEY=PUBLIC, SALES_SERVICE_URL="http://a")
    assert (status, out, err) == (0, "configuration ok: 33 routes, 1 service\n", "")


def test_check_notes_that_the_public_map_would_not_be_asked() -> None:
    public = {"JWT_PUBLIC_KEY": PUBLIC, "NOMINATIM_URL": "https://nominatim.openstreetmap.org"}

    status, out, _ = invoke("check", **public)
    assert status == 0
    assert "NOMINATIM_USER_AGENT" in out
    assert "NOMINATIM" not in invoke("check", NOMINATIM_USER_AGENT="bakery-ia (ops@example.com)", **public)[1]
    assert "NOMINATIM" not in invoke("check", JWT_PUBLIC_KEY=PUBLIC, NOMINATIM_URL="http://map.internal")[1]


def test_check_prints_every_error_and_fails() -> None:
    status, out, err = invoke("check", PORT="x", LOG_LEVEL="y")
    assert (status, out) == (1, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["PORT", "LOG_LEVEL", "JWT_PUBLIC_KEY"]


def test_check_reads_the_file_named_and_knows_the_demo(tmp_path: Path) -> None:
    file = tmp_path / "gw.toml"
    file.write_text("port = 70000\n")
    assert invoke("check", "--demo") == (0, "configuration ok: 33 routes, 0 services and the demo's\n", "")
    status, _, err = invoke("check", "--demo", "--config", str(file))
    assert status == 1
    assert err.startswith("PORT: got '70000'")


def test_routes_prints_the_table(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_text(
        '[[route]]\nprefix = "/api/v1/sales/x"\nmethods = ["GET"]\n'
        "limit = { requests = 7, window_seconds = 9, shadow = true }\n"
    )
    environ = {"JWT_PUBLIC_KEY": PUBLIC, "SALES_SERVICE_URL": "http://a", "ROUTES_FILE": str(file)}
    status, out, _ = invoke("routes", **environ)
    rows = [line.split() for line in out.splitlines()]
    assert status == 0
    assert ["/api/v1/sales/**", "sales", "required", "any", "300/60s"] in rows
    assert ["/api/v1/sales/x/**", "sales", "required", "GET", "7/9s", "(shadow)"] in rows
    assert ["/api/v1/pos/**", "pos", "(no", "URL)", "required", "any", "300/60s"] in rows
    assert ["/health", "gateway", "public", "GET", "HEAD", "none"] in rows
    login = next(row for row in rows if row[0] == "/api/v1/auth/login")
    assert login[-5:] == ["POST", "300/60s,", "20/60s", "by", "address"]


def test_routes_shows_the_limits_stacked_upon_each_route(tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_text(
        '[[limit]]\nname = "a"\nby = "tenant"\ntier = "starter"\nrequests = 5\nwindow_seconds = 6\nshadow = true\n'
        '[[limit]]\nname = "b"\nby = "user"\nprefix = "/api/v1/pos"\nrequests = 7\nwindow_seconds = 8\n'
    )
    out = invoke("routes", JWT_PUBLIC_KEY=PUBLIC, SALES_SERVICE_URL="http://a", ROUTES_FILE=str(file))[1]
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["/api/v1/sales/**"].endswith(" 300/60s, 5/6s by tenant (starter) (shadow)")
    assert lines["/api/v1/pos/**"].endswith(", 5/6s by tenant (starter) (shadow), 7/8s by user")
    assert lines["/api/v1/auth/login"].endswith(" 300/60s, 20/60s by address")  # nobody's token is read there
    assert lines["/health"].endswith(" none")


def test_routes_of_a_broken_configuration_prints_the_errors() -> None:
    assert invoke("routes", PORT="x")[0] == 1


def test_a_token_has_the_claims_asked_for(key_file: Path) -> None:
    status, out, _ = invoke(
        *("token", "--private-key", str(key_file), "--user", "u1", "--tenant", "t1", "--role", "baker"),
        *("--tier", "starter", "--status", "past_due", "--valid-until", "2040-01-02T05:04:05+02:00"),
        *("--expires-in", "60", "--access", "t2:admin:enterprise", "--access", "t3:viewer:starter"),
        *("--demo-session", "d1", "--audience", "api"),
    )
    claims = claims_of(out, audience="api")
    issued = claims.pop("iat")
    until = "2040-01-02T03:04:05Z"
    assert status == 0
    assert claims.pop("exp") == issued + 60
    assert claims == {
        "user_id": "u1",
        "email": "u1@example.com",
        "tenant_id": "t1",
        "tenant_role": "baker",
        "subscription": {"tier": "starter", "status": "past_due", "valid_until": until},
        "tenant_access": [
            {"id": "t2", "role": "admin", "tier": "enterprise", "status": "past_due", "valid_until": until},
            {"id": "t3", "role": "viewer", "tier": "starter", "status": "past_due", "valid_until": until},
        ],
        "iss": "bakery-auth",
        "aud": "api",
        "is_demo": True,
        "demo_session_id": "d1",
    }


def test_an_ordinary_token_is_no_demo_token_and_lasts_an_hour(key_file: Path) -> None:
    claims = claims_of(invoke("token", "--key", str(key_file), "--tenant", "t1")[1])
    assert claims["exp"] - claims["iat"] == 3600
    assert "is_demo" not in claims
    assert "aud" not in claims


def test_a_token_may_be_minted_expired(key_file: Path) -> None:
    out = invoke("token", "--key", str(key_file), "--tenant", "t1", "--expires-in", "-5")[1]
    with pytest.raises(jwt.ExpiredSignatureError):
        claims_of(out)
    claims = claims_of(out, options={"verify_exp": False})
    assert claims["iat"] < claims["exp"]


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("ES256", ec.generate_private_key(ec.SECP256R1())),
        ("ES512", ec.generate_private_key(ec.SECP521R1())),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
        ("PS384", RSA),
    ],
)
def test_a_token_may_be_signed_by_other_algorithms(tmp_path: Path, algorithm: str, key: object) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(private_pem(key))
    status, out, _ = invoke("token", "--key", str(file), "--tenant", "t", "--algorithm", algorithm)
    assert status == 0
    assert jwt.decode(out.strip(), key.public_key(), algorithms=[algorithm])["tenant_id"] == "t"


@pytest.mark.parametrize(
    ("content", "algorithm", "word"),
    [
        (None, "RS256", "cannot be read"),
        (b"nonsense", "RS256", "not a private key"),
        (PUBLIC.encode(), "RS256", "not a private key"),
        (private_pem(RSA, BestAvailableEncryption(b"pw")), "RS256", "encrypted"),
        (private_pem(RSA), "ES256", "does not fit"),
        (private_pem(RSA), "EdDSA", "does not fit"),
        (private_pem(ec.generate_private_key(ec.SECP256R1())), "RS256", "does not fit"),
        (private_pem(ec.generate_private_key(ec.SECP256R1())), "ES384", "does not fit"),
    ],
)
def test_a_key_that_cannot_sign_is_told_in_one_line(
    tmp_path: Path, content: bytes | None, algorithm: str, word: str
) -> None:
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_bytes(content)
    status, out, err = invoke("token", "--key", str(file), "--tenant", "t", "--algorithm", algorithm)
    assert (status, out) == (1, "")
    assert word in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["--tenant", "a b"],
        ["--user", "x" * 65],
        ["--tier", "gold"],
        ["--role", "head baker"],
        ["--access", "t:head baker:starter"],
        ["--valid-until", "tomorrow"],
        ["--expires-in", "1h"],
        ["--expires-in", "99999999999999999999"],
        ["--access", "t:admin"],
        ["--access", "t:admin:gold"],
        ["--algorithm", "HS256"],
    ],
)
def test_a_misused_option_is_told_with_the_usage(
    key_file: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("token", "--key", str(key_file), "--tenant", "t", *wrong)[0] == 2
    assert f"argument {wrong[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "claim"), [(["--status", "past due"], "subscription"), (["--email", "a\nb@example.com"], "email")]
)
def test_a_token_that_the_gateway_would_refuse_is_not_minted(key_file: Path, wrong: list[str], claim: str) -> None:
    status, out, err = invoke("token", "--key", str(key_file), "--tenant", "t", *wrong)
    assert (status, out) == (1, "")
    assert err == f"bakerygw token: the gateway would refuse this token for its {claim}\n"


def test_main_reads_the_processs_own_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "x")
    assert main(["check", "--demo"]) == 1
    assert "PORT: got 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["routes --demo", "audit export --user ana --demo"])
def test_a_reader_that_has_seen_enough_is_no_fault(tmp_path: Path, words: str) -> None:
    trail = FileAudit(tmp_path / "audit.jsonl", days=365, clock=None, erased=str)
    success_of(Deferred.fromCoroutine(trail.keys({name_of("ana"): b"k" * 32})))
    theirs, ours = os.pipe()
    os.close(theirs)
    command = f"import sys; from bakerygw.cli import main; sys.exit(main({words.split()}))"
    environ = clean_environment({"AUDIT_FILE": str(tmp_path / "audit.jsonl")}, tmp_path)
    call = [sys.executable, "-c", command]
    done = subprocess.run(call, stdout=ours, stderr=subprocess.PIPE, env=environ, check=False, timeout=30)
    os.close(ours)
    assert (done.returncode, done.stderr) == (1, b"")


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bakerygw 0.")
    assert main([]) == 2
