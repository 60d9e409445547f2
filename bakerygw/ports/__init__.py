"""What the gateway needs from its outside, as protocols: the policies know these and nothing behind them."""

from bakerygw.ports.identity import Credentials, Scheme, Sealer, TokenRefused
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
from bakerygw.ports.telemetry import Audit, StoreTelemetry, Telemetry
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
    "HealthSource",
    "Records",
    "RevocationStore",
    "Scheme",
    "Sealer",
    "ServiceHealth",
    "StoreLink",
    "StoreTelemetry",
    "StoreUnavailable",
    "Telemetry",
    "TenantStore",
    "TokenRefused",
    "UpstreamFailed",
    "UpstreamRequest",
    "UpstreamResponse",
    "Upstreams",
]
