"""Tokens for tests: good ones from an issuer with its own key, and whatever else an attacker may send."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

ABSENT: Final = object()
"""As the value of an override: leave this claim or header parameter out."""

USER_ID: Final = "11111111-1111-4111-8111-111111111111"
TENANT_ID: Final = "22222222-2222-4222-8222-222222222222"
OTHER_TENANT_ID: Final = "33333333-3333-4333-8333-333333333333"


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(segment: str) -> bytes:
    """The bytes of a base64url segment without padding."""
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def join(header: bytes, payload: bytes, signature: bytes) -> str:
    """A compact token of raw bytes, whatever they are."""
    return ".".join(map(b64, (header, payload, signature)))


def iso(unix_s: float) -> str:
    """An instant as `valid_until` has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))


def access(tenant_id: str, role: str, tier: str) -> dict[str, Any]:
    """An entry of `tenant_access` that tells all of its tenant's subscription, which is active."""
    return {"id": tenant_id, "role": role, "tier": tier, "status": "active", "valid_until": "2099-01-01T00:00:00Z"}


def _without_absent(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not ABSENT}


def _private_key(algorithm: str, bits: int) -> Any:
    curves: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    if algorithm in curves:
        return ec.generate_private_key(curves[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


class Issuer:
    """An auth service with a fresh key. `now` gives Unix seconds for `iat`, `exp` and `valid_until`."""

    def __init__(
        self,
        *,
        algorithm: str = "RS256",
        bits: int = 2048,
        issuer: str = "bakery-auth",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.algorithm, self.issuer, self._now = algorithm, issuer, now
        self.key = _private_key(algorithm, bits)
        self.private_pem: str = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.public_pem: str = (
            self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        )

    def claims(self, **overrides: Any) -> dict[str, Any]:
        """The payload of a good token, valid for half an hour, of an owner with an active subscription."""
        now = int(self._now())
        good = {
            "user_id": USER_ID,
            "email": "ana@panaderia.example",
            "tenant_id": TENANT_ID,
            "tenant_role": "owner",
            "subscription": {"tier": "professional", "status": "active", "valid_until": iso(now + 30 * 86_400)},
            "tenant_access": [],
            "exp": now + 1800,
            "iat": now,
            "iss": self.issuer,
        }
        return _without_absent({**good, **overrides})

    def token(self, **overrides: Any) -> str:
        """A good token, with single claims replaced, or left out by `ABSENT`."""
        return self.with_header({}, **overrides)

    def with_header(self, header: dict[str, Any], **overrides: Any) -> str:
        """A rightly signed token with single header parameters, and claims, replaced or left out."""
        members = _without_absent({"alg": self.algorithm, "typ": "JWT", **header})
        return self.signed(json.dumps(members).encode(), json.dumps(self.claims(**overrides)).encode())

    def signed(self, header: bytes, payload: bytes) -> str:
        """A rightly signed token of any header and payload bytes."""
        return self.signed_text(f"{b64(header)}.{b64(payload)}")

    def signed_text(self, signing_input: str) -> str:
        """The given `header.payload` text, however encoded, with the right signature."""
        signature = jwt.get_algorithm_by_name(self.algorithm).sign(signing_input.encode(), self.key)
        return f"{signing_input}.{b64(signature)}"

    def header(self) -> bytes:
        """The header of a good token."""
        return json.dumps({"alg": self.algorithm, "typ": "JWT"}).encode()

    def payload(self, **overrides: Any) -> bytes:
        """The payload of a good token, as bytes."""
        return json.dumps(self.claims(**overrides)).encode()
