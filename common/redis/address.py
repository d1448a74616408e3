"""Addresses of Redis servers, in the format of `--redis-url`.

Addresses:
    redis://[[user]:password@]host[:port][/db]        rediss://... (TLS)
    unix://[[user]:password@]/path/to/socket[?db=n]
    redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/master[/db]   (also rediss+sentinel)

With TLS, the options for checking the server's certificate, and for our own, follow a `?`, joined by `&`:
    ca=FILE  cert=FILE  key=FILE  name=HOST

Sentences about a wrong address show its scheme alone: any other part may be part of a password.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, fields
from itertools import starmap
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from common.addresses import host_and_port
from common.errors import SettingsError

_SENTINEL_PORT: Final = 26379
_REDIS_PORT: Final = 6379
_MAX_DB: Final = 1_000_000
_MAX_PASSWORD_LENGTH: Final = 4096
_SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
_BEGINS: Final = "A Redis address begins with redis://, rediss://, unix:// or redis+sentinel://"


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """TLS options beside the system's authorities; each may be empty.

    ca: authority of the server's certificate. cert, key: our own. All three are PEM files.
    name: host name of the server's certificate, if it is not the host of the address: a Sentinel returns the
        master's IP address, and a proxy may choose the server by the name (SNI).
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    name: str = ""

    def completed(self, others: TlsOptions) -> TlsOptions:
        """Return these options, and those of `others` where one is empty; a certificate goes with its key."""
        own = self if self.cert else others
        return TlsOptions(self.ca or others.ca, own.cert, own.key, self.name or others.name)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One server, or the master that some Sentinels know.

    path: of a unix socket, else empty. sentinels: (host, port) of each, empty without Sentinel.
    password_file: where the password is from, which may hold another one by now; else empty.
    """

    host: str = ""
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    password_file: str = ""
    tls: bool = False
    tls_options: TlsOptions = TlsOptions()
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""

    def __str__(self) -> str:
        """Return the address for logs: without the password."""
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        if self.sentinels:
            return f"master {self.master} of {','.join(starmap(host_and_port, self.sentinels))}"
        return f"{host_and_port(self.host, self.port)}/{self.db}"


def password_in(path: str) -> str:
    """Return the password in a file, without the line's end. Raises SettingsError."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            password = file.read(_MAX_PASSWORD_LENGTH + 1).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"The file of Redis' password, {path}, cannot be read: {reason}.") from None
    if not password or len(password) > _MAX_PASSWORD_LENGTH or not password.isprintable():
        raise SettingsError(f"The file of Redis' password, {path}, must hold a password and nothing else.")
    return password


def parse_address(url: str) -> RedisAddress:
    """Read a Redis address. Raises SettingsError with a sentence that says what is wrong."""
    if any(character.isspace() or not character.isprintable() for character in url):
        raise SettingsError("A Redis address has no spaces in it.")
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in ("redis+cluster", "rediss+cluster"):
        raise SettingsError(
            "Redis Cluster is not supported: several plain servers, or a master behind Sentinels, are."
        )
    if not colon or scheme not in _SCHEMES:
        raise SettingsError(
            _BEGINS + (f", not with {scheme}://." if re.fullmatch(r"[a-z]+", scheme) else ".")
        )
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    if "@" in tail or "#" in tail:
        raise SettingsError(
            "The Redis address cannot be read: user name and password are percent-encoded in it"
            " (@ as %40, / as %2F, ? as %3F, # as %23)."
        )
    credentials, _, hosts = authority.rpartition("@")
    username, _, password = map(unquote, credentials.partition(":"))
    path, _, query = tail.partition("?")
    if scheme == "unix":
        if hosts or not path.strip("/") or "\0" in unquote(path):
            raise SettingsError("A unix:// Redis address names a socket: unix:///path/to/socket.")
        return RedisAddress(
            path=unquote(path), db=_query_db(query), username=username or None, password=password or None
        )
    tls = scheme.startswith("rediss")
    if query and not tls:
        raise SettingsError(f"A {scheme}:// address takes no '?': its database follows a slash.")
    tls_options = _tls_options(query)
    if scheme.endswith("+sentinel"):
        master, _, db = path.strip("/").partition("/")
        if not master:
            raise SettingsError("A Sentinel address names its master: redis+sentinel://host/master.")
        return RedisAddress(
            db=_db(db),
            username=username or None,
            password=password or None,
            tls=tls,
            tls_options=tls_options,
            sentinels=tuple(_host_port(text, _SENTINEL_PORT) for text in hosts.split(",")),
            master=master,
        )
    host, port = _host_port(hosts, _REDIS_PORT)
    return RedisAddress(
        host=host,
        port=port,
        db=_db(path.strip("/")),
        username=username or None,
        password=password or None,
        tls=tls,
        tls_options=tls_options,
    )


def _tls_options(query: str) -> TlsOptions:
    names = {field.name for field in fields(TlsOptions)}
    given: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, _, value = part.partition("=")
        if name not in names or not value or name in given:
            raise SettingsError(
                "A Redis address with TLS takes ca, cert, key and name behind its '?', each once."
            )
        given[name] = unquote(value)
    if ("cert" in given) != ("key" in given):
        raise SettingsError("A Redis address has cert and key together.")
    return TlsOptions(**given)


def _query_db(query: str) -> int:
    name, _, value = query.partition("=")
    if query and name != "db":
        raise SettingsError("A unix:// Redis address takes no other '?' than ?db=number.")
    return _db(value)


def _db(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[0-9]{1,7}", text) or int(text) > _MAX_DB:
        raise SettingsError("The Redis address cannot be read: a database is a number from 0.")
    return int(text)


def _host_port(text: str, default_port: int) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed[1], bracketed[2] or ""
    else:
        host, _, port = text.partition(":")
    if port and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise SettingsError("The Redis address cannot be read: a port is a number from 1 to 65535.")
    try:
        if bracketed:
            ipaddress.IPv6Address(host)
        else:  # as the resolver will: it raises for names that cannot be, such as those with an empty part
            host.encode("idna")
    except ValueError:
        raise SettingsError(
            "The Redis address cannot be read: its host can be neither a name nor an address."
        ) from None
    return host or "127.0.0.1", int(port or default_port)
