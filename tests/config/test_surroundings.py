"""What settings name on this machine: each thing that could not be put to use is told before the start."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from minting import Issuer

from bakerygw.config.settings import ConfigError, load_settings

PUBLIC_PEM = Issuer().public_pem


def problems(**environ: str) -> list[str]:
    try:
        load_settings({"JWT_PUBLIC_KEY": PUBLIC_PEM, **environ})
    except ConfigError as error:
        return error.problems
    return []


def write_pair(folder: Path) -> None:
    """A certificate of a short life, its key, and a key that is not its."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    today = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, keys[0].public_key(), 1, today, today + datetime.timedelta(days=1))
    ).sign(keys[0], SHA256())
    for file, key in zip(("key.pem", "other.pem"), keys, strict=True):
        (folder / file).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "junk.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nTm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"
    )
    (folder / "empty.pem").write_text("")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    write_pair(made)
    return made


@pytest.mark.parametrize("name", ["UPSTREAM_CA_FILE", "REDIS_CA_FILE"])
@pytest.mark.parametrize("file", ["junk.pem", "empty.pem", "key.pem"])
def test_a_file_to_trust_must_hold_certificates(folder: Path, name: str, file: str) -> None:
    assert problems(**{name: str(folder / "cert.pem")}) == []
    [line] = problems(**{name: str(folder / file)})
    assert line.startswith(f"{name}: got ")
    assert "certificates in PEM" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SALES_SERVICE_URL", "https://sales_1:443"),
        ("SALES_SERVICE_URL", "http://sales:80,http://sales_1:80"),
        ("DEMO_SALES_SERVICE_URL", "https://a..b"),
        ("REDIS_HOST", "redis_1"),
        ("REDIS_HOST", "x" * 64),
    ],
)
def test_a_name_that_no_resolver_takes_is_refused(name: str, value: str) -> None:
    [line] = problems(**{name: value})
    assert line.startswith(f"{name}: got ")


@pytest.mark.parametrize("host", ["sales-1", "sales-1.example.com", "127.0.0.1", "[::1]"])
def test_names_and_addresses_pass(host: str) -> None:
    assert problems(SALES_SERVICE_URL=f"https://{host}", REDIS_HOST=host.strip("[]")) == []


def test_an_ed448_key_fits_no_algorithm() -> None:
    key = ed448.Ed448PrivateKey.generate().public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    [line] = problems(JWT_PUBLIC_KEY=pem, JWT_ALGORITHM="EdDSA")
    assert line == "JWT_PUBLIC_KEY: got ***; JWT_ALGORITHM EdDSA needs an Ed25519 key"


@pytest.mark.parametrize("runtime", ["missing", "cert.pem"])
def test_a_token_that_is_made_needs_a_folder(folder: Path, runtime: str) -> None:
    path = str(folder / runtime)
    [line] = problems(XDG_RUNTIME_DIR=path)
    assert line.startswith("XDG_RUNTIME_DIR: got ")
    assert "ADMIN_TOKEN" in line
    assert problems(XDG_RUNTIME_DIR=path, ADMIN_TOKEN="given-token") == []
    assert problems(XDG_RUNTIME_DIR=str(folder)) == []


@pytest.mark.parametrize(
    "good",
    [
        "tcp:8000:interface=127.0.0.1:backlog=9",
        "ssl:8443:privateKey={0}/key.pem:certKey={0}/cert.pem",
        "ssl:port=8443:privateKey={0}/key.pem:certKey={0}/cert.pem:extraCertChain={0}/cert.pem",
        "unix:{0}/socket:mode=660",
        "unix:address={0}/socket",
        "systemd:domain=INET:index=0",
        "systemd:domain=UNIX:name=public",
    ],
)
def test_endpoints_that_can_be_had_pass(folder: Path, good: str) -> None:
    assert problems(LISTEN=good.format(folder)) == []


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ("tcp:8000:interfaces=127.0.0.1", "interfaces"),
        ("tcp:8000:backlog=many", "many"),
        ("ssl:8443", "privateKey=FILE"),
        ("ssl:8443:privateKey={0}/none.pem", "none.pem: cannot be read"),
        ("ssl:8443:privateKey={0}/key.pem:certKey={0}/none.pem", "none.pem: cannot be read"),
        ("ssl:8443:privateKey={0}/cert.pem", "private key in PEM"),
        ("ssl:8443:privateKey={0}/key.pem:certKey={0}/junk.pem", "certificate in PEM"),
        ("ssl:8443:privateKey={0}/other.pem:certKey={0}/cert.pem", "is not the key"),
        ("ssl:8443:privateKey={0}/key.pem:certKey={0}/cert.pem:chain=x", "chain"),
        ("ssl:8443:privateKey={0}/key.pem:certKey={0}/cert.pem:extraCertChain={0}/empty.pem", "chain file"),
        ("ssl:8443:privateKey={0}/key.pem:certKey={0}/cert.pem:sslmethod=SSLv9", "SSLv9"),
        ("unix:{0}/none/socket", "folder"),
        ("unix:{0}/socket:mode=rw", "rw"),
        ("systemd:domain=INET", "index=NUMBER"),
        ("systemd:domain=INET:index=0:name=x", "index=NUMBER"),
        ("systemd:domain=IPX:index=0", "INET6"),
        ("systemd:domain=INET:index=first", "index=NUMBER"),
    ],
)
def test_endpoints_that_cannot_are_told_in_one_line(folder: Path, bad: str, word: str) -> None:
    for name in ("LISTEN", "ADMIN_LISTEN"):
        [line] = problems(ADMIN_TOKEN="given-token", **{name: bad.format(folder)})
        assert line.startswith(f"{name}: got ")
        assert word in line
        assert "\n" not in line


def test_tls_of_its_own_is_enough_for_prod(folder: Path) -> None:
    listen = f"ssl:8443:privateKey={folder}/key.pem:certKey={folder}/cert.pem"
    assert problems(ENVIRONMENT="prod", LISTEN=listen) == []
