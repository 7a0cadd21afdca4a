"""Certificates between router servers and agents: our own authority, always trusted before it signs. Pure;
`now` is given.

An authority goes through three stages, each seen by everyone before the next begins: *next* (trusted, signs
nothing yet), *current* (signs), *previous* (signs no more, still trusted). At most two are trusted at a
time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS: Final = 365
SERVER_DAYS: Final = 90
OVERLAP_SECONDS: Final = 86_400.0
"""Between the stages: agents read the ConfigMap again within minutes, but a node may be away for hours."""
BACKDATE: Final = timedelta(minutes=5)
"""Clocks differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: str
    key: str

    def __repr__(self) -> str:
        return f"Pair(certificate={self.certificate!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """The authorities at their stages."""

    current: Pair
    following: Pair | None = None
    previous: Pair | None = None
    changed_at: float = 0.0
    """Unix seconds at which the last stage began."""

    @property
    def bundle(self) -> str:
        """What agents trust: all certificates, the signing one first."""
        stages = (self.current, self.following, self.previous)
        return "".join(pair.certificate for pair in stages if pair is not None)

    def data(self) -> dict[str, str]:
        """As the data of a Secret."""
        found = {"changedAt": f"{self.changed_at:.0f}"}
        for name in ("current", "following", "previous"):
            pair = getattr(self, name)
            if pair is not None:
                found |= {f"{name}.crt": pair.certificate, f"{name}.key": pair.key}
        return found

    @classmethod
    def read(cls, data: Mapping[str, str]) -> "Authorities | None":
        """From the data of a Secret; None where it does not hold a usable authority."""

        def pair(name: str) -> Pair | None:
            certificate, key = data.get(f"{name}.crt"), data.get(f"{name}.key")
            if not certificate or not key:
                return None
            made = Pair(certificate=certificate, key=key)
            return made if _usable(made) else None

        current = pair("current")
        if current is None:
            return None
        try:
            changed_at = float(data.get("changedAt", "0"))
        except ValueError:
            changed_at = 0.0
        return cls(
            current=current, following=pair("following"), previous=pair("previous"), changed_at=changed_at
        )


def make_ca(now: float, *, days: int = AUTHORITY_DAYS, name: str = "meritorder") -> Pair:
    """Make a self-signed authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def make_server_cert(authority: Pair, names: Sequence[str], now: float, *, days: int = SERVER_DAYS) -> Pair:
    """Make a server's certificate for these host names and addresses, signed by the authority."""
    issuer = _certificate(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    builder = (
        _builder(subject, issuer.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_key(authority).public_key()), critical=False
        )
    )
    return _pair(builder.sign(_key(authority), hashes.SHA256()), key)


def rotate(authorities: Authorities | None, now: float) -> Authorities:
    """The authorities as they should be now; the same object when nothing is due."""
    if authorities is None or _left(authorities.current, now) <= 0:
        return Authorities(current=make_ca(now), changed_at=now)
    waited = now - authorities.changed_at >= OVERLAP_SECONDS
    if authorities.following is not None:
        if not waited:
            return authorities
        return Authorities(current=authorities.following, previous=authorities.current, changed_at=now)
    if authorities.previous is not None:
        return replace(authorities, previous=None, changed_at=now) if waited else authorities
    if _left(authorities.current, now) < 1 / 3:
        return replace(authorities, following=make_ca(now), changed_at=now)
    return authorities


def is_good(server: Pair, authority: Pair, names: Sequence[str], now: float) -> bool:
    """Whether a server's certificate is signed by the authority, has these names, and lasts for a while."""
    if not _usable(server) or _left(server, now) < 1 / 3:
        return False
    certificate = _certificate(server)
    try:
        certificate.verify_directly_issued_by(_certificate(authority))
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return set(found) == {_alternative(name) for name in names}


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, days: int
) -> x509.CertificateBuilder:
    moment = datetime.fromtimestamp(now, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - BACKDATE)
        .not_valid_after(moment + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


def _certificate(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.encode())


def _key(pair: Pair) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pair.key.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("must be a key on an elliptic curve")
    return key


def _usable(pair: Pair) -> bool:
    try:
        return _certificate(pair).public_key() == _key(pair).public_key()
    except (ValueError, TypeError):
        return False


def _left(pair: Pair, now: float) -> float:
    """The share of a certificate's life that is left; at most 0 when it is over."""
    certificate = _certificate(pair)
    begin = certificate.not_valid_before_utc.timestamp()
    end = certificate.not_valid_after_utc.timestamp()
    return (end - now) / (end - begin)
