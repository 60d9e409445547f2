"""API keys into claims: what is remembered, for how long, and what the shared state is asked."""

from dataclasses import replace

import pytest
from twisted.internet.defer import CancelledError, Deferred

from bakerygw.core.api_keys import ApiKey, digest_of, key_id_from, sealed, spelt
from bakerygw.ports import KeyUnreadable, StoreUnavailable, TokenRefused
from bakerygw.tokens.api_keys import RETRY_S, ApiKeys
from tests.deferreds import failure_of, success_of

PEPPER = b"pepper"
NOW = 1_700_000_000.0
KEY_ID = key_id_from(b"0123456789")
KEY = spelt(KEY_ID, bytes(range(32)))
OTHER = spelt(KEY_ID, bytes(range(1, 33)))
BARE = ApiKey(
    key_id=KEY_ID, tenant_id="bakery-1", name="Till", role="pos", routes=None, methods=None, addresses=None, limit=None,
    created_at=NOW, created_by="admin", expires_at=NOW + 1000, revoked_at=None, secrets=(),
)  # fmt: skip
RECORD = replace(BARE, secrets=(sealed(BARE, KEY, PEPPER, NOW),))


class Keys:
    """A `KeyStore` of one record, and an `ApiKeys` over it."""

    def __init__(self, record: ApiKey | None = RECORD, **options: int) -> None:
        self.record = record
        self.asked = 0
        self.failure: Exception | None = None
        self.waiting: Deferred[None] | None = None
        self.passed = 0.0
        self.keys = ApiKeys(self, pepper=PEPPER, now=lambda: NOW + self.passed, clock=lambda: self.passed, **options)

    async def find(self, key_id: str) -> ApiKey | None:
        self.asked += 1
        record = self.record
        if self.waiting is not None:
            await self.waiting
        if self.failure is not None:
            raise self.failure
        return record if record is not None and record.key_id == key_id else None

    def verify(self, key: bytes = KEY):
        return success_of(Deferred.fromCoroutine(self.keys.verify(key)))

    def refusal(self, key: bytes = KEY) -> tuple[str, str]:
        error = failure_of(Deferred.fromCoroutine(self.keys.verify(key)), TokenRefused)
        return error.code, error.reason


def test_a_good_key_is_known_from_then_on_without_asking():
    keys = Keys()
    assert keys.keys.known(KEY) is None
    claims = keys.verify()
    assert (claims.user_id, claims.tenant_id) == (f"key-{KEY_ID}", "bakery-1")
    assert keys.keys.known(KEY) is claims
    assert keys.verify() is claims
    assert keys.asked == 1


def test_keys_have_their_pepper_for_a_signer():
    keys = Keys()
    assert keys.verify().signer == keys.keys.signer
    other = ApiKeys(keys, pepper=b"another", now=lambda: NOW, clock=lambda: 0.0)
    assert other.signer != keys.keys.signer


def test_a_key_itself_tells_nothing_before_it_was_read():
    keys = Keys()
    assert keys.keys.peek(KEY) is None
    claims = keys.verify()
    keys.passed = 500
    assert keys.keys.peek(KEY) is claims
    assert keys.keys.peek(OTHER) is None


def test_a_record_is_read_again_after_half_a_minute():
    keys = Keys()
    keys.verify()
    keys.passed = 29.9
    assert keys.keys.known(KEY) is not None
    keys.passed = 30
    assert keys.keys.known(KEY) is None
    keys.record = replace(RECORD, revoked_at=NOW)
    assert keys.refusal() == ("token-revoked", "key-revoked")
    assert keys.keys.known(KEY) is None


def test_an_expiry_holds_for_a_key_that_is_remembered():
    expiring = replace(BARE, expires_at=NOW + 10)
    keys = Keys(replace(expiring, secrets=(sealed(expiring, KEY, PEPPER, NOW),)))
    keys.verify()
    keys.passed = 9.9
    assert keys.keys.known(KEY) is not None
    keys.passed = 10
    assert keys.keys.known(KEY) is None
    assert keys.refusal() == ("token-expired", "key-expired")


def test_while_the_state_is_away_a_key_read_a_minute_ago_holds_and_is_seldom_asked_for():
    keys = Keys()
    claims = keys.verify()
    keys.failure = StoreUnavailable("gone")
    keys.passed = 40
    assert keys.verify() is claims
    assert keys.keys.known(KEY) is claims
    assert keys.asked == 2
    keys.passed = 42.5
    assert keys.keys.known(KEY) is None
    assert keys.verify() is claims
    assert keys.asked == 3
    keys.passed = 59.9
    assert keys.verify() is claims
    keys.passed = 60
    assert keys.keys.known(KEY) is None
    failure_of(Deferred.fromCoroutine(keys.keys.verify(KEY)), StoreUnavailable)
    keys.failure, keys.passed = None, 62.4
    assert keys.verify() == claims


def test_an_expired_key_does_not_hold_because_the_state_is_away():
    expiring = replace(BARE, expires_at=NOW + 10)
    keys = Keys(replace(expiring, secrets=(sealed(expiring, KEY, PEPPER, NOW),)))
    keys.verify()
    keys.failure, keys.passed = StoreUnavailable("gone"), 10
    failure_of(Deferred.fromCoroutine(keys.keys.verify(KEY)), StoreUnavailable)


def test_an_unknown_key_is_not_taken_for_bad_because_the_state_is_away():
    keys = Keys()
    keys.failure = StoreUnavailable("gone")
    failure_of(Deferred.fromCoroutine(keys.keys.verify(KEY)), StoreUnavailable)
    keys.failure, keys.passed = None, RETRY_S
    assert keys.verify()


def test_a_record_that_can_never_be_read_is_asked_for_seldom_whatever_secret_comes_with_its_id():
    keys = Keys(max_keys=2)
    keys.failure = StoreUnavailable("wrong type")
    for number in range(100):
        keys.passed = number / 10
        for key in (KEY, spelt(KEY_ID, bytes([number]) * 32)):
            failure_of(Deferred.fromCoroutine(keys.keys.verify(key)), StoreUnavailable)
    assert keys.asked == 4
    for number in range(5):
        key = spelt(key_id_from(b"%010d" % number), bytes(32))
        failure_of(Deferred.fromCoroutine(keys.keys.verify(key)), StoreUnavailable)
    assert len(keys.keys._failed) == 2


@pytest.mark.parametrize(
    ("record", "key", "refused"),
    [
        (None, KEY, ("token-invalid", "key-unknown")),
        (RECORD, OTHER, ("token-invalid", "key-wrong-secret")),
        (replace(RECORD, tenant_id="bakery-2"), KEY, ("token-invalid", "key-seal")),
        (replace(RECORD, revoked_at=NOW), KEY, ("token-revoked", "key-revoked")),
        (replace(RECORD, secrets=(replace(RECORD.secrets[0], until=NOW),)), KEY, ("token-revoked", "key-replaced")),
    ],
)
def test_a_bad_key_is_asked_for_once_in_ten_seconds(record, key, refused):
    keys = Keys(record)
    assert [keys.refusal(key) for _ in range(5)] == [refused] * 5
    assert keys.asked == 1
    keys.passed = 9.9
    keys.refusal(key)
    assert keys.asked == 1
    keys.passed = 10
    keys.refusal(key)
    assert keys.asked == 2


def test_a_record_that_cannot_be_read_opens_nothing():
    keys = Keys()
    keys.failure = KeyUnreadable(KEY_ID)
    assert keys.refusal() == ("token-invalid", "key-record")


@pytest.mark.parametrize("key", [b"", b"x" * 9000, KEY[:-1], KEY.lower(), b"bkry_" + b"a" * 70, b"\x00\xff"])
def test_what_is_no_key_is_refused_without_asking(key):
    keys = Keys()
    assert keys.refusal(key) == ("token-invalid", "key-form")
    assert keys.asked == 0


def test_bad_keys_are_remembered_apart_and_push_out_no_good_one():
    keys = Keys(max_keys=3)
    keys.verify()
    for number in range(10):
        keys.refusal(spelt(key_id_from(b"%010d" % number), bytes(32)))
    assert keys.keys.known(KEY) is not None
    assert (len(keys.keys._good), len(keys.keys._bad)) == (1, 3)


def test_of_too_many_good_keys_the_one_used_longest_ago_is_forgotten():
    keys = Keys(max_keys=2)
    made = [spelt(KEY_ID, bytes([number]) * 32) for number in range(3)]
    keys.record = replace(BARE, secrets=tuple(sealed(BARE, key, PEPPER, NOW) for key in made))
    keys.verify(made[0])
    keys.verify(made[1])
    keys.keys.known(made[0])
    keys.verify(made[2])
    assert [keys.keys.known(key) is not None for key in made] == [True, False, True]


def test_no_usable_key_is_remembered():
    keys = Keys()
    keys.verify()
    keys.refusal(OTHER)
    assert KEY not in repr(keys.keys._good.items()).encode()
    assert set(keys.keys._good) == {digest_of(KEY)}
    assert set(keys.keys._bad) == {digest_of(OTHER)}


def test_a_client_that_leaves_while_its_key_is_looked_up_leaves_nothing_behind():
    keys = Keys()
    keys.waiting = Deferred()
    looking = Deferred.fromCoroutine(keys.keys.verify(KEY))
    looking.cancel()
    failure_of(looking, CancelledError)
    assert keys.keys.known(KEY) is None
    keys.waiting = None
    assert keys.verify()


def test_the_age_of_a_record_counts_from_before_it_was_asked_for():
    keys = Keys()
    keys.waiting = waiting = Deferred()
    looking = Deferred.fromCoroutine(keys.keys.verify(KEY))
    keys.passed = 29
    waiting.callback(None)
    success_of(looking)
    assert keys.keys.known(KEY) is not None
    keys.passed = 30
    assert keys.keys.known(KEY) is None
