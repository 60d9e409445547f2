"""What must hold for every answer of the gateway, as plain functions that tell what is wrong with one."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PROBLEM: Final = "application/problem+json"
_MEMBER: Final = re.compile(r'\s*"([^"]+)"((?:;[a-z]+=\d+)+)\s*')


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer as it arrived."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def document(self) -> dict[str, object]:
        """The body as a JSON object; empty if it is none."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    @property
    def code(self) -> str:
        """The problem's code (RFC 9457); empty where a service answered."""
        is_problem = self.headers.get("content-type", "").startswith(PROBLEM)
        return str(self.document.get("code", "")) if is_problem else ""

    @property
    def retry_after_s(self) -> int:
        """What `Retry-After` says, at least one second."""
        text = self.headers.get("retry-after", "")
        return max(1, int(text)) if text.isdigit() else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which answer is right."""

    statuses: tuple[int, ...] = (200,)
    codes: tuple[str, ...] = ()
    """Problem codes that are right; any of them will do instead of one of `statuses`."""
    limited: bool = True
    """Whether the request is counted by a limit, which every answer to it tells."""
    grace: bool = False
    """Whether the subscription is in its grace."""
    tenant_id: str | None = None
    """Whose records may be in the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One limit out of `RateLimit` and `RateLimit-Policy`."""

    name: str
    quota: int
    window_s: int
    left: int
    full_in_s: int

    def wait_s(self, reserve: float) -> float:
        """Seconds until this share of the bucket is there again, 0 if it is."""
        spent, lacking = self.quota - self.left, self.quota * reserve - self.left
        return self.full_in_s * lacking / spent if lacking > 0 and spent else 0.0


def levels(answer: Answer) -> tuple[Level, ...]:
    """The limits that an answer tells. Raises `ValueError` if they cannot be understood or do not go together."""
    policies, state = (_members(answer.headers.get(name, "")) for name in ("ratelimit-policy", "ratelimit"))
    if policies.keys() != state.keys():
        raise ValueError("RateLimit and RateLimit-Policy name different limits")
    try:
        return tuple(
            Level(name=name, quota=quota["q"], window_s=quota["w"], left=now["r"], full_in_s=now["t"])
            for (name, quota), now in zip(policies.items(), state.values(), strict=True)
        )
    except KeyError as error:
        raise ValueError(f"RateLimit lacks {error}") from None


def _members(text: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for member in filter(None, text.split(",")):
        match = _MEMBER.fullmatch(member)
        if match is None:
            raise ValueError(f"cannot read {member!r}")
        pairs = (pair.split("=") for pair in match[2].strip(";").split(";"))
        found[match[1]] = {key: int(number) for key, number in pairs}
    return found


def complaints(answer: Answer, wanted: Wanted, request_id: str) -> list[str]:
    """What is wrong with an answer, each in a few words; empty if it is as wanted."""
    found = [_outcome(answer, wanted)]
    if answer.headers.get("x-request-id") != request_id:
        found.append("X-Request-ID is not the one that was sent")
    if answer.headers.get("x-content-type-options") != "nosniff":
        found.append("no X-Content-Type-Options")
    if answer.code:
        found += _problem(answer, request_id)
    elif wanted.grace and "x-subscription-grace" not in answer.headers:
        found.append("no X-Subscription-Grace")
    if wanted.limited:
        found += _limits(answer)
    found.append(_records(answer, wanted.tenant_id))
    return [complaint for complaint in found if complaint]


def _outcome(answer: Answer, wanted: Wanted) -> str:
    if answer.code:
        return "" if answer.code in wanted.codes else f"{answer.status} {answer.code}"
    return "" if answer.status in wanted.statuses else f"{answer.status} by the service"


def _problem(answer: Answer, request_id: str) -> list[str]:
    """RFC 9457 and the gateway's own promises about problems."""
    document, headers, found = answer.document, answer.headers, []
    if document.get("status") != answer.status:
        found.append("the problem's status is not the answer's")
    if document.get("request_id") != request_id:
        found.append("the problem has another request id")
    if not all(isinstance(document.get(name), str) for name in ("type", "title", "detail")):
        found.append("the problem lacks type, title or detail")
    if answer.status == 401 and not headers.get("www-authenticate", "").startswith("Bearer"):
        found.append("401 without WWW-Authenticate")
    if answer.status == 405 and "allow" not in headers:
        found.append("405 without Allow")
    if answer.status == 429 and str(document.get("retry_after")) != headers.get("retry-after"):
        found.append("429 whose Retry-After is missing or not the problem's")
    return found


def _limits(answer: Answer) -> list[str]:
    try:
        told = levels(answer)
    except ValueError as error:
        return [str(error)]
    if not told:
        return ["no RateLimit"]
    if any(level.left > level.quota for level in told):
        return ["RateLimit has more left than there is"]
    least = min(level.left for level in told)
    if answer.headers.get("x-ratelimit-remaining") != str(least):
        return ["X-RateLimit-Remaining is not the least of RateLimit"]
    return []


def _records(answer: Answer, tenant_id: str | None) -> str:
    """Nobody sees another tenant's records."""
    if tenant_id is None or answer.code:
        return ""
    items = answer.document.get("items", ())
    owners = {item.get("tenant_id", tenant_id) for item in items if isinstance(item, dict)} if items else set()  # type: ignore[attr-defined]
    return "" if owners <= {tenant_id} else "ANOTHER TENANT'S RECORDS"
