"""API keys: their spelling, their records, and what they say."""

import json
import re
from dataclasses import replace

import pytest

from bakerygw.core.api_keys import (
    MAX_RECORD_BYTES,
    ApiKey,
    claims_of,
    digest_of,
    id_of,
    key_id_from,
    record_from,
    record_json,
    sealed,
    spelt,
)
from bakerygw.core.claims import MAX_UNIX_S, ClaimsError
from bakerygw.core.tenancy import check_fresh, effective_tenant

PEPPER = b"pepper"
NOW = 1_700_000_000.0
KEY_ID = key_id_from(b"0123456789")
KEY = spelt(KEY_ID, bytes(range(32)))
OTHER = spelt(KEY_ID, bytes(range(1, 33)))
BARE = ApiKey(
    key_id=KEY_ID,
    tenant_id="bakery-1",
    name="Till 1 – entrance",  # noqa: RUF001
    role="pos",
    routes=("/api/v1/pos", "/api/v1/sales/receipts"),
    methods=("GET", "POST"),
    addresses=("192.0.2.0/24", "2001:db8::/32"),
    limit=(60, 10),
    created_at=NOW,
    created_by="maria",
    expires_at=NOW + 100.0,
    revoked_at=None,
    secrets=(),
)
RECORD = replace(BARE, secrets=(sealed(BARE, KEY, PEPPER, NOW),))


def said(record: ApiKey, key: bytes = KEY, now: float = NOW):
    return claims_of(record, key, digest_of(key), PEPPER, now)


def refused(record: ApiKey, key: bytes = KEY, now: float = NOW) -> str:
    with pytest.raises(ClaimsError) as error:
        said(record, key, now)
    return error.value.reason


def test_a_key_has_a_prefix_for_scanners_an_id_a_secret_and_a_check():
    assert re.fullmatch(rb"bkry_[a-z2-7]{16}_[A-Za-z0-9_-]{43}_[0-9a-f]{8}", KEY)
    assert id_of(KEY) == KEY_ID


@pytest.mark.parametrize("at", range(len(KEY)))
def test_a_key_with_one_wrong_character_is_known_for_none_without_asking_anybody(at):
    wrong = b"a" if KEY[at : at + 1] != b"a" else b"b"
    assert id_of(KEY[:at] + wrong + KEY[at + 1 :]) is None


@pytest.mark.parametrize(
    "text",
    [b"", b"bkry_", KEY[:-1], KEY + b"\n", KEY + b"0", KEY.upper(), b" " + KEY, KEY.replace(b"_", b"-"), b"\xff"],
)
def test_what_has_not_the_form_of_a_key_is_none(text):
    assert id_of(text) is None


def test_a_record_holds_neither_key_nor_secret():
    text = record_json(RECORD)
    assert KEY not in text
    assert KEY.split(b"_", 2)[2][:20] not in text


def test_a_good_key_says_what_its_record_says_and_nothing_of_people():
    claims = said(RECORD)
    assert (claims.user_id, claims.tenant_id, claims.role) == (f"key-{KEY_ID}", "bakery-1", "pos")
    assert (claims.email, claims.subscription, claims.tenant_access, claims.is_demo) == (None, None, (), False)
    assert (claims.exp, claims.digest) == (NOW + 100, digest_of(KEY))
    assert claims.key is not None
    assert claims.key.paths == (b"/api/v1/pos", b"/api/v1/sales/receipts")
    assert claims.key.methods == {"GET", "POST"}
    assert claims.key.limit is not None
    assert (claims.key.limit.requests, claims.key.limit.window_s) == (60, 10)


def test_a_key_without_bounds_has_none_and_no_end():
    bare = replace(BARE, routes=None, methods=None, addresses=None, limit=None, expires_at=None)
    claims = said(replace(bare, secrets=(sealed(bare, KEY, PEPPER, NOW),)))
    assert claims.exp == MAX_UNIX_S
    assert claims.key is not None
    assert (claims.key.paths, claims.key.methods, claims.key.networks, claims.key.limit) == (None, None, None, None)


def test_no_change_of_a_subscription_makes_a_key_stale():
    check_fresh(said(RECORD).iat, NOW + 1e6)


def test_a_key_opens_its_own_tenant_only_and_says_so_in_its_own_words():
    assert effective_tenant(said(RECORD), None, ()).tenant_id == "bakery-1"
    with pytest.raises(Exception, match="tenant-forbidden") as refusal:
        effective_tenant(said(RECORD), "bakery-2", ())
    assert "API key" in refusal.value.problem.detail


def test_another_secret_of_the_same_id_opens_nothing():
    assert refused(RECORD, OTHER) == "wrong-secret"


@pytest.mark.parametrize(
    "change",
    [
        {"tenant_id": "bakery-2"},
        {"role": "owner"},
        {"routes": None},
        {"routes": ("/api/v1/pos",)},
        {"methods": None},
        {"addresses": None},
        {"addresses": ("0.0.0.0/0",)},
        {"limit": None},
        {"limit": (61, 10)},
        {"expires_at": None},
        {"expires_at": NOW + 101},
    ],
)
def test_a_fact_that_somebody_has_changed_in_the_record_opens_nothing(change):
    assert refused(replace(RECORD, **change)) == "seal"


def test_a_secret_put_in_by_who_does_not_have_the_key_opens_nothing():
    forged = replace(sealed(BARE, OTHER, PEPPER, NOW), digest=digest_of(KEY))
    assert refused(replace(RECORD, secrets=(forged,))) == "seal"


@pytest.mark.parametrize("pepper", [b"", b"other", PEPPER + b"x"])
def test_a_record_sealed_without_what_the_gateways_know_opens_nothing(pepper):
    assert refused(replace(RECORD, secrets=(sealed(BARE, KEY, pepper, NOW),))) == "seal"


def test_an_expired_key_ends_at_its_moment():
    assert said(RECORD, now=NOW + 99.9)
    assert refused(RECORD, now=NOW + 100) == "expired"


def test_an_old_secret_holds_until_its_end_and_the_new_one_beyond():
    old = replace(RECORD.secrets[0], until=NOW + 10)
    rotated = replace(RECORD, secrets=(sealed(BARE, OTHER, PEPPER, NOW), old))
    assert said(rotated, now=NOW + 9.9).exp == NOW + 10
    assert refused(rotated, now=NOW + 10) == "replaced"
    assert said(rotated, OTHER, now=NOW + 10).exp == NOW + 100


def test_a_revoked_key_says_so_to_its_holder_alone():
    revoked = replace(RECORD, revoked_at=NOW)
    assert refused(revoked) == "revoked"
    assert refused(revoked, OTHER) == "wrong-secret"


def test_a_record_is_read_as_it_was_written():
    for record in (
        RECORD,
        replace(RECORD, routes=None, methods=None, addresses=None, limit=None, expires_at=None, revoked_at=NOW),
    ):
        assert record_from(record_json(record), KEY_ID) == record


DOCUMENT = json.loads(record_json(RECORD))


@pytest.mark.parametrize(
    "change",
    [
        *({name: ...} for name in ("id", "tenant_id", "name", "role", "created_at", "created_by", "secrets")),
        {"more": 1},
        {"id": key_id_from(b"x" * 10)},
        {"tenant_id": "bakery 1"},
        {"tenant_id": "*"},
        {"role": "a\r\nX-User-Role: owner"},
        {"name": 5},
        {"routes": []},
        {"routes": [5]},
        {"routes": "/api"},
        {"addresses": ["192.0.2.1/24"]},
        {"addresses": ["anywhere"]},
        {"limit": [0, 10]},
        {"limit": [True, 10]},
        {"limit": [60]},
        {"limit": [1e9, 10]},
        {"created_at": "now"},
        {"expires_at": -1},
        {"expires_at": 1e300},
        {"revoked_at": "no"},
        {"secrets": []},
        {"secrets": {}},
        {"secrets": [{}]},
        {"secrets": [{**DOCUMENT["secrets"][0], "digest": "0" * 63}]},
        {"secrets": [{**DOCUMENT["secrets"][0], "seal": "G" * 64}]},
        {"secrets": [{**DOCUMENT["secrets"][0], "until": True}]},
        {"secrets": [{**DOCUMENT["secrets"][0], "more": 1}]},
    ],
    ids=str,
)
def test_a_record_that_nobody_here_has_written_is_not_read(change):
    document = {**DOCUMENT, **change}
    document = {name: value for name, value in document.items() if value is not ...}
    with pytest.raises(ValueError, match=r"."):
        record_from(json.dumps(document).encode(), KEY_ID)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b'{"id":NaN}',
        b'{"id":1,"id":1}',
        b"[" * 100_000,
        b'{"a":' * 10_000,
        b" " * MAX_RECORD_BYTES + record_json(RECORD),
    ],
)
def test_rubbish_is_no_record(data):
    with pytest.raises(ValueError, match=r"."):
        record_from(data, KEY_ID)
