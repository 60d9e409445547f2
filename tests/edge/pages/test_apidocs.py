import json
import re

import pytest
from openapi_spec_validator import validate

from bakerygw.config.routes import builtin_routes
from bakerygw.core.geocoding import MEMBERS
from bakerygw.core.limits import LimitRule
from bakerygw.core.openapi import build_document
from bakerygw.core.problem import PROBLEMS, Refused
from bakerygw.core.routing import Route
from bakerygw.edge.pages.apidocs import ApiDocs, load_swagger_ui
from tests.heads import make_head

ROUTES = (
    Route(prefix="/health", template="/health", kind="local", exact=True, auth=False, tenant=False),
    Route(prefix="/docs", template="/docs/**", kind="local", auth=False, tenant=False, methods=frozenset({"GET"})),
    Route(prefix="/api/v1/sales", template="/api/v1/sales/**", kind="proxy", service="sales"),
    Route(
        prefix="/api/v1/auth/login",
        template="/api/v1/auth/login",
        kind="proxy",
        exact=True,
        service="auth",
        auth=False,
        tenant=False,
        methods=frozenset({"POST"}),
        auth_limit=True,
    ),
    Route(
        prefix="/api/v1/tenants/{id}/forecasts",
        template="/api/v1/tenants/{id}/forecasts/**",
        kind="proxy",
        service="ai_insights",
        methods=frozenset({"GET", "HEAD", "DELETE"}),
        min_tier="professional",
        critical=frozenset({"DELETE"}),
        limit=LimitRule(name="forecasts", requests=5, window_s=60),
        max_body=1000,
    ),
    Route(prefix="/api/v1/alerts/stream", template="/api/v1/alerts/stream", kind="stream", exact=True),
    Route(
        prefix="/api/v1/alerts/ticket",
        template="/api/v1/alerts/ticket",
        kind="local",
        action="ticket",
        exact=True,
        methods=frozenset({"POST"}),
    ),
    Route(
        prefix="/api/v1/geocode",
        template="/api/v1/geocode",
        kind="local",
        exact=True,
        methods=frozenset({"POST"}),
    ),
)


@pytest.fixture(scope="module")
def document():
    return build_document(ROUTES, version="1.2.3")


@pytest.fixture(scope="module")
def docs():
    return ApiDocs(routes=ROUTES, version="1.2.3")


def problem_of(docs, head):
    with pytest.raises(Refused) as refused:
        docs.reply_to(head)
    return refused.value.problem


def test_document_is_valid_openapi(document):
    validate(json.loads(json.dumps(document)))
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == "1.2.3"


def test_an_empty_route_table_still_documents_the_gateways_own_pages():
    document = build_document((), version="1")
    validate(document)
    assert set(document["paths"]) == {"/health", "/api/v1/health", "/openapi.json", "/docs", "/bakerygw.js"}
    assert all(item["get"]["security"] == [] for item in document["paths"].values())


def test_a_service_prefix_is_a_pass_through_path_for_its_methods(document):
    item = document["paths"]["/api/v1/sales/{path}"]
    assert set(item) == {"parameters", "get", "post", "put", "patch", "delete"}
    assert [parameter["name"] for parameter in item["parameters"]] == ["path"]
    assert item["get"]["summary"] == "Passed through to the service sales"
    assert item["get"]["security"] == [{"bearer": []}, {"apiKey": []}, {"session": []}]
    assert "requestBody" in item["post"]
    assert "requestBody" not in item["get"]
    assert {"2XX", "401", "402", "502", "504"} <= set(item["get"]["responses"])


def test_a_public_route_asks_for_no_token_and_no_tenant(document):
    login = document["paths"]["/api/v1/auth/login"]["post"]
    assert login["security"] == []
    assert not {"401", "402"} & set(login["responses"])
    assert login["parameters"] == [{"$ref": "#/components/parameters/RequestId"}]
    assert "stricter limit" in login["description"]


def test_a_routes_rules_are_told(document):
    item = document["paths"]["/api/v1/tenants/{id}/forecasts/{path}"]
    assert set(item) == {"parameters", "get", "head", "delete"}
    assert [parameter["name"] for parameter in item["parameters"]] == ["id", "path"]
    told = item["delete"]["description"]
    assert all(part in told for part in ("professional", "critical", "5 requests in 60 s", "1000 bytes"))
    assert "A critical operation: the tenant service confirms the subscription first" in told
    assert "critical" not in item["get"]["description"]


def test_health_details_have_the_members_that_are_told(document):
    row = document["components"]["schemas"]["HealthDetails"]["properties"]["services"]["additionalProperties"]
    assert set(row["properties"]) == set(row["required"]) == {"status", "latency_ms", "since", "breaker"}


def test_a_ticket_is_described_with_what_it_answers(document):
    (method,) = document["paths"]["/api/v1/alerts/ticket"].values()
    answer = method["responses"]["201"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/Ticket"}
    assert set(document["components"]["schemas"]["Ticket"]["required"]) == {"ticket", "expires_in"}
    assert "requestBody" not in method


def test_the_stream_of_alerts_says_how_to_go_on_and_what_it_sends(document):
    stream = document["paths"]["/api/v1/alerts/stream"]
    assert set(stream) == {"get"}
    operation = stream["get"]
    assert {"Last-Event-ID", "last_event_id"} <= {it.get("name") for it in operation["parameters"]}
    assert set(operation["responses"]["200"]["content"]) == {"text/event-stream"}
    assert all(f"`{name}`" in operation["description"] for name in ("alert", "gap", "bye"))
    assert "answers 503" not in operation["description"]


@pytest.mark.parametrize("path", ["/api/v1/alerts/stream", "/api/v1/training/ws"])
def test_what_stays_open_says_what_its_query_may_hold(path):
    document = build_document(builtin_routes(), version="1")
    operation = document["paths"][path]["get"]
    schemes = document["components"]["securitySchemes"]
    opened_by = [name for scheme in operation["security"] for name in scheme]

    assert opened_by == ["bearer", "apiKey", "session", "ticket", "token"]
    assert [schemes[name]["in"] for name in ("ticket", "token")] == ["query", "query"]
    assert "tenant_id" in {it.get("name") for it in operation["parameters"]}
    assert document["paths"]["/api/v1/alerts/ticket"]["post"]["security"] == document["security"]


def test_geocoding_describes_its_question_and_its_answer(document):
    operation = document["paths"]["/api/v1/geocode"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    members = {name for form in schema["oneOf"] for name in form["properties"]}
    assert members == set(MEMBERS)
    assert all(form["additionalProperties"] is False for form in schema["oneOf"])
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/Places"}
    assert set(document["components"]["schemas"]["Places"]["properties"]) == {"results", "attribution", "cached"}
    assert {"400", "413", "502", "503", "504"} <= set(operation["responses"])


def test_each_way_to_sign_in_is_described():
    document = build_document(builtin_routes(), version="1")
    schemes = document["components"]["securitySchemes"]
    assert {name: scheme["type"] for name, scheme in schemes.items()} == {
        "bearer": "http",
        "apiKey": "apiKey",
        "session": "apiKey",
        "ticket": "apiKey",
        "token": "apiKey",
    }
    assert (schemes["session"]["in"], schemes["session"]["name"]) == ("cookie", "__Host-bakery-session")
    assert "X-CSRF-Token" in schemes["session"]["description"]
    assert "csrf_token" in document["paths"]["/api/v1/auth/session"]["get"]["description"]
    assert document["paths"]["/api/v1/geocode"]["post"]["summary"] == "The coordinates of an address"


def test_operation_ids_are_unique(document):
    ids = [
        operation["operationId"]
        for item in document["paths"].values()
        for method, operation in item.items()
        if method != "parameters"
    ]
    assert len(ids) == len(set(ids))


def test_every_problem_code_is_in_the_schema_and_in_its_statuss_response(document):
    components = document["components"]
    assert components["schemas"]["Problem"]["properties"]["code"]["enum"] == list(PROBLEMS)
    for code, (status, _) in PROBLEMS.items():
        narrowed = components["responses"][f"Problem{status}"]["content"]["application/problem+json"]["schema"]["allOf"]
        assert code in narrowed[1]["properties"]["code"]["enum"]


def test_problem_responses_name_the_headers_that_come_with_them(document):
    responses = document["components"]["responses"]
    assert {"RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID"} <= set(responses["Problem429"]["headers"])
    assert "WWW-Authenticate" in responses["Problem401"]["headers"]
    assert "Allow" in responses["Problem405"]["headers"]
    assert "Retry-After" in responses["Problem503"]["headers"]


def test_the_document_is_served_as_json(docs, document):
    reply = docs.reply_to(make_head("GET", b"/openapi.json"))
    assert dict(reply.headers)[b"Content-Type"] == b"application/json"
    assert json.loads(reply.body) == document


@pytest.mark.parametrize("target", [b"/docs", b"/docs/", b"/docs?x=1"])
def test_the_page_loads_nothing_from_elsewhere_and_all_it_loads_is_there(docs, target):
    reply = docs.reply_to(make_head("GET", target))
    assert dict(reply.headers)[b"Content-Type"] == b"text/html; charset=utf-8"
    links = re.findall(rb'(?:src|href)="([^"]*)"', reply.body)
    assert b"/docs/init.js" in links
    for link in links:
        assert docs.reply_to(make_head("GET", link)).status == 200
    assert b"//" not in reply.body


def test_the_page_runs_under_a_policy_without_inline_scripts(docs):
    reply = docs.reply_to(make_head("GET", b"/docs"))
    policy = dict(part.strip().split(b" ", 1) for part in dict(reply.headers)[b"Content-Security-Policy"].split(b";"))
    assert (policy[b"default-src"], policy[b"script-src"]) == (b"'none'", b"'self'")
    assert policy[b"frame-ancestors"] == policy[b"base-uri"] == b"'none'"
    assert re.findall(rb"<script(?![^>]*src=)", reply.body) == []


@pytest.mark.parametrize(
    ("target", "media_type"),
    [
        (b"/docs/swagger-ui.css", b"text/css; charset=utf-8"),
        (b"/docs/swagger-ui-bundle.js", b"text/javascript; charset=utf-8"),
        (b"/docs/favicon-32x32.png", b"image/png"),
        (b"/docs/init.js", b"text/javascript; charset=utf-8"),
    ],
)
def test_assets_have_their_media_type_and_may_be_cached(docs, target, media_type):
    headers = dict(docs.reply_to(make_head("GET", target)).headers)
    assert headers[b"Content-Type"] == media_type
    assert headers[b"Cache-Control"] == b"public, max-age=3600"


@pytest.mark.parametrize("target", [b"/openapi.json", b"/docs", b"/docs/init.js"])
def test_a_known_entity_tag_is_answered_304(docs, target):
    tag = dict(docs.reply_to(make_head("GET", target)).headers)[b"ETag"]
    for value in (tag, b"W/" + tag, b'"other", ' + tag, b"*"):
        reply = docs.reply_to(make_head("GET", target, [(b"If-None-Match", value)]))
        assert (reply.status, reply.body, dict(reply.headers)[b"ETag"]) == (304, b"", tag)
    assert docs.reply_to(make_head("GET", target, [(b"If-None-Match", b'"other"')])).status == 200


def test_the_entity_tag_follows_the_route_table(docs):
    other = ApiDocs(routes=ROUTES[:3], version="1.2.3", assets=load_swagger_ui())
    tags = [dict(it.reply_to(make_head("GET", b"/openapi.json")).headers)[b"ETag"] for it in (docs, other)]
    assert tags[0] != tags[1]


@pytest.mark.parametrize("target", [b"/docs/index.html", b"/docs/../setup.py", b"/docs/init.js/", b"/openapi.json/x"])
def test_unknown_parts_are_not_found(docs, target):
    assert problem_of(docs, make_head("GET", target)).code == "not-found"


def test_head_is_answered_as_get_and_other_methods_are_refused(docs):
    assert docs.reply_to(make_head("HEAD", b"/docs")) == docs.reply_to(make_head("GET", b"/docs"))
    problem = problem_of(docs, make_head("POST", b"/docs"))
    assert (problem.code, problem.headers) == ("method-not-allowed", ((b"Allow", b"GET, HEAD"),))
