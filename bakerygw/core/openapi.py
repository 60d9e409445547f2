"""The OpenAPI 3.1 document of the gateway's own routes and problems, made from the route table."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from bakerygw.core.forwarding import SESSION_COOKIE
from bakerygw.core.openapi_alerts import (
    IN_QUERY,
    STREAM,
    STREAM_RULES,
    STREAM_SUMMARY,
    stream_content,
    stream_parameters,
    tenant_parameter,
)
from bakerygw.core.openapi_components import (
    codes_by_status,
    headers,
    health_schemas,
    limits_schema,
    parameters,
    problem_response,
    problem_schema,
    refs,
    ticket_schema,
)
from bakerygw.core.openapi_geocode import geocode_answer, geocode_request, geocode_schemas
from bakerygw.core.routing import Route

Json = dict[str, object]

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
USUAL_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""Listed where a route allows every method; HEAD and OPTIONS work there too and would only lengthen the page."""
WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})

EVERYWHERE: Final = (400, 403, 404, 405, 408, 413, 414, 417, 429, 431, 500, 501, 503)
"""Statuses of problems that any request may meet."""

PAGES: Final[Mapping[str, tuple[str, str, str | None]]] = {
    "/health": ("Health in one word for each service", "application/json", "Health"),
    "/api/v1/health": (
        "Health of each service with latency, since when, and its breaker",
        "application/json",
        "HealthDetails",
    ),
    "/openapi.json": ("This document", "application/json", None),
    "/docs": ("This document as a page to read and try", "text/html", None),
    "/bakerygw.js": ("A module for pages: alerts and training progress", "text/javascript", None),
}
"""The gateway's own pages: summary, media type, schema."""

TRAINING: Final = "/api/v1/training/ws"
GET_ONLY: Final = frozenset({STREAM, TRAINING})
"""What stays open."""

ANSWERED: Final[Mapping[str, tuple[str, str]]] = {
    "/api/v1/limits": ("The caller's limits, what remains of them, and their reset", "Limits"),
    "/api/v1/alerts/ticket": ("A ticket that opens one alert stream or training socket, once, in 30 s", "Ticket"),
}
"""What the gateway answers to callers with a token: summary, schema."""
GEOCODE: Final = "/api/v1/geocode"
SESSION: Final = "/api/v1/auth/session"

SECURITY: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"apiKey": []}, {"session": []}]
"""One of these, where a token is needed."""
STAYING_OPEN: Final[list[dict[str, list[str]]]] = [*SECURITY, {"ticket": []}, {"token": []}]
"""For streams and sockets, one of these."""

SESSION_SCHEME: Final = (
    "Where operators have turned sessions on: the cookie of a sign-in. Everything but reading needs the session's "
    "`csrf_token` as `X-CSRF-Token`."
)
INTRODUCTION: Final = (
    "One origin for the REST services of Bakery-IA. Paths under a service's prefix reach that service byte for byte, "
    "and its own answers pass unchanged. What the gateway itself refuses is a problem document (RFC 9457) whose `code` "
    "says why; its codes are listed with each status."
)


def build_document(routes: Iterable[Route], *, version: str) -> Json:
    """The document, valid OpenAPI 3.1, for this route table; the gateway's own pages are always part of it."""
    paths: dict[str, Json] = {path: {"get": _page(path)} for path in PAGES}
    for route in sorted(routes, key=lambda route: route.prefix):
        if route.kind != "local" or route.auth:  # other public pages than those above are for people
            paths[_path(route)] = _path_item(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bakery-IA gateway", "version": version, "description": INTRODUCTION},
        "servers": [{"url": "/"}],
        "security": SECURITY,
        "tags": [
            {"name": "gateway", "description": "Answered by the gateway itself."},
            {"name": "services", "description": "Passed through to the service that the prefix belongs to."},
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "`ApiKey <key>`"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": SESSION_COOKIE.decode(),
                    "description": SESSION_SCHEME,
                },
                **IN_QUERY,
            },
            "parameters": parameters(),
            "headers": headers(),
            "responses": {f"Problem{status}": problem_response(status) for status in sorted(codes_by_status())},
            "schemas": {
                "Problem": problem_schema(),
                **health_schemas(),
                **geocode_schemas(),
                "Limits": limits_schema(),
                "Ticket": ticket_schema(),
            },
        },
    }


def _path(route: Route) -> str:
    return route.prefix if route.exact or route.kind != "proxy" else f"{route.prefix}/{{path}}"


def _path_item(route: Route) -> Json:
    item: Json = {}
    names = re.findall(r"\{(\w+)\}", _path(route))
    if names:
        item["parameters"] = [_path_parameter(name) for name in names]
    for method in _methods(route):
        item[method.lower()] = _operation(route, method)
    return item


def _methods(route: Route) -> tuple[str, ...]:
    if route.methods is not None:
        return tuple(method for method in METHODS if method in route.methods)
    if route.kind == "proxy":
        return USUAL_METHODS
    return ("GET",) if route.kind == "local" or route.prefix in GET_ONLY else ("POST",)


def _path_parameter(name: str) -> Json:
    rest = "All that follows the prefix, slashes included; the bare prefix reaches the service too."
    schema: Json = {"type": "string"}
    if name != "path":
        schema["pattern"] = "^[A-Za-z0-9._-]{1,64}$"
    description = rest if name == "path" else "A tenant's id."
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


def _page(path: str) -> Json:
    summary, media, schema = PAGES[path]
    content: Json = {"schema": {"$ref": f"#/components/schemas/{schema}"} if schema else {}}
    answer: Json = {"description": summary, "headers": refs("X-Request-ID"), "content": {media: content}}
    return {
        "operationId": _operation_id("GET", path),
        "summary": summary,
        "tags": ["gateway"],
        "security": [],
        "responses": {"200": answer, **_problems(EVERYWHERE)},
    }


def _operation(route: Route, method: str) -> Json:
    operation: Json = {
        "operationId": _operation_id(method, _path(route)),
        "summary": _summary(route),
        "tags": ["services" if route.kind == "proxy" else "gateway"],
        "security": _security(route),
        "parameters": [
            *({"$ref": f"#/components/parameters/{name}"} for name in _parameter_names(route)),
            *([tenant_parameter()] if route.prefix in GET_ONLY else ()),
            *(stream_parameters() if route.prefix == STREAM else ()),
        ],
        "responses": {**_answer(route), **_problems(_statuses(route))},
    }
    rules = _rules(route, method)
    if rules:
        operation["description"] = rules
    if route.prefix == GEOCODE:
        operation["requestBody"] = geocode_request()
    elif method in WITH_BODY and route.action != "ticket":
        operation["requestBody"] = {"content": {"*/*": {"schema": {}}}}
    return operation


def _security(route: Route) -> list[dict[str, list[str]]]:
    if not route.auth:
        return []
    return STAYING_OPEN if route.prefix in GET_ONLY else SECURITY


def _summary(route: Route) -> str:
    if route.prefix == GEOCODE:
        return "The coordinates of an address"
    if route.kind == "proxy":
        return f"Passed through to the service {(route.service or '').replace('_', '-')}"
    if route.prefix == STREAM:
        return STREAM_SUMMARY
    if route.prefix in ANSWERED:
        return ANSWERED[route.prefix][0]
    if route.prefix == TRAINING:
        return "Training progress over WebSocket (RFC 6455)"
    return "Answered by the gateway"


def _rules(route: Route, method: str) -> str:
    rules = []
    if route.prefix == STREAM:
        rules.append(STREAM_RULES)
    if route.prefix == SESSION and method == "GET":
        rules.append("To a session's cookie the gateway answers itself: `csrf_token`, `user_id` and `tenant_id`.")
    if route.min_tier is not None:
        rules.append(f"Needs the subscription tier `{route.min_tier}` or a higher one.")
    if method in route.critical:
        rules.append(
            "A critical operation: the tenant service confirms the subscription first (401 `token-stale`, 503 "
            "`critical-check-unavailable`), and demo sessions are refused (403 `demo-isolation`)."
        )
    if route.limit is not None:
        rules.append(f"Limited to {route.limit.requests} requests in {route.limit.window_s} s.")
    if route.auth_limit:
        rules.append("Under a stricter limit by client address as well.")
    if route.max_body is not None:
        rules.append(f"Takes a body of at most {route.max_body} bytes.")
    return " ".join(rules)


def _parameter_names(route: Route) -> tuple[str, ...]:
    return ("RequestId", "TenantId") if route.auth and route.tenant else ("RequestId",)


def _answer(route: Route) -> Json:
    headers = refs("X-Request-ID", "RateLimit-Policy", "RateLimit")
    if route.prefix == GEOCODE:
        return {"200": {**geocode_answer(), "headers": headers}}
    if route.prefix == STREAM:
        return {"200": {"description": STREAM_SUMMARY, "headers": headers, "content": stream_content()}}
    if route.prefix == TRAINING:
        return {"101": {"description": "The service has accepted: from here on WebSocket.", "headers": headers}}
    description = "The service's own answer, unchanged." if route.kind == "proxy" else "The answer."
    headers = refs("X-Request-ID", "RateLimit-Policy", "RateLimit")
    if route.prefix in ANSWERED:
        schema: Json = {"$ref": f"#/components/schemas/{ANSWERED[route.prefix][1]}"}
        content: Json = {"application/json": {"schema": schema}}
        status = "201" if route.action == "ticket" else "200"
        return {status: {"description": description, "headers": headers, "content": content}}
    return {"2XX": {"description": description, "headers": headers}}


def _statuses(route: Route) -> set[int]:
    statuses = {*EVERYWHERE, *((502, 504) if route.kind == "proxy" or route.prefix in (GEOCODE, TRAINING) else ())}
    if route.prefix == TRAINING:
        statuses.add(426)
    if route.auth:
        statuses |= {401, 402} if route.tenant else {401}
    return statuses


def _problems(statuses: Iterable[int]) -> Json:
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in sorted(statuses)}


def _operation_id(method: str, path: str) -> str:
    return "-".join([method.lower(), *re.findall(r"\w+", path)])
