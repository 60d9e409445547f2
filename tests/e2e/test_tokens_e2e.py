"""Who may come in: forged, broken and borrowed tokens against a real gateway."""

import base64
import hashlib
import hmac
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.e2e.calling import SALES, code_of
from tests.e2e.harness import Gateway, RecordingUpstream
from tests.minting import ABSENT, OTHER_TENANT_ID, TENANT_ID, Issuer, access, b64, unb64
from tests.patience import PATIENCE_S

Mint = Callable[[Issuer], str]


@pytest.fixture(scope="module")
def gateway(issuer: Issuer, service: RecordingUpstream) -> Iterator[Gateway]:
    settings = {
        "JWT_PUBLIC_KEY": issuer.public_pem,
        "SALES_SERVICE_URL": service.url,
        "RATE_LIMIT_REQUESTS": "100000",
    }
    with Gateway(settings) as running:
        yield running


def rewritten(token: str, header: dict[str, Any] | None = None, signature: str | None = None) -> str:
    """The token with another header or signature, without a key."""
    old_header, payload, old_signature = token.split(".")
    new_header = old_header if header is None else b64(json.dumps(header).encode())
    return ".".join((new_header, payload, old_signature if signature is None else signature))


def hmac_token(issuer: Issuer, secret: bytes) -> str:
    signed = f"{b64(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{b64(issuer.payload())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def with_algorithm(issuer: Issuer, algorithm: str) -> str:
    """Rightly signed with the issuer's key, by another algorithm than the pinned one."""
    return jwt.encode(issuer.claims(), issuer.private_pem, algorithm=algorithm)


def by_a_key_of(bits: int) -> Mint:
    key = rsa.generate_private_key(65537, bits)

    def mint(issuer: Issuer) -> str:
        signed = f"{b64(issuer.header())}.{b64(issuer.payload())}"
        return f"{signed}.{b64(jwt.get_algorithm_by_name('RS256').sign(signed.encode(), key))}"

    return mint


def claims(**overrides: Any) -> Mint:
    return lambda issuer: issuer.token(**overrides)


def header(**members: Any) -> Mint:
    return lambda issuer: issuer.with_header(members)


def payload_text(change: Callable[[str], str]) -> Mint:
    """Rightly signed, with the payload's JSON text changed."""
    return lambda issuer: issuer.signed(issuer.header(), change(issuer.payload().decode()).encode())


def header_text(text: str) -> Mint:
    return lambda issuer: issuer.signed(text.encode(), issuer.payload())


def foreign(kid: object = ABSENT, **members: Any) -> Mint:
    """Signed by an attacker's own key, with header parameters that point at it."""
    thief = Issuer()
    numbers = thief.key.public_key().public_numbers()
    jwk = {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB"}
    given = {name: jwk if value == "own-key" else value for name, value in members.items()}
    return lambda _: thief.with_header({"kid": kid, **given})


def non_canonical(issuer: Issuer) -> str:
    """The same signature bytes in another spelling: the unused bits of its last character set."""
    token = issuer.token()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spelt = token[:-1] + alphabet[alphabet.index(token[-1]) + 1]
    assert unb64(spelt.split(".")[2]) == unb64(token.split(".")[2])
    return spelt


FUTURE = int(time.time()) + 7200

ATTACKS: dict[str, Mint] = {
    **{
        f"alg {name}": lambda issuer, name=name: rewritten(issuer.token(), {"alg": name, "typ": "JWT"}, "")
        for name in ("none", "None", "nOnE", "NONE")
    },
    "alg none with a signature": lambda issuer: rewritten(issuer.token(), {"alg": "none"}),
    "alg in lower case": lambda issuer: rewritten(issuer.token(), {"alg": "rs256"}),
    "alg a list": header(alg=["RS256"]),
    "alg missing": header(alg=ABSENT),
    "HMAC with the public key": lambda issuer: hmac_token(issuer, issuer.public_pem.encode()),
    "HMAC with the key without its last newline": lambda issuer: hmac_token(issuer, issuer.public_pem.strip().encode()),
    "HMAC with nothing": lambda issuer: hmac_token(issuer, b""),
    "RS384 by the right key": lambda issuer: with_algorithm(issuer, "RS384"),
    "RS512 by the right key": lambda issuer: with_algorithm(issuer, "RS512"),
    "PS256 by the right key": lambda issuer: with_algorithm(issuer, "PS256"),
    "RS256 by a foreign key of 1024 bits": by_a_key_of(1024),
    "RS256 by a foreign key of 3072 bits": by_a_key_of(3072),
    "ES256": lambda _: Issuer(algorithm="ES256").token(),
    "EdDSA": lambda _: Issuer(algorithm="EdDSA").token(),
    "no signature": lambda issuer: issuer.token().rpartition(".")[0] + ".",
    "another token's signature": lambda issuer: rewritten(
        issuer.token(tenant_id=OTHER_TENANT_ID), None, issuer.token().split(".")[2]
    ),
    "another issuer": claims(iss="someone"),
    "an issuer of which ours is a prefix": claims(iss="bakery-auth.evil.example"),
    "a list of issuers": claims(iss=["bakery-auth"]),
    "no issuer": claims(iss=ABSENT),
    "an audience that nobody asked for": claims(aud="another-service"),
    "issued in the future": claims(iat=FUTURE, exp=FUTURE + 60),
    "not yet valid": claims(nbf=FUTURE, exp=FUTURE + 60),
    "no exp": claims(exp=ABSENT),
    "exp as text": claims(exp=str(FUTURE)),
    "exp true": claims(exp=True),
    "exp a list": claims(exp=[FUTURE]),
    "exp NaN": claims(exp=math.nan),
    "exp infinite": claims(exp=math.inf),
    "exp beyond every float": payload_text(lambda text: text.replace('"exp": ', '"exp": 1e400, "was": ')),
    "exp in milliseconds": claims(exp=FUTURE * 1000),
    "no iat": claims(iat=ABSENT),
    "crit unknown": header(crit=["x-unknown"], **{"x-unknown": 1}),
    "crit empty": header(crit=[]),
    "b64 false": header(crit=["b64"], b64=False),
    "kid a path to an empty file": foreign(kid="../../../../../../dev/null"),
    "kid SQL": foreign(kid="x' UNION SELECT 'key"),
    "kid a number": header(kid=7),
    "kid an object": header(kid={"a": 1}),
    "jku of an attacker": foreign(jku="http://127.0.0.1:1/keys.json"),
    "jku in a token of ours": header(jku="https://auth.example/keys.json"),
    "jwk of an attacker": foreign(jwk="own-key"),
    "x5u of an attacker": foreign(x5u="http://127.0.0.1:1/cert.pem"),
    "x5c in a token of ours": header(x5c=["MII"]),
    "typ of another kind": header(typ="secevent+jwt"),
    "a claim twice": payload_text(lambda text: text[:-1] + f', "tenant_id": "{OTHER_TENANT_ID}"}}'),
    "a nested name twice": payload_text(lambda text: text.replace('"tier": ', '"tier": "enterprise", "tier": ')),
    "alg twice": header_text('{"alg": "none", "alg": "RS256", "typ": "JWT"}'),
    "payload a list": payload_text(lambda text: f"[{text}]"),
    "payload no JSON": payload_text(lambda _: "hello"),
    "payload not UTF-8": lambda issuer: issuer.signed(issuer.header(), b'{"user_id": "\xff"}'),
    "payload very deep": payload_text(lambda _: '{"a":' + "[" * 2500 + "]" * 2500 + "}"),
    "a token of 9000 bytes": claims(padding="x" * 6500),
    "a refresh token by type": claims(type="refresh"),
    "a refresh token by typ": claims(typ="refresh"),
    "a refresh token by token_use": claims(token_use="refresh"),
    "no user": claims(user_id=ABSENT),
    "two users": claims(sub="someone-else"),
    "no tenant": claims(tenant_id=ABSENT),
    "tenant with a Redis pattern": claims(tenant_id="*"),
    "tenant with a colon": claims(tenant_id="a:read_only"),
    "user with a line end": claims(user_id="a\r\nX-Is-Admin: 1"),
    "email with a line end": claims(email="a@b.example\r\nX-User-Role: admin"),
    "role with a line end": claims(tenant_role="x\r\nX-Tenant-Id: y"),
    "a tier that is none": claims(subscription={"tier": "imperial", "status": "active", "valid_until": None}),
    "far too many tenants": claims(tenant_access=[{"id": f"t{n}"} for n in range(201)]),
    "trailing byte": lambda issuer: issuer.token() + "A",
    "trailing dot": lambda issuer: issuer.token() + ".",
    "fourth segment": lambda issuer: issuer.token() + ".e30",
    "padding": lambda issuer: issuer.token() + "==",
    "a signature spelt otherwise": non_canonical,
    "ordinary base64": lambda issuer: issuer.token().replace(".", "+.", 1),
    "an encrypted token's five segments": lambda _: "e30.a.b.c.d",
    "no dots": lambda _: "hello",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forged_or_broken_token_is_refused_and_reaches_no_service(
    gateway: Gateway, service: RecordingUpstream, issuer: Issuer, name: str
) -> None:
    token, reached = ATTACKS[name](issuer), len(service.requests)

    with gateway.client(token) as client:
        response = client.get(SALES)

    assert code_of(response) == (401, "token-invalid")
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert token not in response.text
    assert len(service.requests) == reached


@pytest.mark.parametrize("exp", [1, int(time.time()) - 3600], ids=["in 1970", "an hour ago"])
def test_a_token_that_has_ended_says_so(gateway: Gateway, service: RecordingUpstream, issuer: Issuer, exp: int) -> None:
    reached = len(service.requests)

    with gateway.client(issuer.token(iat=0, exp=exp)) as client:
        response = client.get(SALES)

    assert code_of(response) == (401, "token-expired")
    assert len(service.requests) == reached


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([], "token-missing"),
        (["Bearer {good}", "Bearer {good}"], "token-invalid"),
        (["Bearer {good}", "Basic YTpi"], "token-invalid"),
        (["Bearer {good}, Bearer {good}"], "token-invalid"),
        (["Bearer  {good}"], "token-invalid"),
        (["Bearer\t{good}"], "token-invalid"),
        (["Bearer"], "token-invalid"),
        (["Basic YTpi"], "token-invalid"),
        (["{good}"], "token-invalid"),
        (["Bearer {good} x"], "token-invalid"),
    ],
    ids=["none", "twice", "two schemes", "a list", "two spaces", "tab", "empty", "Basic", "bare", "more behind"],
)
def test_only_one_plain_bearer_header_counts(
    gateway: Gateway, service: RecordingUpstream, issuer: Issuer, values: list[str], code: str
) -> None:
    good, reached = issuer.token(), len(service.requests)
    lines = [f"Authorization: {value.format(good=good)}\r\n" for value in values]

    received = gateway.raw(f"GET {SALES} HTTP/1.1\r\nHost: x\r\n{''.join(lines)}\r\n".encode())

    assert received.startswith(b"HTTP/1.1 401 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["code"] == code
    assert len(service.requests) == reached


def test_a_good_token_passes_in_any_case_of_the_scheme(
    gateway: Gateway, service: RecordingUpstream, issuer: Issuer
) -> None:
    good = issuer.token()

    with gateway.client(headers={"Authorization": f"bEARER {good}"}) as client:
        assert client.get(SALES).status_code == 200

    assert service.requests[-1].value("Authorization") == f"bEARER {good}".encode()


def test_a_token_that_was_good_opens_nothing_with_one_bit_changed(
    gateway: Gateway, service: RecordingUpstream, issuer: Issuer
) -> None:
    good = issuer.token()
    with gateway.client(good) as client:
        assert client.get(SALES).status_code == 200
        assert client.get(SALES).status_code == 200
    reached = len(service.requests)

    with gateway.client() as client:
        for place in range(0, len(good), 23):
            for bit in (1, 2, 32):
                changed = good[:place] + chr(ord(good[place]) ^ bit) + good[place + 1 :]
                if not (changed[place].isprintable() and changed[place].isascii()) or changed[place] == " ":
                    continue
                response = client.get(SALES, headers={"Authorization": f"Bearer {changed}"})
                assert code_of(response) == (401, "token-invalid"), (place, bit)

    assert len(service.requests) == reached


def test_a_token_ends_at_its_time_although_it_was_verified_before(
    gateway: Gateway, service: RecordingUpstream, issuer: Issuer
) -> None:
    # Issued long ago, and within the ten seconds of leeway the very same token is taken; then it is not.
    now = time.time()
    token = issuer.token(iat=int(now) - 600, exp=int(now) - 7)
    with gateway.client(token) as client:
        assert client.get(SALES).status_code == 200
        deadline = time.monotonic() + PATIENCE_S
        while (response := client.get(SALES)).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)

    assert code_of(response) == (401, "token-expired")
    assert time.time() >= int(now) - 7 + 10


def test_an_unknown_kid_does_not_matter_where_there_is_one_key(gateway: Gateway, issuer: Issuer) -> None:
    with gateway.client(issuer.with_header({"kid": "2024-07"})) as client:
        assert client.get(SALES).status_code == 200


def test_the_service_is_told_the_verified_identity_and_nothing_forged(
    gateway: Gateway, service: RecordingUpstream, issuer: Issuer
) -> None:
    forged = {
        "X-User-Id": "root",
        "X-User-Role": "admin",
        "X-Tenant-Id": TENANT_ID,
        "X-Is-Demo": "true",
        "Connection": "X-User-Id, X-Tenant-Id",
    }
    with gateway.client(issuer.token(), headers=forged) as client:
        assert client.get(SALES).status_code == 200

    request = service.requests[-1]
    assert request.value("X-User-Id") == issuer.claims()["user_id"].encode()
    assert request.value("X-User-Role") == b"owner"
    assert request.value("X-Tenant-Id") == TENANT_ID.encode()
    assert request.value("X-Is-Demo") == b"false"


@pytest.mark.parametrize(
    ("overrides", "headers", "expected"),
    [
        ({}, {"X-Tenant-ID": OTHER_TENANT_ID}, (403, "tenant-forbidden")),
        ({}, {"X-Tenant-ID": "a:b"}, (400, "bad-request")),
        ({"is_demo": True, "demo_session_id": "s1"}, {"X-Tenant-ID": OTHER_TENANT_ID}, (403, "demo-isolation")),
        (
            {"tenant_access": [access(OTHER_TENANT_ID, "admin", "starter")]},
            {"X-Tenant-ID": OTHER_TENANT_ID},
            (200, ""),
        ),
        (
            {"subscription": {"tier": "starter", "status": "active", "valid_until": "2020-01-01T00:00:00Z"}},
            {},
            (402, "subscription-expired"),
        ),
        (
            {"subscription": {"tier": "starter", "status": "canceled", "valid_until": "2099-01-01T00:00:00Z"}},
            {},
            (402, "subscription-inactive"),
        ),
        ({"subscription": ABSENT}, {}, (503, "critical-check-unavailable")),
    ],
)
def test_a_verified_user_stays_within_tenant_and_subscription(
    gateway: Gateway,
    service: RecordingUpstream,
    issuer: Issuer,
    *,
    overrides: dict[str, Any],
    headers: dict[str, str],
    expected: tuple[int, str],
) -> None:
    reached = len(service.requests)

    with gateway.client(issuer.token(**overrides)) as client:
        response = client.get(SALES, headers=headers)

    assert code_of(response) == expected
    assert len(service.requests) - reached == (1 if expected[0] == 200 else 0)


def test_refusals_say_nothing_of_the_inside(gateway: Gateway, issuer: Issuer) -> None:
    words = ("Traceback", "bakerygw.", "cryptography", "signature", "/work", ".py")
    with gateway.client() as client:
        for mint in ATTACKS.values():
            text = client.get(SALES, headers={"Authorization": f"Bearer {mint(issuer)}"}).text
            assert not [word for word in words if word in text]


def test_tokens_stay_out_of_the_log(gateway: Gateway, issuer: Issuer) -> None:
    good, bad = issuer.token(), by_a_key_of(2048)(issuer)
    with gateway.client() as client:
        client.get(SALES, headers={"Authorization": f"Bearer {good}"})
        client.get(SALES, headers={"Authorization": f"Bearer {bad}"})
        last = client.get(SALES, params={"token": good}).headers["x-request-id"]
    gateway.wait_for_event("request.done", lambda event: event["request_id"] == last)

    assert good.split(".")[2] not in gateway.output
    assert bad.split(".")[2] not in gateway.output
    assert base64.urlsafe_b64encode(b'{"alg"').decode()[:6] not in gateway.output


def test_a_refusal_ahead_of_the_body_says_that_the_connection_ends(gateway: Gateway, issuer: Issuer) -> None:
    head = f"POST {SALES} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n".encode()

    early = gateway.raw(head)
    late = gateway.raw(head + b"hello")

    assert early.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" in early
    assert late.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nConnection: close\r\n" not in late
