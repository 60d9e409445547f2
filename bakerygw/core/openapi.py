"""The OpenAPI 3.1 document of the gateway's own routes and problems, made from the route table."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from bakerygw.core.openapi_geocode import geocode_answer, geocode_request, geocode_schemas
from bakerygw.core.problem import BEARER_CHALLENGE, PROBLEMS, TYPE_BASE
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
}
"""The gateway's own pages: summary, media type, schema."""

LATER: Final[Mapping[str, str]] = {
    "/api/v1/alerts/stream": "Alerts of the tenant as server-sent events",
    "/api/v1/alerts/ticket": "A ticket that opens one stream or socket",
    "/api/v1/training/ws": "Training progress over WebSocket",
}
GET_ONLY: Final = frozenset({"/api/v1/alerts/stream", "/api/v1/training/ws"})

ANSWERED: Final[Mapping[str, tuple[str, str]]] = {
    "/api/v1/limits": ("The caller's limits, what remains of them, and their reset", "Limits"),
}
"""What the gateway answers to callers with a token: summary, schema."""
GEOCODE: Final = "/api/v1/geocode"

INTRODUCTION: Final = (
    "One origin for the REST services of Bakery-IA. Paths under a service's prefix reach that service byte for byte, "
    "and its own answers pass unchanged. What the gateway itself refuses is a problem document (RFC 9457) whose `code` "
    "says why; its codes are listed with each status."
)


def build_document(routes: Iterable[Route], *, version: str) -> Json:
    """The document, valid OpenAPI 3.1, for this route table; the gateway's own pages are always part of it."""
    paths: dict[str, Json] = {path: {"get": _page(path)} for path in PAGES}
    for route in sorted(routes, key=lambda route: route.prefix):
        if route.prefix not in PAGES:
            paths[_path(route)] = _path_item(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bakery-IA gateway", "version": version, "description": INTRODUCTION},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [
            {"name": "gateway", "description": "Answered by the gateway itself."},
            {"name": "services", "description": "Passed through to the service that the prefix belongs to."},
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "parameters": _parameters(),
            "headers": _headers(),
            "responses": {f"Problem{status}": _problem_response(status) for status in sorted(_codes_by_status())},
            "schemas": {
                "Problem": _problem_schema(),
                **_health_schemas(),
                **geocode_schemas(),
                "Limits": _limits_schema(),
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
    answer: Json = {"description": summary, "headers": _refs("X-Request-ID"), "content": {media: content}}
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
        "security": [{"bearer": []}] if route.auth else [],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _parameter_names(route)],
        "responses": {**_answer(route), **_problems(_statuses(route))},
    }
    rules = _rules(route, method)
    if rules:
        operation["description"] = rules
    if route.prefix == GEOCODE:
        operation["requestBody"] = geocode_request()
    elif method in WITH_BODY:
        operation["requestBody"] = {"content": {"*/*": {"schema": {}}}}
    return operation


def _summary(route: Route) -> str:
    if route.kind == "proxy":
        return f"Passed through to the service {(route.service or '').replace('_', '-')}"
    if route.prefix in ANSWERED:
        return ANSWERED[route.prefix][0]
    return LATER.get(route.prefix, "Answered by the gateway")


def _rules(route: Route, method: str) -> str:
    rules = []
    if route.kind == "later" and route.prefix != GEOCODE:
        rules.append("For the time being this answers 503 with the code `service-unavailable`.")
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
    headers = _refs("X-Request-ID", "RateLimit-Policy", "RateLimit")
    if route.prefix == GEOCODE:
        return {"200": {**geocode_answer(), "headers": headers}}
    if route.kind == "later":
        return {}
    description = "The service's own answer, unchanged." if route.kind == "proxy" else "The answer."
    headers = _refs("X-Request-ID", "RateLimit-Policy", "RateLimit")
    if route.prefix in ANSWERED:
        schema: Json = {"$ref": f"#/components/schemas/{ANSWERED[route.prefix][1]}"}
        content: Json = {"application/json": {"schema": schema}}
        return {"200": {"description": description, "headers": headers, "content": content}}
    return {"2XX": {"description": description, "headers": headers}}


def _statuses(route: Route) -> set[int]:
    statuses = {*EVERYWHERE, *((502, 504) if route.kind == "proxy" or route.prefix == GEOCODE else ())}
    if route.auth:
        statuses |= {401, 402} if route.tenant else {401}
    return statuses


def _problems(statuses: Iterable[int]) -> Json:
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in sorted(statuses)}


def _operation_id(method: str, path: str) -> str:
    return "-".join([method.lower(), *re.findall(r"\w+", path)])


def _refs(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _codes_by_status() -> dict[int, list[str]]:
    codes: dict[int, list[str]] = {}
    for code, (status, _) in PROBLEMS.items():
        codes.setdefault(status, []).append(code)
    return codes


def _problem_response(status: int) -> Json:
    codes = _codes_by_status()[status]
    lines = "\n".join(f"- `{code}`: {PROBLEMS[code][1]}" for code in codes)
    names = ["X-Request-ID"]
    if any(code in BEARER_CHALLENGE for code in codes):
        names.append("WWW-Authenticate")
    if status in (429, 503):
        names.append("Retry-After")
    if status == 405:
        names.append("Allow")
    if status == 429:
        names += ["RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]
    narrowed: Json = {"properties": {"status": {"const": status}, "code": {"enum": codes}}}
    schema: Json = {"allOf": [{"$ref": "#/components/schemas/Problem"}, narrowed]}
    return {
        "description": f"Refused by the gateway:\n{lines}",
        "headers": _refs(*names),
        "content": {"application/problem+json": {"schema": schema}},
    }


def _problem_schema() -> Json:
    text: Json = {"type": "string"}
    return {
        "type": "object",
        "description": "A problem document (RFC 9457). Further members depend on the code, e.g. `required_tier`.",
        "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
        "properties": {
            "type": {"type": "string", "format": "uri", "examples": [TYPE_BASE + "rate-limited"]},
            "title": text,
            "status": {"type": "integer", "enum": sorted(_codes_by_status())},
            "detail": text,
            "instance": {"type": "string", "description": "The path of the request, without its query."},
            "code": {"type": "string", "enum": list(PROBLEMS)},
            "request_id": text,
            "retry_after": {"type": "integer", "description": "Seconds, as in `Retry-After`."},
        },
    }


def _health_schemas() -> Json:
    word: Json = {"type": "string", "enum": ["healthy", "unhealthy", "unknown"]}
    time: Json = {"type": "string", "format": "date-time"}
    row: Json = {
        "type": "object",
        "required": ["status", "latency_ms", "since", "breaker"],
        "properties": {
            "status": word,
            "latency_ms": {"type": ["number", "null"]},
            "since": {**time, "type": ["string", "null"]},
            "breaker": {"type": "string", "enum": ["closed", "half-open", "open"]},
        },
    }
    schemas: Json = {}
    for name, service in (("Health", word), ("HealthDetails", row)):
        properties: Json = {
            "status": {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]},
            "version": {"type": "string"},
            "services": {"type": "object", "additionalProperties": service},
            "redis": {"type": "string", "enum": ["connected", "disconnected", "embedded"]},
            "timestamp": time,
        }
        schemas[name] = {"type": "object", "required": sorted(properties), "properties": properties}
    return schemas


def _limits_schema() -> Json:
    count: Json = {"type": "integer", "minimum": 0}
    row: Json = {
        "policy": {"type": "string", "description": "As in `RateLimit-Policy`."},
        "scope": {"type": "string", "enum": ["user", "tenant", "address"]},
        "limit": {**count, "description": "Requests in a full bucket."},
        "window_seconds": {**count, "description": "In which an empty bucket becomes full, evenly."},
        "remaining": count,
        "reset_seconds": {**count, "description": "Until the bucket is full."},
        "retry_after": {**count, "description": "Seconds until a request passes again; only while nothing is left."},
        "until": {"type": "string", "format": "date-time", "description": "The end of a limit that holds for a time."},
    }
    optional = ("retry_after", "until")
    required = [name for name in row if name not in optional]
    properties: Json = {
        "tenant_id": {"type": "string"},
        "limits": {"type": "array", "items": {"type": "object", "required": required, "properties": row}},
        "concurrent_requests": {**count, "description": "Of the tenant at the same time, on each instance."},
    }
    return {"type": "object", "required": sorted(properties), "properties": properties}


def _parameters() -> Json:
    request_id: Json = {"type": "string", "pattern": "^[A-Za-z0-9._-]{8,128}$"}
    tenant_id: Json = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}
    return {
        "RequestId": {
            "name": "X-Request-ID",
            "in": "header",
            "schema": request_id,
            "description": "Names this request in answers and logs; one is made if it is missing or malformed.",
        },
        "TenantId": {
            "name": "X-Tenant-ID",
            "in": "header",
            "schema": tenant_id,
            "description": "The tenant to act for; the token's own if missing.",
        },
    }


def _headers() -> Json:
    text = {
        "X-Request-ID": "The id of this request.",
        "WWW-Authenticate": "The bearer challenge (RFC 6750).",
        "Allow": "The methods that work here.",
        "RateLimit-Policy": "The limits that apply, as in the IETF draft.",
        "RateLimit": "What remains, and in how many seconds the bucket is full, as in the IETF draft.",
    }
    numbers = {
        "Retry-After": "Seconds after which to try again.",
        "X-RateLimit-Limit": "Requests in a window.",
        "X-RateLimit-Remaining": "Requests left.",
        "X-RateLimit-Reset": "Seconds until the bucket is full.",
    }
    headers: Json = {name: {"description": it, "schema": {"type": "string"}} for name, it in text.items()}
    headers.update({name: {"description": it, "schema": {"type": "integer"}} for name, it in numbers.items()})
    return headers
