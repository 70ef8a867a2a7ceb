"""Certificates for a cluster with TLS: its own authority, and one certificate for every machine.

Ray requires certificates of the same authority on both sides of a connection. The authority's key is needed only to
add machines, so it stays on the machine that made it. Keys are elliptic (P-256); only the owner can read key files.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.settings import TLS_AUTHORITY, TLS_CERTIFICATE, TLS_KEY, write_private
from mint.core.errors import MintError
from mint.core.files import read_whole
from mint.core.records import reading

AUTHORITY_KEY = "authority.key"
_AUTHORITY = "mint cluster"
_YEARS = 5
_PEM = serialization.Encoding.PEM
_KEY_FORMAT = _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


def make_certificates(hosts: Sequence[str], folder: Path) -> list[Path]:
    """Write certificate, key and authority to `folder`/HOST for every host (address or name); return these folders.

    An existing authority in `folder` signs for more hosts. Raises `MintError` if the folder of a host exists.
    """
    targets = [folder / host for host in hosts]
    if existing := [target for target in targets if target.exists()]:
        raise MintError(f"{existing[0]} exists; nothing is overwritten. Remove it to make new certificates for it")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key, authority = _authority(folder)
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    for host, target in zip(hosts, targets, strict=True):
        target.mkdir(mode=0o700)
        host_key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_name(name) for name in dict.fromkeys((host, "localhost", "127.0.0.1"))])
        builder = _builder(host, authority.subject, host_key, x509.BasicConstraints(ca=False, path_length=None))
        builder = builder.add_extension(names, critical=False).add_extension(purposes, critical=False)
        certificate = builder.sign(key, hashes.SHA256())
        write_private(target / TLS_KEY, host_key.private_bytes(*_KEY_FORMAT))
        write_private(target / TLS_CERTIFICATE, certificate.public_bytes(_PEM))
        write_private(target / TLS_AUTHORITY, authority.public_bytes(_PEM))
    return targets


def _authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The key and certificate of the authority in `folder`; makes them if there are none."""
    if (folder / AUTHORITY_KEY).exists():
        with reading(f"{folder}: a damaged authority", "choose another folder, and give all machines new certificates"):
            key = serialization.load_pem_private_key(read_whole(folder / AUTHORITY_KEY), password=None)
            certificate = x509.load_pem_x509_certificate(read_whole(folder / TLS_AUTHORITY))
            if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
                raise ValueError("the key is not that of the certificate")
        return key, certificate
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _AUTHORITY)])
    builder = _builder(_AUTHORITY, issuer, key, x509.BasicConstraints(ca=True, path_length=0))
    certificate = builder.sign(key, hashes.SHA256())
    write_private(folder / AUTHORITY_KEY, key.private_bytes(*_KEY_FORMAT))
    write_private(folder / TLS_AUTHORITY, certificate.public_bytes(_PEM))
    return key, certificate


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, constraints: x509.BasicConstraints
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # tolerates clock differences between machines
        .not_valid_after(now + timedelta(days=365 * _YEARS))
        .add_extension(constraints, critical=True)
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
