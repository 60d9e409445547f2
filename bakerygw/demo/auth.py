"""The demo's auth service: sign-in, registration, rotating refresh tokens, RS256 access tokens."""

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bakerygw.demo.accounts import DAY_S, Account, Directory, Tenant, iso
from bakerygw.demo.web import Answer, Call, ServiceError, not_allowed

ISSUER: Final = "bakery-auth"
ACCESS_TTL_S: Final = 1800
REFRESH_TTL_S: Final = 30 * DAY_S
TRIAL_S: Final = 14 * DAY_S
MIN_PASSWORD: Final = 8
MAX_GRANTS: Final = 10_000
"""Refresh tokens remembered, spent ones included; the oldest go first."""

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){1,8}")


class Issuer:
    """Signs access tokens with a key pair made for this run."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` gives Unix seconds."""
        self._now = now
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.public_pem = public.decode("ascii")

    def access_token(
        self, account: Account, directory: Directory, session_id: str, lifetime_s: int = ACCESS_TTL_S
    ) -> str:
        """A token for this person (RFC 7519), with what their bakeries pay for at this moment."""
        issued_at = int(self._now())
        tenant = _tenant_of(account, directory)
        claims: dict[str, object] = {
            "user_id": account.user_id,
            "email": account.email,
            "tenant_id": tenant.tenant_id,
            "tenant_role": account.role,
            "subscription": tenant.subscription,
            "tenant_access": _access_claims(account, directory),
            "exp": issued_at + lifetime_s,
            "iat": issued_at,
            "iss": ISSUER,
            "jti": str(uuid4()),
        }
        if account.old_token:
            del claims["subscription"], claims["email"]
        if tenant.demo:
            claims |= {"is_demo": True, "demo_session_id": session_id}
        return jwt.encode(claims, self._key, algorithm="RS256")


def _tenant_of(account: Account, directory: Directory) -> Tenant:
    tenant = directory.tenant(account.tenant_id)
    if tenant is None:
        raise LookupError(f"account {account.user_id} belongs to no tenant")
    return tenant


def _access_claims(account: Account, directory: Directory) -> list[dict[str, object]]:
    return [
        {"id": tenant.tenant_id, "role": access.role, **tenant.subscription}
        for access in account.access
        if (tenant := directory.tenant(access.tenant_id)) is not None
    ]


@dataclass(slots=True, kw_only=True)
class _Grant:
    """One refresh token of a session; all tokens of a session descend from one sign-in."""

    user_id: str
    session_id: str
    expires_at: float
    spent: bool = False


class AuthService:
    """`/api/v1/auth`: login, register, refresh, logout, me."""

    def __init__(self, directory: Directory, issuer: Issuer, now: Callable[[], float]) -> None:
        self._directory, self._issuer, self._now = directory, issuer, now
        self._grants: dict[str, _Grant] = {}
        """By SHA-256 of the refresh token, oldest first."""

    def __call__(self, call: Call) -> Answer:
        """Answer one call under `/api/v1/auth`."""
        name = call.path[3] if call.path[:3] == ("api", "v1", "auth") and len(call.path) == 4 else ""
        if name == "me":
            if call.method != "GET":
                raise not_allowed("GET")
            return self._me(call)
        actions = {
            "login": self._login,
            "register": self._register,
            "refresh": self._refresh,
            "logout": self._logout,
        }
        if name not in actions:
            raise ServiceError(404, "there is no such resource")
        if call.method != "POST":
            raise not_allowed("POST")
        return actions[name](call)

    def _login(self, call: Call) -> Answer:
        document = call.json()
        account = self._directory.authenticated(_text(document, "email"), _text(document, "password"))
        if account is None:
            raise ServiceError(401, "wrong e-mail address or password")
        return self._signed_in(account, str(uuid4()), lifetime_s=_lifetime(document))

    def _register(self, call: Call) -> Answer:
        document = call.json()
        email, password = _text(document, "email").lower(), _text(document, "password")
        if not _EMAIL.fullmatch(email):
            raise ServiceError(400, "email must be an e-mail address")
        if len(password) < MIN_PASSWORD:
            raise ServiceError(400, f"password must have at least {MIN_PASSWORD} characters")
        if self._directory.has_email(email):
            raise ServiceError(409, "this e-mail address is registered already")
        if self._directory.full():
            raise ServiceError(503, "the demo takes no further registrations")
        account = self._entered(email, password, document)
        return self._signed_in(account, str(uuid4()), status=201)

    def _entered(self, email: str, password: str, document: dict[str, object]) -> Account:
        """A new bakery on trial, with its owner."""
        tenant = Tenant(
            tenant_id=str(uuid4()),
            name=_text(document, "bakery_name", email.partition("@")[0]),
            city=_text(document, "city", ""),
            tier="starter",
            status="trialing",
            valid_until=iso(self._now() + TRIAL_S),
        )
        account = Account(
            user_id=str(uuid4()),
            email=email,
            full_name=_text(document, "full_name", ""),
            password=password,
            tenant_id=tenant.tenant_id,
            role="owner",
        )
        self._directory.add(tenant, account)
        return account

    def _refresh(self, call: Call) -> Answer:
        grant = self._grants.get(_digest(_text(call.json(), "refresh_token")))
        if grant is None or grant.expires_at <= self._now():
            raise ServiceError(401, "this refresh token is not valid")
        if grant.spent:
            # Whoever presents it, one of two holders has stolen it: both lose the session (RFC 9700 4.14.2).
            self._end(grant.session_id)
            raise ServiceError(401, "this refresh token was used before; the session has ended")
        account = self._directory.account(grant.user_id)
        if account is None:
            raise ServiceError(401, "this refresh token is not valid")
        grant.spent = True
        return self._signed_in(account, grant.session_id)

    def _logout(self, call: Call) -> Answer:
        user_id = self._caller(call).user_id
        token = _text(call.json(), "refresh_token", "") if call.body else ""
        grants = self._grants.values() if not token else filter(None, [self._grants.get(_digest(token))])
        sessions = {grant.session_id for grant in grants if grant.user_id == user_id}
        for session_id in sessions:
            self._end(session_id)
        return Answer(status=204)

    def _me(self, call: Call) -> Answer:
        account = self._caller(call)
        tenant = _tenant_of(account, self._directory)
        return Answer(
            body={
                "user_id": account.user_id,
                "email": account.email,
                "full_name": account.full_name,
                "tenant_id": account.tenant_id,
                "tenant_role": account.role,
                "subscription": tenant.subscription,
                "tenant_access": _access_claims(account, self._directory),
                "is_demo": tenant.demo,
            }
        )

    def _caller(self, call: Call) -> Account:
        account = self._directory.account(call.header("X-User-Id") or "")
        if account is None:
            raise ServiceError(401, "no such user; call through the gateway")
        return account

    def _signed_in(
        self, account: Account, session_id: str, *, status: int = 200, lifetime_s: int = ACCESS_TTL_S
    ) -> Answer:
        refresh_token = secrets.token_urlsafe(32)
        self._grants[_digest(refresh_token)] = _Grant(
            user_id=account.user_id, session_id=session_id, expires_at=self._now() + REFRESH_TTL_S
        )
        while len(self._grants) > MAX_GRANTS:
            del self._grants[next(iter(self._grants))]
        tokens = {
            "access_token": self._issuer.access_token(account, self._directory, session_id, lifetime_s),
            "refresh_token": refresh_token,
            "token_type": "bearer",
            "expires_in": lifetime_s,
        }
        return Answer(status=status, body=tokens, headers=(("Cache-Control", "no-store"),))

    def _end(self, session_id: str) -> None:
        self._grants = {key: grant for key, grant in self._grants.items() if grant.session_id != session_id}


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _lifetime(document: dict[str, object]) -> int:
    """Seconds that the access token is wanted for: fewer than usual, so that a client's refreshing can be tried."""
    value = document.get("expires_in", ACCESS_TTL_S)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= ACCESS_TTL_S:
        raise ServiceError(400, f"expires_in must be a whole number of seconds, at most {ACCESS_TTL_S}")
    return value


def _text(document: dict[str, object], name: str, default: str | None = None) -> str:
    value = document.get(name, default)
    if not isinstance(value, str) or len(value) > 1024 or (default is None and not value):
        raise ServiceError(400, f"{name} must be a text")
    return value
