"""TLS contexts, and certificates that are replaced while a server runs."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509

from common.errors import SettingsError
from common.settings import IngressSettings

logger = logging.getLogger(__name__)

RELOAD_EVERY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class ServerTlsFiles:
    """Files in PEM.

    A server's certificate chain, its key, and the authority of its clients (None: no client needs a
    certificate).
    """

    certificate: Path
    key: Path
    client_authority: Path | None = None

    @classmethod
    def of(cls, settings: IngressSettings) -> Self:
        """Return the files that an ingress's settings name."""
        authority = Path(settings.tls_client_ca) if settings.tls_client_ca else None
        return cls(Path(settings.tls_cert), Path(settings.tls_key), authority)

    def contents(self) -> tuple[bytes, ...]:
        """Return the contents of the files. Raises OSError."""
        files = (self.certificate, self.key, self.client_authority)
        return tuple(file.read_bytes() for file in files if file is not None)


class ServerTls:
    """The TLS context of a listening port, which follows its files.

    Open connections keep the certificate with which they began. Raises SettingsError where the files are no
    certificate and its key.
    """

    def __init__(self, files: ServerTlsFiles) -> None:
        self._files = files
        try:
            self._contents = files.contents()
            self.context = _context(files)
            self.expires_s = _expiry(self._contents)
            """When the certificate served ends, Unix time."""
        except (OSError, ValueError) as error:
            raise SettingsError(f"TLS cannot be set up: {_reason(files, error)}.") from None

    def reload(self) -> bool:
        """Load the files if they have changed and are valid; return whether they were loaded.

        They are tried in a context of their own first: a wrong pair would break the live context.
        """
        try:
            contents = self._files.contents()
            if contents == self._contents:
                return False
            self._contents = contents
            _context(self._files)
            self.context.load_cert_chain(self._files.certificate, self._files.key)
            if self._files.client_authority is not None:
                self.context.load_verify_locations(self._files.client_authority)
            self.expires_s = _expiry(contents)
        except (OSError, ValueError) as error:
            logger.error("the certificate stays as it was: %s", _reason(self._files, error))
            return False
        logger.info("took the new certificate of %s", self._files.certificate)
        return True


def _context(files: ServerTlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.certificate, files.key)
    if files.client_authority is not None:
        context.load_verify_locations(files.client_authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _reason(files: ServerTlsFiles, error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"{files.key} is not the key of {files.certificate}"
    if isinstance(error, ssl.SSLError):
        return f"{files.certificate} and {files.key} cannot be read as PEM ({error.reason or error})"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be read: {error.strerror}"
    return str(error)


def _expiry(contents: tuple[bytes, ...]) -> float:
    """Return the end of validity of the first certificate of the chain, as Unix time."""
    return x509.load_pem_x509_certificates(contents[0])[0].not_valid_after_utc.timestamp()
