"""What the gateway needs from its outside, as protocols: the policies know these and nothing behind them."""

from bakerygw.ports.identity import Credentials, CredentialsUnavailable, Scheme, TokenRefused
from bakerygw.ports.state import (
    AdmissionAsk,
    AdmissionState,
    AdmissionStore,
    Records,
    RevocationStore,
    StoreLink,
    StoreUnavailable,
    TenantStore,
)
from bakerygw.ports.telemetry import Audit, StoreTelemetry, Telemetry, TokenTelemetry
from bakerygw.ports.upstream import (
    HealthSource,
    ServiceHealth,
    UpstreamFailed,
    UpstreamRequest,
    UpstreamResponse,
    Upstreams,
)

__all__ = [
    "AdmissionAsk",
    "AdmissionState",
    "AdmissionStore",
    "Audit",
    "Credentials",
    "CredentialsUnavailable",
    "HealthSource",
    "Records",
    "RevocationStore",
    "Scheme",
    "ServiceHealth",
    "StoreLink",
    "StoreTelemetry",
    "StoreUnavailable",
    "Telemetry",
    "TenantStore",
    "TokenRefused",
    "TokenTelemetry",
    "UpstreamFailed",
    "UpstreamRequest",
    "UpstreamResponse",
    "Upstreams",
]
