import hashlib
import hmac
import json
import string

import pytest
from _pytest.mark import ParameterSet

from bakerygw.core.claims import MAX_TOKEN_BYTES, Claims
from bakerygw.ports import TokenRefused
from bakerygw.tokens.keys import PemKey, VerificationKey, load_public_key
from bakerygw.tokens.verifier import TokenVerifier
from tests.minting import ABSENT, TENANT_ID, USER_ID, Issuer, b64, join, unb64

NOW = 1_800_000_000
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"

ISSUER = Issuer(now=lambda: NOW)
STRANGER = Issuer(now=lambda: NOW)
STRANGER_3072 = Issuer(bits=3072, now=lambda: NOW)
ELLIPTIC = Issuer(algorithm="ES256", now=lambda: NOW)
KEY = load_public_key(ISSUER.public_pem, "RS256")


class Wall:
    """A clock set by hand, of the wall or a steady one."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


class KeysById:
    """A key set that knows one key id."""

    def key_for(self, kid: str | None) -> VerificationKey | None:
        return VerificationKey.of(KEY) if kid == "k1" else None

    @property
    def thumbprints(self) -> frozenset[bytes]:
        return frozenset((VerificationKey.of(KEY).thumbprint,))


def verifier(
    clock: Wall | None = None,
    *,
    steady: Wall | None = None,
    audience: str | None = None,
    leeway_s: float = 10,
    cache_ttl_s: float = 900,
    cache_size: int = 100,
) -> TokenVerifier:
    return TokenVerifier(
        PemKey(KEY),
        algorithm="RS256",
        issuer="bakery-auth",
        audience=audience,
        leeway_s=leeway_s,
        cache_ttl_s=cache_ttl_s,
        cache_size=cache_size,
        now=clock or Wall(),
        seconds=steady or Wall(),
    )


def refusal(token: str | bytes, tokens: TokenVerifier | None = None) -> tuple[str, str]:
    """Code and reason with which a token is refused; nothing may be remembered of it."""
    raw = token.encode() if isinstance(token, str) else token
    tokens = tokens or verifier()
    with pytest.raises(TokenRefused) as caught:
        tokens.verify(raw)
    assert tokens.known(raw) is None
    return caught.value.code, caught.value.reason


def test_good_token_gives_its_claims() -> None:
    claims = verifier().verify(ISSUER.token(jti="j1").encode())
    assert isinstance(claims, Claims)
    assert (claims.user_id, claims.tenant_id, claims.role, claims.jti) == (USER_ID, TENANT_ID, "owner", "j1")
    assert (claims.iat, claims.exp) == (NOW, NOW + 1800)


@pytest.mark.parametrize("algorithm", ["RS512", "PS256", "ES256", "ES512", "EdDSA"])
def test_other_algorithms_can_be_pinned(algorithm: str) -> None:
    issuer = Issuer(algorithm=algorithm, now=lambda: NOW)
    tokens = TokenVerifier(
        PemKey(load_public_key(issuer.public_pem, algorithm)),
        algorithm=algorithm,
        issuer="bakery-auth",
        audience=None,
        leeway_s=0,
        cache_ttl_s=900,
        now=Wall(),
        seconds=Wall(),
    )
    assert tokens.verify(issuer.token().encode()).user_id == USER_ID
    assert refusal(ISSUER.token(), tokens) == ("token-invalid", "algorithm")
    assert refusal(ISSUER.with_header({"alg": algorithm}), tokens) == ("token-invalid", "signature")


def test_hmac_cannot_be_pinned() -> None:
    with pytest.raises(ValueError, match="HS256"):
        TokenVerifier(
            PemKey(KEY),
            algorithm="HS256",
            issuer="bakery-auth",
            audience=None,
            leeway_s=0,
            cache_ttl_s=900,
            now=Wall(),
            seconds=Wall(),
        )


@pytest.mark.parametrize(
    "alg",
    [
        *("none", "None", "nOnE", "NONE", "", "rs256", "RS256 ", "RS384", "RS512", "PS256", "HS256", "ES256"),
        *(None, ABSENT, ["RS256"], {"RS256": 1}, 256, True),
    ],
)
def test_algorithm_other_than_the_pinned_text_is_refused(alg: object) -> None:
    assert refusal(ISSUER.with_header({"alg": alg})) == ("token-invalid", "algorithm")


@pytest.mark.parametrize("signature", [b"", b"\x00"])
def test_unsigned_token_is_refused(signature: bytes) -> None:
    header = b'{"alg":"none","typ":"JWT"}'
    reason = "algorithm" if signature else "form"
    assert refusal(join(header, ISSUER.payload(), signature)) == ("token-invalid", reason)


@pytest.mark.parametrize("pem", [ISSUER.public_pem, ISSUER.public_pem.strip(), ISSUER.public_pem + "\n"], ids=len)
@pytest.mark.parametrize(("alg", "reason"), [("HS256", "algorithm"), ("RS256", "signature")])
def test_hmac_under_the_public_key_is_refused(pem: str, alg: str, reason: str) -> None:
    signing_input = f"{b64(json.dumps({'alg': alg, 'typ': 'JWT'}).encode())}.{b64(ISSUER.payload())}"
    signature = hmac.new(pem.encode(), signing_input.encode(), hashlib.sha256).digest()
    assert refusal(f"{signing_input}.{b64(signature)}") == ("token-invalid", reason)


@pytest.mark.parametrize("issuer", [STRANGER, STRANGER_3072, ELLIPTIC])
def test_signature_of_another_key_is_refused(issuer: Issuer) -> None:
    header, payload, _ = issuer.with_header({"alg": "RS256"}).split(".")
    signed = issuer.signed_text(f"{header}.{payload}")
    assert refusal(signed) == ("token-invalid", "signature")


def test_signature_of_another_token_is_refused() -> None:
    header, payload, _ = ISSUER.token().split(".")
    signature = ISSUER.token(user_id="someone").split(".")[2]
    assert refusal(f"{header}.{payload}.{signature}") == ("token-invalid", "signature")


@pytest.mark.parametrize(
    "parameters",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"crit": None},
        {"crit": ["b64"], "b64": True},
        {"b64": False},
        {"b64": True},
        {"jku": "https://evil.example/keys.json"},
        {"x5u": "https://evil.example/cert.pem"},
        {"x5c": ["MII"]},
        {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
        {"jwk": None},
    ],
)
def test_header_with_extensions_or_its_own_key_is_refused(parameters: dict[str, object]) -> None:
    assert refusal(ISSUER.with_header(parameters)) == ("token-invalid", "header-extension")


@pytest.mark.parametrize("typ", ["refresh", "JWS", "JOSE", "id+jwt", "logout+jwt", "", 1, None, ["JWT"]])
def test_header_of_another_type_is_refused(typ: object) -> None:
    assert refusal(ISSUER.with_header({"typ": typ})) == ("token-invalid", "header-typ")


@pytest.mark.parametrize("typ", [ABSENT, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_header_may_say_that_it_is_an_access_token(typ: object) -> None:
    assert verifier().verify(ISSUER.with_header({"typ": typ}).encode()).user_id == USER_ID


@pytest.mark.parametrize("kid", ["main", "../../etc/passwd", "/dev/null", "http://evil.example", "' UNION SELECT 1 --"])
def test_key_id_chooses_no_other_key(kid: str) -> None:
    assert verifier().verify(ISSUER.with_header({"kid": kid}).encode()).user_id == USER_ID
    signed = STRANGER.with_header({"kid": kid})
    assert refusal(signed) == ("token-invalid", "signature")


@pytest.mark.parametrize("kid", [1, ["main"], {"a": 1}, True])
def test_key_id_that_is_no_text_is_refused(kid: object) -> None:
    assert refusal(ISSUER.with_header({"kid": kid})) == ("token-invalid", "header-kid")


def test_unknown_key_id_is_refused() -> None:
    tokens = TokenVerifier(
        KeysById(),
        algorithm="RS256",
        issuer="bakery-auth",
        audience=None,
        leeway_s=0,
        cache_ttl_s=900,
        now=Wall(),
        seconds=Wall(),
    )
    assert tokens.verify(ISSUER.with_header({"kid": "k1"}).encode()).user_id == USER_ID
    assert refusal(ISSUER.with_header({"kid": "k2"}), tokens) == ("token-invalid", "unknown-key")
    assert refusal(ISSUER.token(), tokens) == ("token-invalid", "unknown-key")


@pytest.mark.parametrize(
    "iss",
    [ABSENT, None, "", "bakery", "bakery-auth2", "Bakery-Auth", "bakery-auth ", "evil", ["bakery-auth"], {"a": 1}, 1],
)
def test_other_issuer_is_refused(iss: object) -> None:
    assert refusal(ISSUER.token(iss=iss)) == ("token-invalid", "issuer")


@pytest.mark.parametrize("aud", ["bakerygw", ["bakerygw"], [], "", {}])
def test_audience_is_refused_where_none_is_configured(aud: object) -> None:
    assert refusal(ISSUER.token(aud=aud)) == ("token-invalid", "audience")


@pytest.mark.parametrize("aud", [ABSENT, None, "", "other", "bakerygw2", "bakery", ["other"], [["bakerygw"]], [], {}])
def test_configured_audience_must_be_named(aud: object) -> None:
    assert refusal(ISSUER.token(aud=aud), verifier(audience="bakerygw")) == ("token-invalid", "audience")


@pytest.mark.parametrize("aud", ["bakerygw", ["other", "bakerygw"]])
def test_configured_audience_passes(aud: object) -> None:
    assert verifier(audience="bakerygw").verify(ISSUER.token(aud=aud).encode()).user_id == USER_ID


@pytest.mark.parametrize(
    ("overrides", "leeway_s", "code", "reason"),
    [
        ({"exp": NOW}, 0, "token-expired", "expired"),
        ({"exp": NOW - 10}, 10, "token-expired", "expired"),
        ({"exp": 0}, 10, "token-expired", "expired"),
        ({"iat": NOW + 11}, 10, "token-invalid", "issued-in-future"),
        ({"iat": NOW + 1}, 0, "token-invalid", "issued-in-future"),
        ({"nbf": NOW + 11}, 10, "token-invalid", "not-yet-valid"),
        ({"exp": ABSENT}, 10, "token-invalid", "exp"),
        ({"exp": str(NOW + 1800)}, 10, "token-invalid", "exp"),
        ({"exp": True}, 10, "token-invalid", "exp"),
        ({"exp": [NOW + 1800]}, 10, "token-invalid", "exp"),
        ({"exp": float("nan")}, 10, "token-invalid", "not-finite"),
        ({"exp": float("inf")}, 10, "token-invalid", "not-finite"),
        ({"exp": NOW * 1000}, 10, "token-invalid", "exp"),
        ({"iat": ABSENT}, 10, "token-invalid", "iat"),
        ({"iat": str(NOW)}, 10, "token-invalid", "iat"),
        ({"nbf": str(NOW)}, 10, "token-invalid", "nbf"),
    ],
)
def test_time_claims_are_held_to(overrides: dict[str, object], leeway_s: float, code: str, reason: str) -> None:
    assert refusal(ISSUER.token(**overrides), verifier(leeway_s=leeway_s)) == (code, reason)


def test_expiry_of_infinite_size_is_refused() -> None:
    payload = ISSUER.payload(exp="@").replace(b'"@"', b"1e400")
    assert refusal(ISSUER.signed(ISSUER.header(), payload)) == ("token-invalid", "exp")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"user_id": ABSENT}, "user_id"),
        ({"user_id": 1}, "user_id"),
        ({"sub": "someone-else"}, "user_id"),
        ({"tenant_id": ABSENT}, "tenant_id"),
        ({"tenant_id": "a/b"}, "tenant_id"),
        ({"jti": 1}, "jti"),
        ({"email": "a@b\r\nX-User-Role: owner"}, "email"),
        ({"type": "refresh"}, "not-an-access-token"),
        ({"typ": "refresh"}, "not-an-access-token"),
        ({"token_use": "refresh"}, "not-an-access-token"),
        ({"subscription": {"tier": "gold", "status": "active"}}, "subscription"),
    ],
)
def test_signed_but_unfit_claims_are_refused(overrides: dict[str, object], reason: str) -> None:
    assert refusal(ISSUER.token(**overrides)) == ("token-invalid", reason)


@pytest.mark.parametrize(
    ("header", "payload", "reason"),
    [
        (b'{"alg":"RS256","alg":"RS256"}', None, "duplicate-name"),
        (b'{"alg":"RS256","x":{"a":1,"a":2}}', None, "duplicate-name"),
        (None, b'{"a":{"b":[{"c":1,"c":1}]}}', "duplicate-name"),
        (None, ISSUER.payload()[:-1] + b', "exp": 1900000000}', "duplicate-name"),
        (b'["RS256"]', None, "not-an-object"),
        (b'"RS256"', None, "not-an-object"),
        (None, b"[]", "not-an-object"),
        (b'{"alg":"RS256","x":"\xff"}', None, "not-json"),
        (None, ISSUER.payload()[:-1] + b', "x": "\xff"}', "not-json"),
        (None, ISSUER.payload() + b"{}", "not-json"),
        (b"{" + b'"a":[' * 500, None, "too-deep"),
        (None, b"[" * 3000, "too-deep"),
    ],
)
def test_header_and_payload_are_strict_json(header: bytes | None, payload: bytes | None, reason: str) -> None:
    token = ISSUER.signed(header or ISSUER.header(), payload or ISSUER.payload())
    assert refusal(token) == ("token-invalid", reason)


def mangled() -> list[ParameterSet]:
    good = ISSUER.token()
    header, payload, signature = good.split(".")
    return [
        pytest.param("", "form", id="empty"),
        pytest.param("a", "form", id="one-part"),
        pytest.param(f"{header}.{payload}", "form", id="two-parts"),
        pytest.param(f"{header}.{payload}.", "form", id="no-signature"),
        pytest.param(f".{payload}.{signature}", "form", id="no-header"),
        pytest.param(f"{header}..{signature}", "form", id="no-payload"),
        pytest.param(good + ".", "form", id="dot-behind"),
        pytest.param(good + ".a", "form", id="fourth-part"),
        pytest.param(good + "\n", "form", id="newline-behind"),
        pytest.param(good + " ", "form", id="space-behind"),
        pytest.param(good + "\0", "form", id="nul-behind"),
        pytest.param(" " + good, "form", id="space-ahead"),
        pytest.param(good + "=", "form", id="padded"),
        pytest.param(good + "==", "form", id="padded-twice"),
        pytest.param(f"{header}=.{payload}.{signature}", "form", id="header-padded"),
        pytest.param(f"{header}.{payload}==.{signature}", "form", id="payload-padded"),
        pytest.param(f"{header}.{payload[:9]}\n{payload[9:]}.{signature}", "form", id="newline-inside"),
        pytest.param(good.replace(".", "%2e"), "form", id="escaped-dots"),
        pytest.param(f"{header}.{payload}.{signature[:-1]}+", "form", id="plus-sign"),
        pytest.param(f"{header}.{payload}.{signature[:-1]}\u00e9", "form", id="not-ascii"),
        pytest.param(good + ", " + good, "form", id="two-tokens"),
        pytest.param("A" * (MAX_TOKEN_BYTES + 1), "too-long", id="too-long"),
        pytest.param(f"{header}.{'A' * MAX_TOKEN_BYTES}.{signature}", "too-long", id="payload-too-long"),
        pytest.param(b64(b"[" * 100_000) + f".{payload}.{signature}", "too-long", id="deep-header"),
    ]


@pytest.mark.parametrize(("token", "reason"), mangled())
def test_text_that_is_no_compact_token_is_refused(token: str, reason: str) -> None:
    assert refusal(token) == ("token-invalid", reason)


def test_bytes_behind_the_signature_are_refused() -> None:
    code, reason = refusal(ISSUER.token() + "AAAA")
    assert (code, reason) in {("token-invalid", "signature"), ("token-invalid", "base64")}


def respelled(segment: str) -> str:
    """The same bytes with an unused bit of the last character set."""
    spelling = segment[:-1] + ALPHABET[ALPHABET.index(segment[-1]) | 1]
    assert spelling != segment
    assert unb64(spelling) == unb64(segment)
    return spelling


def test_part_spelled_otherwise_is_refused_though_rightly_signed() -> None:
    # Padding the JSON with spaces gives each part a last character with unused bits.
    header = b64(ISSUER.header() + b" " * (-(len(ISSUER.header()) + 1) % 3))
    payload = b64(ISSUER.payload() + b" " * (-(len(ISSUER.payload()) + 1) % 3))
    good = ISSUER.signed_text(f"{header}.{payload}")
    assert verifier().verify(good.encode()).user_id == USER_ID
    signature = good.rsplit(".", 1)[1]
    for other in (
        ISSUER.signed_text(f"{respelled(header)}.{payload}"),
        ISSUER.signed_text(f"{header}.{respelled(payload)}"),
        f"{header}.{payload}.{respelled(signature)}",
    ):
        assert refusal(other) == ("token-invalid", "base64")


def test_length_that_no_bytes_have_is_refused() -> None:
    header, payload, signature = ISSUER.token().split(".")
    odd = "A" * 5
    for token in (f"{odd}.{payload}.{signature}", f"{header}.{odd}.{signature}", f"{header}.{payload}.{odd}"):
        assert refusal(token) == ("token-invalid", "base64")


def test_verified_token_is_known_and_others_are_not() -> None:
    tokens = verifier()
    token = ISSUER.token().encode()
    assert tokens.known(token) is None
    claims = tokens.verify(token)
    assert tokens.known(token) is claims
    assert tokens.known(ISSUER.token(jti="other").encode()) is None


def test_known_token_with_any_one_bit_changed_is_unknown_and_refused() -> None:
    tokens = verifier()
    good = ISSUER.token().encode()
    tokens.verify(good)
    first, second = good.index(b"."), good.rindex(b".")
    for position in (0, first // 2, first - 1, first, first + 1, second - 1, second, second + 1, len(good) - 1):
        for bit in range(8):
            changed = bytearray(good)
            changed[position] ^= 1 << bit
            assert refusal(bytes(changed), tokens)[0] == "token-invalid"
    assert tokens.known(good) is not None


def test_known_token_ends_at_its_expiry() -> None:
    clock = Wall()
    tokens = verifier(clock, leeway_s=10)
    token = ISSUER.token(exp=NOW + 60).encode()
    tokens.verify(token)
    clock.now = NOW + 59.9
    assert tokens.known(token) is not None
    clock.now = NOW + 60
    assert tokens.known(token) is None


def test_token_within_the_leeway_passes_and_is_not_remembered() -> None:
    tokens = verifier(leeway_s=10, cache_size=1)
    lasting, ending = ISSUER.token().encode(), ISSUER.token(exp=NOW - 5).encode()
    tokens.verify(lasting)
    assert tokens.verify(ending).user_id == USER_ID
    assert tokens.known(ending) is None
    assert tokens.known(lasting) is not None


def test_known_token_is_forgotten_after_its_time_in_the_cache() -> None:
    steady = Wall()
    tokens = verifier(steady=steady, cache_ttl_s=100)
    token = ISSUER.token().encode()
    tokens.verify(token)
    steady.now += 99.9
    assert tokens.known(token) is not None
    steady.now += 0.1
    assert tokens.known(token) is None
    steady.now -= 100
    assert tokens.known(token) is None


@pytest.mark.parametrize("jump_s", [-86_400, 200])
def test_a_wall_clock_that_is_set_changes_nothing_of_its_time_in_the_cache(jump_s: float) -> None:
    wall, steady = Wall(), Wall()
    steady.now = 5.0  # what it counts from is no time of the wall
    tokens = verifier(wall, steady=steady, cache_ttl_s=100)
    token = ISSUER.token().encode()
    tokens.verify(token)
    wall.now += jump_s
    steady.now += 99.9
    assert tokens.known(token) is not None
    steady.now += 0.1
    assert tokens.known(token) is None


def test_a_wall_clock_that_is_set_back_keeps_no_token_beyond_its_end() -> None:
    wall, steady = Wall(), Wall()
    steady.now = 5.0  # what it counts from is no time of the wall
    tokens = verifier(wall, steady=steady)
    token = ISSUER.token(exp=NOW + 60).encode()
    tokens.verify(token)
    wall.now -= 3600
    steady.now += 59.9
    assert tokens.known(token) is not None
    steady.now += 0.1
    assert tokens.known(token) is None


def test_cache_is_bounded_and_forgets_the_least_recently_used() -> None:
    tokens = verifier(cache_size=2)
    first, second, third = (ISSUER.token(jti=name).encode() for name in "abc")
    tokens.verify(first)
    tokens.verify(second)
    assert tokens.known(first) is not None
    tokens.verify(third)
    assert tokens.known(second) is None
    assert tokens.known(first) is not None
    assert tokens.known(third) is not None


@pytest.mark.parametrize("settings", [{"cache_ttl_s": 0}, {"cache_size": 0}])
def test_cache_can_be_off(settings: dict[str, float]) -> None:
    tokens = verifier(**settings)  # type: ignore[arg-type]
    token = ISSUER.token().encode()
    assert tokens.verify(token).user_id == USER_ID
    assert tokens.known(token) is None


def test_peek_reads_claims_of_a_token_that_nobody_signed() -> None:
    tokens = verifier()
    token = join(b"{}", ISSUER.payload(exp=1), b"x").encode()
    claims = tokens.peek(token)
    assert claims is not None
    assert (claims.tenant_id, claims.exp) == (TENANT_ID, 1)
    assert tokens.known(token) is None


def test_digest_is_that_of_the_token_without_its_signature_verified_or_not() -> None:
    tokens = verifier()
    token = ISSUER.token().encode()
    expected = hashlib.sha256(token.rpartition(b".")[0]).hexdigest()
    unsigned = token.rpartition(b".")[0] + b".eA"
    peeked = [tokens.peek(token), tokens.peek(unsigned), tokens.verify(token), tokens.known(token)]
    assert [claims and claims.digest for claims in peeked] == [expected] * 4
    other = tokens.peek(ISSUER.token(jti="other").encode())
    assert other is not None
    assert other.digest != expected


@pytest.mark.parametrize(
    "token",
    [
        *(pytest.param(case.values[0], id=case.id) for case in mangled()),
        pytest.param(join(b"{}", b"[]", b"x"), id="list"),
        pytest.param(join(b"{}", b"\xff", b"x"), id="not-utf8"),
        pytest.param(join(b"{}", b"[" * 3000, b"x"), id="deep"),
        pytest.param(join(b"{}", ISSUER.payload(user_id="a b"), b"x"), id="bad-id"),
        pytest.param(join(b"{}", ISSUER.payload(exp="1"), b"x"), id="exp-as-text"),
        pytest.param("e30.AAAAA.eA", id="no-length-of-base64"),
    ],
)
def test_peek_has_nothing_to_say_of_malformed_tokens(token: str) -> None:
    assert verifier().peek(token.encode()) is None
