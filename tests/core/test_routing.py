"""Paths to routes, and the targets that are never routed."""

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bakerygw.config.routes import builtin_routes
from bakerygw.core.limits import LimitRule
from bakerygw.core.problem import Refused
from bakerygw.core.routing import Match, Route, Router, check_target

TENANT = "/api/v1/tenants/{id}"


def route(prefix: str, *, exact: bool = False, **policies: object) -> Route:
    return Route(**{"prefix": prefix, "template": prefix, "kind": "proxy", "exact": exact, **policies})


ROUTER = Router(
    [
        route("/health", exact=True, auth=False),
        route("/api/v1/sales"),
        route("/api/v1/sales/reports/daily"),
        route("/api/v1/auth"),
        route("/api/v1/auth/login", exact=True, auth=False),
        route("/api/v1/tenants"),
        route(TENANT, exact=True),
        route(f"{TENANT}/subscription"),
        route("/api/v1/tenants/special"),
        route("/api/v1/tenants/special/subscription/deep"),
        route("/api/v1/tenants/register", tenant=False),
    ]
)


def found(path: bytes) -> tuple[str, str | None] | None:
    match = ROUTER.match(path)
    return match and (match.route.prefix, match.tenant_id)


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        (b"/api/v1/sales", "/api/v1/sales"),
        (b"/api/v1/sales/", "/api/v1/sales"),
        (b"/api/v1/sales/reports", "/api/v1/sales"),
        (b"/api/v1/sales/reports/dailyx", "/api/v1/sales"),
        (b"/api/v1/sales/reports/daily", "/api/v1/sales/reports/daily"),
        (b"/api/v1/sales/reports/daily/2025/1/2", "/api/v1/sales/reports/daily"),
        (b"/health", "/health"),
        (b"/api/v1/auth/login", "/api/v1/auth/login"),
        (b"/api/v1/auth/login/", "/api/v1/auth"),
        (b"/api/v1/auth/login.json", "/api/v1/auth"),
        (b"/api/v1/tenants", "/api/v1/tenants"),
        (b"/api/v1/tenants/", "/api/v1/tenants"),
    ],
)
def test_the_longest_prefix_of_whole_segments_wins(path: bytes, prefix: str) -> None:
    assert found(path) == (prefix, None)


@pytest.mark.parametrize(
    "path",
    [b"/", b"/api", b"/api/v1", b"/api/v1/salesx", b"/api/v1/sales.evil", b"/API/V1/sales", b"/health/", b"/health/x"],
)
def test_what_no_route_covers_is_not_found(path: bytes) -> None:
    assert ROUTER.match(path) is None


@pytest.mark.parametrize(
    ("path", "prefix", "tenant"),
    [
        (b"/api/v1/tenants/t-1", TENANT, "t-1"),
        (b"/api/v1/tenants/t-1/", TENANT, "t-1"),
        (b"/api/v1/tenants/t-1/sales/9/items/3", "/api/v1/tenants", "t-1"),
        (b"/api/v1/tenants/t-1/subscription", f"{TENANT}/subscription", "t-1"),
        (b"/api/v1/tenants/t-1/subscription/status", f"{TENANT}/subscription", "t-1"),
        (b"/api/v1/tenants/t-1/subscriptions", "/api/v1/tenants", "t-1"),
        (b"/api/v1/tenants/special", "/api/v1/tenants/special", "special"),
        (b"/api/v1/tenants/special/x", "/api/v1/tenants/special", "special"),
        (b"/api/v1/tenants/special/subscription", f"{TENANT}/subscription", "special"),
        (b"/api/v1/tenants/special/subscription/deep", "/api/v1/tenants/special/subscription/deep", "special"),
        (b"/api/v1/tenants/register", "/api/v1/tenants/register", None),
    ],
)
def test_a_path_below_tenants_names_its_tenant(path: bytes, prefix: str, tenant: str | None) -> None:
    assert found(path) == (prefix, tenant)


@pytest.mark.parametrize("segment", [b"a%41", b"a;x", b"{id}", b"a" * 65, b"a:b", b"a@b"])
@pytest.mark.parametrize("rest", [b"", b"/subscription", b"/sales/1"])
def test_what_cannot_be_a_tenants_id_is_a_bad_request(segment: bytes, rest: bytes) -> None:
    with pytest.raises(Refused) as refused:
        ROUTER.match(b"/api/v1/tenants/" + segment + rest)
    assert refused.value.problem.code == "bad-request"


def test_the_longest_id_is_accepted() -> None:
    assert found(b"/api/v1/tenants/" + b"a" * 64) == (TENANT, "a" * 64)


def test_a_router_tells_its_routes_in_order_and_an_empty_one_matches_nothing() -> None:
    routes = (route("/b"), route("/a"))
    assert Router(routes).routes == routes
    assert Router([]).match(b"/a") is None


@pytest.mark.parametrize("prefix", ["/api/{id}", "/api/v1/tenants/x/{id}", f"{TENANT}/{{id}}"])
def test_a_wildcard_elsewhere_than_behind_tenants_is_a_mistake(prefix: str) -> None:
    with pytest.raises(ValueError, match="only known directly behind"):
        Router([route(prefix)])


@pytest.mark.parametrize("exact", [True, False])
def test_two_routes_of_one_prefix_are_a_mistake(exact: bool) -> None:
    with pytest.raises(ValueError, match="two routes"):
        Router([route("/a"), route("/a", exact=exact)])


def test_a_match_carries_the_routes_policies() -> None:
    limited = route("/a", limit=LimitRule(name="/a", requests=1, window_s=1))
    assert Router([limited]).match(b"/a/b") == Match(route=limited, tenant_id=None)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", b"/", None),
        (b"/?", b"/", b""),
        (b"/a/b", b"/a/b", None),
        (b"/a/b/", b"/a/b/", None),
        (b"/a?b=c?d", b"/a", b"b=c?d"),
        (b"/a?x=../..//%2f%5c%00\\%zz;", b"/a", b"x=../..//%2f%5c%00\\%zz;"),
        (b"/.well-known/x", b"/.well-known/x", None),
        (b"/a/...", b"/a/...", None),
        (b"/a/..b/.c/d..", b"/a/..b/.c/d..", None),
        (b"/a.b;v=1", b"/a.b;v=1", None),
        (b"/caf%C3%A9%20x", b"/caf%C3%A9%20x", None),
        (b"/100%25", b"/100%25", None),
        (b"/a%2eb", b"/a%2eb", None),
        (b"/a%3Fb%23", b"/a%3Fb%23", None),
        (b"/a[1]\"<>^`{|}'", b"/a[1]\"<>^`{|}'", None),
        (b"/~u/@me/a,b/$(c)*!&=+:", b"/~u/@me/a,b/$(c)*!&=+:", None),
    ],
)
def test_a_sound_target_is_cut_and_otherwise_unchanged(target: bytes, path: bytes, query: bytes | None) -> None:
    assert check_target(target) == (path, query)


SEPARATORS = ["2f", "2F", "5c", "5C", "00", "0a", "0A", "0d", "0D"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        *[(f"/a%{code}b".encode(), "path-encoded-separator") for code in SEPARATORS],
        *[(f"/a%25{code}b".encode(), "path-encoded-separator") for code in SEPARATORS],
        *[(f"/a%252525{code}b".encode(), "path-encoded-separator") for code in SEPARATORS],
        (b"/a%25%32%66b", "path-encoded-separator"),
        (b"/a%%32%66b", "path-escape"),
        (b"/a%252eb", "path-encoded-dot"),
        (b"/a%252Eb", "path-encoded-dot"),
        (b"/a%25%32%65b", "path-encoded-dot"),
        *[
            (b"/a/" + dots + tail, "path-dot-segment")
            for dots in (b".", b"..", b"%2e", b"%2E%2e", b".%2e", b"%2e.")
            for tail in (b"", b"/", b"/b", b";", b";x=1/b", b"%3bx")
        ],
        (b"/..", "path-dot-segment"),
        (b"//", "path-empty-segment"),
        (b"//evil", "path-empty-segment"),
        (b"/a//b", "path-empty-segment"),
        (b"/a//", "path-empty-segment"),
        (b"/a\\b", "path-backslash"),
        (b"/a%", "path-escape"),
        (b"/a%2", "path-escape"),
        (b"/a%zz", "path-escape"),
        (b"/a%u002f", "path-escape"),
        (b"/" + b"%25" + b"25" * 9 + b"41", "path-layers"),
        (b"/a#b", "target-fragment"),
        (b"/a?b#c", "target-fragment"),
        (b"/a b", "target-bytes"),
        (b"/a\x00", "target-bytes"),
        (b"/a\x7f", "target-bytes"),
        (b"/a\n", "target-bytes"),
        (b"/a?b\n", "target-bytes"),
        (b"/a?b\xe9", "target-bytes"),
        (b"/\xc3\xa9", "target-bytes"),
        (b"", "target-form"),
        (b"*", "target-form"),
        (b"a/b", "target-form"),
        (b"?a", "target-form"),
        (b"http://evil/", "target-form"),
    ],
)
def test_a_target_that_could_mean_another_is_a_bad_request(target: bytes, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        check_target(target)
    assert (refused.value.problem.code, refused.value.problem.reason) == ("bad-request", reason)


def test_a_refusal_says_what_is_wrong() -> None:
    with pytest.raises(Refused) as refused:
        check_target(b"/a%252Fb")
    assert refused.value.problem.detail == "Leave out the doubly percent-encoded slash."


PIECES = st.sampled_from([b"/", b".", b"..", b";", b"%2e", b"%2f", b"%25", b"2f", b"a", b"\\", b"?", b"#", b"%", b"~"])


@given(st.lists(PIECES, max_size=12).map(lambda pieces: b"/" + b"".join(pieces)))
def test_whatever_passes_has_no_other_meaning_once_decoded(target: bytes) -> None:
    try:
        path, query = check_target(target)
    except Refused:
        return
    assert target == (path if query is None else path + b"?" + query)
    once = unquote_to_bytes(path)
    for text in (path, once, unquote_to_bytes(once)):
        assert b"//" not in text
        assert b"\\" not in text
        assert text.count(b"/") == path.count(b"/")
        assert not {segment.split(b";")[0] for segment in text.split(b"/")} & {b".", b".."}


@pytest.mark.parametrize(
    "path",
    [
        b"/api/v1/tenants/t-1/subscri%70tion",
        b"/api/v1/tenants/t-1/subscription;x=1",
        b"/api/v1/tenants/t-1/subscription;x/plan",
        b"/api/v1/auth/log%69n",
        b"/api/v1/auth/login;v=1",
        b"/api/v1/%73ales",
    ],
)
def test_a_spelling_that_passes_by_another_routes_policies_is_refused(path):
    with pytest.raises(Refused) as refused:
        Router(builtin_routes()).match(path)
    assert refused.value.problem.code == "bad-request"
    assert refused.value.problem.reason == "path-spelling"


@pytest.mark.parametrize("path", [b"/api/v1/sales/caf%C3%A9", b"/api/v1/sales/a;v=1/b", b"/api/v1/sales/50%25"])
def test_encoded_and_parametrised_paths_of_one_route_pass(path):
    match = Router(builtin_routes()).match(path)
    assert match is not None
    assert match.route.prefix == "/api/v1/sales"
