"""`BearerTokens`: keys that come by URL, and seals of other instances, in front of the verifier."""

from hashlib import sha256
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from bakerygw.core.claims import Claims
from bakerygw.ports import CredentialsUnavailable, StoreUnavailable, TokenRefused
from bakerygw.tokens.bearer import BearerTokens
from bakerygw.tokens.jwks import KeySet, parse_key_set
from bakerygw.tokens.keys import ALGORITHMS, KeySource, PemKey, VerificationKey, load_public_key
from bakerygw.tokens.shared import SharedTokens
from bakerygw.tokens.token_seal import Rules, TokenSeal
from bakerygw.tokens.verifier import TokenVerifier
from tests.deferreds import failure_of, success_of
from tests.minting import USER_ID, Issuer
from tests.tokens.token_fakes import NOW, Shelf, Told, Wall, document, jwk

ISSUERS = {name: Issuer(algorithm=name, now=lambda: NOW) for name in sorted(ALGORITHMS)}
ED, OTHER_ED = ISSUERS["EdDSA"], Issuer(algorithm="EdDSA", now=lambda: NOW)
SECRET = "0123456789abcdef0123456789abcdef"
GOOD = ED.with_header({"kid": "a"}).encode()


class Keys:
    """A key set that the test changes; `arriving` is there after the next look."""

    def __init__(self, *issuers: tuple[str, Issuer]) -> None:
        self.set = self.of(*issuers)
        self.arriving: KeySet | None = None
        self.looks = 0

    @staticmethod
    def of(*issuers: tuple[str, Issuer]) -> KeySet | None:
        return parse_key_set(document(*(jwk(it, kid) for kid, it in issuers)), "EdDSA") if issuers else None

    def key_for(self, kid: str | None) -> VerificationKey | None:
        return self.set.key_for(kid) if self.set is not None else None

    @property
    def thumbprints(self) -> frozenset[bytes] | None:
        return None if self.set is None else self.set.thumbprints

    async def look_again(self) -> None:
        self.looks += 1
        self.set = self.arriving or self.set
        if self.set is None:
            raise CredentialsUnavailable


def verifier(keys: KeySource, clock: Wall | None = None, **settings: Any) -> TokenVerifier:
    given = {"algorithm": "EdDSA", "issuer": "bakery-auth", "audience": None, "leeway_s": 10, "cache_ttl_s": 900}
    return TokenVerifier(keys, **{**given, **settings}, now=clock or Wall(), seconds=Wall())


class Instance:
    """A gateway's tokens, over a shelf that it may share with others."""

    def __init__(self, shelf: Shelf, keys: Keys | None = None, clock: Wall | None = None, **settings: Any) -> None:
        self.clock, self.told, self.keys = clock or Wall(), Told(), keys or Keys(("a", ED))
        secret = settings.pop("secret", SECRET)
        self.verifier = verifier(self.keys, self.clock, **settings)
        rules = Rules(
            algorithm=settings.get("algorithm", "EdDSA"),
            issuer=settings.get("issuer", "bakery-auth"),
            audience=settings.get("audience"),
        )
        shared = SharedTokens(shelf, TokenSeal(secret, rules), ttl_s=900, now=self.clock, telemetry=self.told)  # type: ignore[arg-type]
        self.tokens = BearerTokens(self.verifier, keys=self.keys, shared=shared)
        self.signatures = 0
        checked = self.verifier._signature.verify

        def counted(*args: Any) -> bool:
            self.signatures += 1
            return checked(*args)

        self.verifier._signature.verify = counted  # type: ignore[method-assign]

    def verify(self, token: bytes = GOOD) -> "Deferred[Claims]":
        return Deferred.fromCoroutine(self.tokens.verify(token))


def reason_of(verifying: "Deferred[Claims]") -> tuple[str, str]:
    refused = failure_of(verifying, TokenRefused)
    assert isinstance(refused, TokenRefused)
    return refused.code, refused.reason


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


# Algorithms.


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize("source", ["pem", "key set"])
def test_every_algorithm_checks_real_tokens_by_pem_and_by_key_set(algorithm: str, source: str) -> None:
    issuer = ISSUERS[algorithm]
    keys: KeySource = (
        PemKey(load_public_key(issuer.public_pem, algorithm))
        if source == "pem"
        else parse_key_set(document(*(jwk(it, name) for name, it in ISSUERS.items() if name in {algorithm})), algorithm)
    )
    tokens = verifier(keys, algorithm=algorithm)
    header = {"kid": algorithm}
    assert tokens.verify(issuer.with_header(header).encode()).user_id == USER_ID
    for name, other in ISSUERS.items():
        if name != algorithm:
            with pytest.raises(TokenRefused, match="algorithm"):
                tokens.verify(other.with_header(header).encode())
            with pytest.raises(TokenRefused, match="signature"):
                tokens.verify(other.with_header({**header, "alg": algorithm}).encode())
    stranger = Issuer(algorithm=algorithm, now=lambda: NOW)
    with pytest.raises(TokenRefused, match="signature"):
        tokens.verify(stranger.with_header(header).encode())


# Keys that come by URL.


def test_a_missing_key_is_looked_for_and_the_token_tried_once_more() -> None:
    keys = Keys(("b", OTHER_ED))
    keys.arriving = Keys.of(("a", ED), ("b", OTHER_ED))
    tokens = BearerTokens(verifier(keys), keys=keys)
    assert success_of(Deferred.fromCoroutine(tokens.verify(GOOD))).user_id == USER_ID
    assert keys.looks == 1


def test_a_key_that_is_nowhere_is_refused_after_one_look() -> None:
    keys = Keys(("b", OTHER_ED))
    tokens = BearerTokens(verifier(keys), keys=keys)
    assert reason_of(Deferred.fromCoroutine(tokens.verify(GOOD))) == ("token-invalid", "unknown-key")
    assert keys.looks == 1


def test_without_any_key_it_can_not_be_told() -> None:
    keys = Keys()
    tokens = BearerTokens(verifier(keys), keys=keys)
    failure_of(Deferred.fromCoroutine(tokens.verify(GOOD)), CredentialsUnavailable)


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"garbage",
        GOOD[:-4] + b"AAAA",
        ED.with_header({"kid": "a"}, exp=1).encode(),
        ED.with_header({"alg": "none"}).encode(),
    ],
)
def test_no_other_refusal_makes_anybody_look_for_keys(token: bytes) -> None:
    keys = Keys(("a", ED))
    tokens = BearerTokens(verifier(keys), keys=keys)
    failure_of(Deferred.fromCoroutine(tokens.verify(token)), TokenRefused)
    assert keys.looks == 0


def test_tokens_of_a_key_that_was_taken_away_are_forgotten_and_others_are_not() -> None:
    keys = Keys(("a", ED), ("b", OTHER_ED))
    tokens = verifier(keys)
    other = OTHER_ED.with_header({"kid": "b"}).encode()
    demo = ED.with_header({"kid": "a"}, is_demo=True, demo_session_id="s").encode()
    for token in (GOOD, other, demo):
        tokens.verify(token)
    keys.set = Keys.of(("b", OTHER_ED))
    assert keys.set is not None
    tokens.keep_only(keys.set.thumbprints)
    assert [tokens.known(token) is not None for token in (GOOD, other, demo)] == [False, True, False]


def test_claims_name_a_signer_for_as_long_as_the_key_is_there() -> None:
    keys = Keys(("a", ED), ("b", OTHER_ED))
    tokens = verifier(keys)
    old, new = tokens.verify(GOOD), tokens.verify(OTHER_ED.with_header({"kid": "b"}).encode())
    assert tokens.signers == {old.signer, new.signer}
    assert len({old.signer, new.signer}) == 2
    keys.set = Keys.of(("b", OTHER_ED))
    assert tokens.signers == {new.signer}
    keys.set = None
    assert tokens.signers is None


@pytest.mark.parametrize("rules", [{"issuer": "another"}, {"audience": "gateway"}], ids=["issuer", "audience"])
def test_a_signer_is_another_under_other_rules_for_the_same_key(rules: dict[str, str]) -> None:
    keys = Keys(("a", ED))
    signer = verifier(keys).verify(GOOD).signer
    assert verifier(keys).signers == {signer}
    others = verifier(keys, **rules).signers
    assert others is not None
    assert signer not in others


# What an instance remembers.


def test_memory_is_bounded_by_the_length_of_the_tokens_too() -> None:
    tokens = verifier(Keys(("a", ED)), cache_bytes=3 * len(GOOD) + 100)
    several = [ED.with_header({"kid": "a"}, jti=f"{n}").encode() for n in range(4)]
    for token in several:
        tokens.verify(token)
    assert [tokens.known(token) is not None for token in several] == [False, True, True, True]
    long = ED.with_header({"kid": "a"}, tenant_access=[{"id": f"t{n}"} for n in range(150)]).encode()
    tokens.verify(long)
    assert tokens.known(long) is None
    tokens.verify(several[0])
    assert tokens.known(several[0]) is not None


def test_a_token_verified_twice_counts_once() -> None:
    tokens = verifier(Keys(("a", ED)), cache_bytes=2 * len(GOOD) + 100)
    for _ in range(5):
        tokens.verify(GOOD)
    other = ED.with_header({"kid": "a"}, jti="1").encode()
    tokens.verify(other)
    assert tokens.known(GOOD) is not None
    assert tokens.known(other) is not None


def test_what_ended_makes_room() -> None:
    clock = Wall()
    tokens = verifier(Keys(("a", ED)), clock, cache_bytes=2 * len(GOOD) + 100)
    for n in range(20):
        short = ED.with_header({"kid": "a"}, jti=f"{n}", exp=NOW + n + 1).encode()
        tokens.verify(short)
        clock.now += 1
        assert tokens.known(short) is None
    lasting = [ED.with_header({"kid": "a"}, jti=name).encode() for name in "xy"]
    for token in lasting:
        tokens.verify(token)
    assert all(tokens.known(token) is not None for token in lasting)


def test_demo_sessions_push_out_no_others() -> None:
    tokens = verifier(Keys(("a", ED)), cache_size=20)
    tokens.verify(GOOD)
    demos = [ED.with_header({"kid": "a"}, jti=f"{n}", is_demo=True, demo_session_id="s").encode() for n in range(100)]
    for token in demos:
        tokens.verify(token)
    assert tokens.known(GOOD) is not None
    known = [tokens.known(token) for token in demos]
    assert [claims is not None for claims in known] == [False] * 98 + [True] * 2
    assert known[-1] is not None
    assert known[-1].is_demo


# What instances share.


def test_a_signature_is_checked_once_for_all_instances(shelf: Shelf) -> None:
    first, second = Instance(shelf), Instance(shelf)
    claims = success_of(first.verify())
    assert success_of(second.verify()) == claims
    assert (first.signatures, second.signatures) == (1, 0)
    assert (first.told.seals, second.told.seals) == (["miss"], ["hit"])
    assert second.tokens.known(GOOD) == claims


def test_a_seal_is_there_for_as_long_as_the_token_or_the_memory_lasts(shelf: Shelf) -> None:
    instance = Instance(shelf)
    success_of(instance.verify())
    assert list(shelf.lives.values()) == [900]
    short = ED.with_header({"kid": "a"}, exp=NOW + 60).encode()
    success_of(instance.verify(short))
    assert list(shelf.lives.values()) == [900, 60]


def test_no_seal_is_left_for_a_token_that_is_over_or_refused(shelf: Shelf) -> None:
    instance = Instance(shelf)
    success_of(instance.verify(ED.with_header({"kid": "a"}, exp=NOW - 5).encode()))
    failure_of(instance.verify(GOOD[:-4] + b"AAAA"), TokenRefused)
    failure_of(instance.verify(OTHER_ED.with_header({"kid": "a"}).encode()), TokenRefused)
    assert shelf.values == {}


def test_demo_sessions_have_keys_of_their_own(shelf: Shelf) -> None:
    instance = Instance(shelf)
    success_of(instance.verify())
    success_of(instance.verify(ED.with_header({"kid": "a"}, is_demo=True, demo_session_id="s").encode()))
    ours, demo = sorted(shelf.values, key=len)
    assert ours.startswith("token:")
    assert demo.startswith("token:demo:")


def test_what_is_no_token_of_ours_is_not_asked_for(shelf: Shelf) -> None:
    instance = Instance(shelf)
    for token in (
        b"garbage",
        b"a.b.c",
        ED.with_header({"kid": "zz"}).encode(),
        ED.with_header({"alg": "none"}).encode(),
    ):
        failure_of(instance.verify(token), TokenRefused)
    assert shelf.asked == 0


@pytest.mark.parametrize(
    "other",
    [
        {"secret": "another-secret-of-thirty-two-characters"},
        {"issuer": "bakery-auth", "audience": "bakery"},
        {"keys": Keys(("a", OTHER_ED))},
    ],
    ids=["secret", "audience", "key"],
)
def test_what_another_secret_setting_or_key_has_sealed_is_checked_here(shelf: Shelf, other: dict[str, Any]) -> None:
    success_of(Instance(shelf).verify())
    instance = Instance(shelf, **other)
    refused = instance.verify().addErrback(lambda failure: failure.trap(TokenRefused))
    success_of(refused)
    assert instance.told.seals == ["foreign"]
    assert instance.signatures == 1


def test_whatever_is_written_there_by_others_opens_nothing_and_costs_nothing(shelf: Shelf) -> None:
    success_of(Instance(shelf).verify())
    ((key, sealed),) = shelf.values.items()
    forged = OTHER_ED.with_header({"kid": "a"}, user_id="root").encode()
    success_of(Instance(other := Shelf()).verify(ED.with_header({"kid": "a"}, jti="1").encode()))
    forged_key = "token:" + sha256(forged).hexdigest()
    writes = [b"", b"1", b"x" * 57, sealed[:17] + b"x" * 40, b"x" * 100_000, *other.values.values(), sealed]
    for written in writes:
        shelf.values[forged_key] = written
        assert reason_of(Instance(shelf).verify(forged)) == ("token-invalid", "signature")
        if written != sealed:
            shelf.values[key] = written
            assert success_of(Instance(shelf).verify()).user_id == USER_ID


def test_a_forged_seal_is_counted_and_logged_once_a_minute(shelf: Shelf) -> None:
    tokens = [ED.with_header({"kid": "a"}, jti=f"{n}").encode() for n in range(3)]
    for token in tokens:
        success_of(Instance(shelf).verify(token))
    for key, sealed in shelf.values.items():
        shelf.values[key] = sealed[:-1] + bytes([sealed[-1] ^ 1])
    instance, logged = Instance(shelf), list[Any]()
    globalLogPublisher.addObserver(logged.append)
    try:
        for token, seconds in zip(tokens, (30, 30, 0), strict=True):
            success_of(instance.verify(token))
            instance.clock.now += seconds
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert instance.told.seals == ["refused"] * 3
    assert instance.signatures == 3
    assert [event["log_format"] for event in logged] == ["tokens.seal_refused"] * 2


@pytest.mark.parametrize(
    ("later", "code"), [(1800 - 1, ""), (1800 + 10, "token-expired")], ids=["within its time", "expired"]
)
def test_a_seal_makes_no_token_last_longer(shelf: Shelf, later: float, code: str) -> None:
    success_of(Instance(shelf).verify())
    clock = Wall()
    clock.now += later
    verifying = Instance(shelf, clock=clock).verify()
    if code:
        assert reason_of(verifying)[0] == code
    else:
        success_of(verifying)


def test_a_sealed_token_is_still_checked_for_its_time(shelf: Shelf) -> None:
    early = ED.with_header({"kid": "a"}, nbf=NOW + 5).encode()
    success_of(Instance(shelf).verify(early))  # within the leeway there
    assert reason_of(Instance(shelf, leeway_s=0).verify(early)) == ("token-invalid", "not-yet-valid")


def test_a_key_that_goes_while_the_store_is_asked_is_not_believed(shelf: Shelf) -> None:
    success_of(Instance(shelf).verify())
    instance = Instance(shelf)

    def rotate() -> None:
        instance.keys.set = Keys.of(("a", OTHER_ED))

    shelf.before_answer = rotate
    assert reason_of(instance.verify()) == ("token-invalid", "signature")


def test_a_store_that_is_away_costs_no_token(shelf: Shelf) -> None:
    shelf.down = True
    instance = Instance(shelf)
    assert success_of(instance.verify()).user_id == USER_ID
    assert instance.told.seals == ["unavailable", "unavailable"]


def test_a_store_that_breaks_in_an_unforeseen_way_while_a_seal_is_left_costs_no_token(
    logged_failures: list[Any],
) -> None:
    class Broken(Shelf):
        async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
            raise ZeroDivisionError

    assert success_of(Instance(Broken()).verify()).user_id == USER_ID
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()


def test_nobody_waits_until_a_seal_is_left() -> None:
    class Slow(Shelf):
        async def put(self, key: str, value: bytes, *, ttl_s: float | None) -> None:
            waiting: Deferred[None] = Deferred()
            kept.append(waiting)
            await waiting

    kept: list[Deferred[None]] = []
    assert success_of(Instance(Slow()).verify()).user_id == USER_ID
    kept[0].errback(StoreUnavailable())
