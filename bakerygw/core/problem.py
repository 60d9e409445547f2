"""Every error the gateway itself answers: its code, status and title (RFC 9457)."""

import json
from dataclasses import dataclass, field
from typing import Final

from bakerygw.core.http import Pairs, Reply, RequestHead

TYPE_BASE: Final = "https://bakery-ia.example/problems/"

PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "bad-request": (400, "Bad request"),
    "tenant-ambiguous": (400, "Two different tenants in one request"),
    "token-missing": (401, "No token or key"),
    "token-invalid": (401, "Invalid token or key"),
    "token-expired": (401, "Token or key expired"),
    "token-stale": (401, "Access token is older than the subscription"),
    "token-revoked": (401, "Token or key no longer in force"),
    "subscription-expired": (402, "Subscription expired"),
    "subscription-inactive": (402, "Subscription not active"),
    "tier-required": (403, "Needs a higher subscription tier"),
    "tenant-forbidden": (403, "No access to this tenant or to this part of it"),
    "tenant-read-only": (403, "Tenant is read-only"),
    "demo-isolation": (403, "Demo and real tenants are kept apart"),
    "insecure-transport": (403, "HTTPS required"),
    "csrf": (403, "Cross-site request refused"),
    "origin-forbidden": (403, "Origin not allowed"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "request-timeout": (408, "Request took too long to arrive"),
    "body-too-large": (413, "Request body too large"),
    "uri-too-long": (414, "Request target too long"),
    "expectation-failed": (417, "Expectation failed"),
    "upgrade-required": (426, "Upgrade required"),
    "rate-limited": (429, "Too many requests"),
    "too-many-streams": (429, "Too many open streams"),
    "headers-too-large": (431, "Request header fields too large"),
    "internal-error": (500, "Internal error"),
    "method-not-implemented": (501, "Method not implemented"),
    "upstream-unreachable": (502, "Service unreachable"),
    "upstream-invalid": (502, "Invalid answer from the service"),
    "service-unavailable": (503, "Service unavailable"),
    "critical-check-unavailable": (503, "Subscription could not be checked"),
    "state-unavailable": (503, "Shared state unavailable"),
    "upstream-timeout": (504, "Service did not answer in time"),
}

# Of a problem that brings no challenge of its own.
BEARER_CHALLENGE: Final = {
    "token-missing": b"Bearer",
    "token-invalid": b'Bearer error="invalid_token"',
    "token-expired": b'Bearer error="invalid_token"',
    "token-stale": b'Bearer error="invalid_token"',
    "token-revoked": b'Bearer error="invalid_token"',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error with what a caller needs in order to act on it."""

    code: str
    detail: str
    """A sentence for people, without anything internal."""
    members: dict[str, object] = field(default_factory=dict)
    """Further JSON members, e.g. `required_tier`."""
    headers: Pairs = ()
    """Header fields that belong to this error, e.g. `Allow`."""
    retry_after_s: int | None = None
    """Sent as `Retry-After` and as the member `retry_after`, in seconds."""
    close: bool = False
    """Nothing further on this connection can be trusted or is worth reading."""
    reason: str = ""
    """For the log and never for the client: the cause, more exact than the code."""

    @property
    def status(self) -> int:
        """The HTTP status of this code."""
        return PROBLEMS[self.code][0]


class Refused(Exception):
    """A policy's decision that the request ends here, with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.head: RequestHead | None = None
        """The request's head, where a refusal that comes before everything else knows it."""


def refuse(code: str, detail: str, *, reason: str = "", close: bool = False, **members: object) -> Refused:
    """A `Refused` for the common case: code, sentence and JSON members."""
    return Refused(Problem(code=code, detail=detail, reason=reason, close=close, members=members))


def problem_reply(problem: Problem, *, instance: str, request_id: str) -> Reply:
    """The `application/problem+json` reply (RFC 9457) for one problem.

    `instance` is the request's path, without its query.
    """
    status, title = PROBLEMS[problem.code]
    document: dict[str, object] = {
        "type": TYPE_BASE + problem.code,
        "title": title,
        "status": status,
        "detail": problem.detail,
        "instance": instance,
        "code": problem.code,
        "request_id": request_id,
    }
    for name, value in problem.members.items():
        document.setdefault(name, value)  # no policy may redefine the members above
    headers = [(b"Content-Type", b"application/problem+json"), (b"Cache-Control", b"no-store")]
    challenge = BEARER_CHALLENGE.get(problem.code)
    if challenge is not None and not any(name == b"WWW-Authenticate" for name, _ in problem.headers):
        headers.append((b"WWW-Authenticate", challenge))
    if problem.retry_after_s is not None:
        document["retry_after"] = problem.retry_after_s
        headers.append((b"Retry-After", b"%d" % problem.retry_after_s))
    body = json.dumps(document, ensure_ascii=False).encode()
    return Reply(status=status, headers=(*headers, *problem.headers), body=body, close=problem.close)
