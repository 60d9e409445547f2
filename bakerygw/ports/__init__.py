"""What the gateway needs from its outside, as protocols: the policies know these and nothing behind them."""

from bakerygw.ports.audit import AuditStore, Ledger, SignalKind, Signals
from bakerygw.ports.identity import Credentials, Scheme, TokenRefused
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
    "AuditStore",
    "Credentials",
    "HealthSource",
    "Ledger",
    "Records",
    "RevocationStore",
    "Scheme",
    "ServiceHealth",
    "SignalKind",
    "Signals",
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
