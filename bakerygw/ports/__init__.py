"""What the gateway needs from its outside, as protocols: the policies know these and nothing behind them."""

from bakerygw.ports.audit import AuditStore, Ledger, SignalKind, Signals
from bakerygw.ports.geocoding import Geocoder
from bakerygw.ports.identity import (
    Credentials,
    CredentialsUnavailable,
    KeyStore,
    KeyUnreadable,
    Scheme,
    SessionSealer,
    TokenRefused,
)
from bakerygw.ports.lookups import Enquiries, LookupFailed, LookupFailure, LookupTelemetry, SharedFacts
from bakerygw.ports.state import (
    AdmissionAsk,
    AdmissionState,
    AdmissionStore,
    Hierarchy,
    Records,
    RevocationStore,
    StoreLink,
    StoreUnavailable,
    StoreUnreadable,
    TenantLimits,
    TenantStore,
    with_limit,
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
    "AuditStore",
    "Credentials",
    "CredentialsUnavailable",
    "Enquiries",
    "Geocoder",
    "HealthSource",
    "Hierarchy",
    "KeyStore",
    "KeyUnreadable",
    "Ledger",
    "LookupFailed",
    "LookupFailure",
    "LookupTelemetry",
    "Records",
    "RevocationStore",
    "Scheme",
    "ServiceHealth",
    "SessionSealer",
    "SharedFacts",
    "SignalKind",
    "Signals",
    "StoreLink",
    "StoreTelemetry",
    "StoreUnavailable",
    "StoreUnreadable",
    "Telemetry",
    "TenantLimits",
    "TenantStore",
    "TokenRefused",
    "TokenTelemetry",
    "UpstreamFailed",
    "UpstreamRequest",
    "UpstreamResponse",
    "Upstreams",
    "with_limit",
]
