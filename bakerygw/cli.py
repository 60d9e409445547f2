"""The operators' command line: check a configuration, show its routes, mint a token for development."""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TextIO

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bakerygw import __version__
from bakerygw.audit_cli import add_audit, run_audit
from bakerygw.config.checks import may_geocode
from bakerygw.config.settings import ALGORITHMS, ConfigError, Settings, load_settings
from bakerygw.core.claims import ClaimsError, claims_from, is_id
from bakerygw.core.routing import Route
from bakerygw.core.stacks import stacks_of

_TIERS: Final = ("starter", "professional", "enterprise")
_DEFAULT_VALIDITY: Final = timedelta(days=30)
_MIN_EXPIRY_S, _MAX_EXPIRY_S = -31_536_000, 31_536_000


class _UserError(Exception):
    """What the user asked for cannot be done; the text says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of `bakerygw`; returns the exit status: 0 done, 1 refused or not read to its end, 2 misused."""
    try:
        status = run(sys.argv[1:] if argv is None else argv, environ=os.environ, out=sys.stdout, err=sys.stderr)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain as it ends
        return 1
    return status


def run(argv: Sequence[str], *, environ: Mapping[str, str], out: TextIO, err: TextIO) -> int:
    """`main` with its surroundings passed in."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as ended:  # argparse has printed its help or its complaint
        return ended.code if isinstance(ended.code, int) else 2
    try:
        if options.command == "token":
            print(mint(options, now=time.time()), file=out)
            return 0
        settings = load_settings(environ, options.config, demo=options.demo)
        if options.command == "audit":
            return run_audit(options, settings, environ=environ, out=out, err=err)
        print(_summary(settings) if options.command == "check" else _table(settings), file=out)
    except ConfigError as error:
        print(*error.problems, sep="\n", file=err)
        return 1
    except _UserError as mistake:
        print(f"bakerygw {options.command}: {mistake}", file=err)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bakerygw", description="Tools for operators of the gateway.")
    parser.add_argument("--version", action="version", version=f"bakerygw {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("check", "check the configuration and print every error"), ("routes", "print the routes")):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("--config", metavar="FILE", help="TOML file; the environment wins over it")
        command.add_argument("--demo", action="store_true", help="as `twistd -n bakerygw --demo` would see it")
    text = "what the audit trail holds about one user: export it, erase it"
    add_audit(commands.add_parser("audit", help=text, description=f"{text[0].upper()}{text[1:]}."))
    _add_token(commands.add_parser("token", help="mint a development token", description="Mint a development token."))
    return parser


def _add_token(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--private-key", "--key", metavar="FILE", required=True, help="unencrypted PEM file with the key to sign with"
    )
    command.add_argument("--algorithm", default="RS256", choices=ALGORITHMS, help="default: RS256")
    command.add_argument("--user", type=_id, default="dev-user", help="user id; default: dev-user")
    command.add_argument("--email", help="default: the user id at example.com")
    command.add_argument("--tenant", type=_id, required=True, help="tenant id")
    command.add_argument("--role", type=_id, default="owner", help="role in the tenant; default: owner")
    command.add_argument("--tier", default="professional", choices=_TIERS, help="default: professional")
    command.add_argument("--status", default="active", help="status of the subscription; default: active")
    command.add_argument("--valid-until", metavar="TIME", type=_moment, help="ISO 8601; default: in 30 days")
    command.add_argument(
        "--expires-in", metavar="SECONDS", type=_expiry, default=3600, help="default: 3600; negative: expired already"
    )
    command.add_argument("--demo-session", metavar="ID", type=_id, help="makes it a demo token")
    command.add_argument("--issuer", default="bakery-auth", help="default: bakery-auth")
    command.add_argument("--audience", help="default: none")
    command.add_argument(
        "--access", metavar="TENANT:ROLE:TIER", type=_access, action="append", help="a further tenant; repeatable"
    )


def _id(text: str) -> str:
    if not is_id(text):
        raise argparse.ArgumentTypeError(f"{text!r}: 1 to 64 letters, digits and . _ -")
    return text


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r}: a time in ISO 8601, e.g. 2030-12-31T23:59:59Z") from None


def _expiry(text: str) -> int:
    seconds = int(text)
    if not _MIN_EXPIRY_S <= seconds <= _MAX_EXPIRY_S:
        raise argparse.ArgumentTypeError(f"{text}: at most a year")
    return seconds


def _access(text: str) -> dict[str, str]:
    tenant, *rest = text.split(":")
    if not is_id(tenant) or len(rest) != 2 or not is_id(rest[0]) or rest[1] not in _TIERS:
        raise argparse.ArgumentTypeError(f"{text!r}: TENANT:ROLE:TIER, the tier one of {', '.join(_TIERS)}")
    return {"id": tenant, "role": rest[0], "tier": rest[1]}


def mint(options: argparse.Namespace, *, now: float) -> str:
    """A signed token for the options of `bakerygw token`; `now` in Unix seconds. Raises `_UserError`."""
    issued = int(now)
    valid_until = options.valid_until or datetime.fromtimestamp(issued, UTC) + _DEFAULT_VALIDITY
    subscription = {
        "tier": options.tier,
        "status": options.status,
        "valid_until": valid_until.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    claims: dict[str, object] = {
        "user_id": options.user,
        "email": options.email or f"{options.user}@example.com",
        "tenant_id": options.tenant,
        "tenant_role": options.role,
        "subscription": subscription,
        "tenant_access": [subscription | entry for entry in options.access or ()],
        # An expired token was issued before it expired.
        "iat": min(issued, issued + options.expires_in - 1),
        "exp": issued + options.expires_in,
        "iss": options.issuer,
    }
    if options.audience:
        claims["aud"] = options.audience
    if options.demo_session:
        claims |= {"is_demo": True, "demo_session_id": options.demo_session}
    try:
        claims_from(claims)
    except ClaimsError as error:
        raise _UserError(f"the gateway would refuse this token for its {error.reason}") from None
    return _signed(claims, options.private_key, options.algorithm)


def _signed(claims: dict[str, object], path: str, algorithm: str) -> str:
    try:
        with open(path, "rb") as stream:
            pem = stream.read()
        load_pem_private_key(pem, password=None)
    except OSError as error:
        raise _UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except TypeError:
        raise _UserError(f"{path}: the key is encrypted; give an unencrypted one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _UserError(f"{path}: is not a private key in PEM") from None
    try:
        return jwt.encode(claims, pem, algorithm=algorithm)
    except (jwt.PyJWTError, TypeError, ValueError, AttributeError):
        raise _UserError(f"{path}: the key does not fit the algorithm {algorithm}") from None


def _summary(settings: Settings) -> str:
    number = len(settings.services)
    services = "1 service" if number == 1 else f"{number} services"
    others = " and the demo's" if settings.demo else ""
    summary = f"configuration ok: {len(settings.routes)} routes, {services}{others}"
    if "nominatim_url" in settings.model_fields_set and not may_geocode(settings):
        return f"{summary}\nnote: addresses are not looked up: {settings.nominatim_url} needs NOMINATIM_USER_AGENT"
    return summary


def _table(settings: Settings) -> str:
    rows = [("PATH", "TO", "AUTH", "METHODS", "LIMIT")]
    rows += [_row(route, settings) for route in sorted(settings.routes, key=lambda route: route.prefix)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(route: Route, settings: Settings) -> tuple[str, str, str, str, str]:
    to = {"local": "gateway", "stream": "gateway"}.get(route.kind, route.service or "")
    if route.action == "geocode":
        to = "gateway" if may_geocode(settings) else "gateway (demo)" if settings.demo else "gateway (not set up)"
    if route.kind == "proxy" and route.service not in settings.services:
        to += " (demo)" if settings.demo else " (no URL)"
    rule = route.limit
    requests = rule.requests if rule else settings.rate_limit_requests
    limit = f"{requests}/{rule.window_s if rule else settings.rate_limit_window_seconds}s"
    if rule and rule.shadow:
        limit += " (shadow)"
    if route.auth_limit:
        limit += f", {settings.auth_rate_limit_requests}/{settings.rate_limit_window_seconds}s by address"
    for policy in stacks_of(settings.limit_policies, (route,)).get(route.prefix, ()):
        if not route.auth and (policy.rule.by != "address" or policy.tier):
            continue  # no token is read there
        its, tier = policy.rule, f" ({policy.tier})" if policy.tier else ""
        limit += f", {its.requests}/{its.window_s}s by {its.by}{tier}{' (shadow)' if its.shadow else ''}"
    if route.unlimited:
        limit = "none"
    auth = "required" if route.auth else "public"
    return route.template, to, auth, " ".join(sorted(route.methods)) if route.methods else "any", limit
