"""What the operations of the OpenAPI document share: schemas, parameters, headers, and the responses of problems."""

from bakerygw.core.problem import BEARER_CHALLENGE, PROBLEMS, TYPE_BASE

Json = dict[str, object]


def refs(*names: str) -> Json:
    """References to shared headers."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def codes_by_status() -> dict[int, list[str]]:
    """The problem codes by their HTTP status."""
    codes: dict[int, list[str]] = {}
    for code, (status, _) in PROBLEMS.items():
        codes.setdefault(status, []).append(code)
    return codes


def problem_response(status: int) -> Json:
    """The response component of all problems of one status."""
    codes = codes_by_status()[status]
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
        "headers": refs(*names),
        "content": {"application/problem+json": {"schema": schema}},
    }


def problem_schema() -> Json:
    """The schema of a problem (RFC 9457)."""
    text: Json = {"type": "string"}
    return {
        "type": "object",
        "description": "A problem document (RFC 9457). Further members depend on the code, e.g. `required_tier`.",
        "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
        "properties": {
            "type": {"type": "string", "format": "uri", "examples": [TYPE_BASE + "rate-limited"]},
            "title": text,
            "status": {"type": "integer", "enum": sorted(codes_by_status())},
            "detail": text,
            "instance": {"type": "string", "description": "The path of the request, without its query."},
            "code": {"type": "string", "enum": list(PROBLEMS)},
            "request_id": text,
            "retry_after": {"type": "integer", "description": "Seconds, as in `Retry-After`."},
        },
    }


def health_schemas() -> Json:
    """The schemas of both health pages."""
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


def limits_schema() -> Json:
    """The schema of the caller's limits."""
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


def ticket_schema() -> Json:
    """The schema of a new ticket."""
    properties: Json = {
        "ticket": {"type": "string", "description": "For the parameter `ticket` of the stream or socket."},
        "expires_in": {"type": "integer", "description": "Seconds."},
    }
    return {"type": "object", "required": sorted(properties), "properties": properties}


def parameters() -> Json:
    """The header and path parameters that operations share."""
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


def headers() -> Json:
    """The response headers that operations share."""
    text = {
        "X-Request-ID": "The id of this request.",
        "WWW-Authenticate": "The bearer challenge (RFC 6750), or that for API keys.",
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
