"""Addresses of Redis servers, as `--redis-url` takes them.

Addresses:
    redis://[[user]:password@]host[:port][/db]        rediss://... (TLS)
    unix:///path/to/socket[?db=n]
    redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/master[/db]   (also rediss+sentinel)
    redis+cluster://[[user]:password@]host[:port][,host[:port]...]   (also rediss+cluster)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from common.errors import SettingsError

_SENTINEL_PORT: Final = 26379
_REDIS_PORT: Final = 6379


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One server, or the master that some Sentinels know.

    path: of a unix socket, else empty. sentinels: (host, port) of each, empty without Sentinel.
    nodes: (host, port) of some nodes of a Redis Cluster, else empty; slot: the one to be found there.
    """

    host: str = ""
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    nodes: tuple[tuple[str, int], ...] = ()
    slot: int = 0

    def __str__(self) -> str:
        """For logs: without the password."""
        if self.path:
            return f"unix:{self.path}"
        if self.sentinels:
            return f"master {self.master} of {','.join(f'{host}:{port}' for host, port in self.sentinels)}"
        if self.nodes:
            return f"slot {self.slot} of {','.join(f'{host}:{port}' for host, port in self.nodes)}"
        return f"{self.host}:{self.port}/{self.db}"


def parse_address(url: str) -> RedisAddress:
    """Read a Redis address. Raises SettingsError with a sentence that says what is wrong."""
    if any(character.isspace() for character in url):
        raise SettingsError("A Redis address has no spaces in it.")
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            path = unquote(parts.path)
            if not path:
                raise SettingsError(f"The Redis address '{url}' names no socket.")
            db = int(parse_qs(parts.query).get("db", ["0"])[0])
            return RedisAddress(path=path, db=db, username=_of(parts.username), password=_of(parts.password))
        if parts.scheme in ("redis", "rediss"):
            return RedisAddress(
                host=parts.hostname or "127.0.0.1",
                port=parts.port or 6379,
                db=int(parts.path.strip("/") or 0),
                username=_of(parts.username),
                password=_of(parts.password),
                tls=parts.scheme == "rediss",
            )
        if parts.scheme in ("redis+sentinel", "rediss+sentinel"):
            hosts = parts.netloc.rpartition("@")[2]
            master, _, db_text = parts.path.strip("/").partition("/")
            if not master:
                raise SettingsError("A Sentinel address names its master: redis+sentinel://host/master.")
            credentials = urlsplit(f"redis://{parts.netloc.split(',')[0]}")
            return RedisAddress(
                db=int(db_text or 0),
                username=_of(credentials.username),
                password=_of(credentials.password),
                tls=parts.scheme.startswith("rediss"),
                sentinels=tuple(_host_port(text, _SENTINEL_PORT) for text in hosts.split(",")),
                master=master,
            )
        if parts.scheme in ("redis+cluster", "rediss+cluster"):
            credentials = urlsplit(f"redis://{parts.netloc.split(',')[0]}")
            if parts.path.strip("/"):
                raise SettingsError("A Redis Cluster has one database: its address ends with the nodes.")
            return RedisAddress(
                username=_of(credentials.username),
                password=_of(credentials.password),
                tls=parts.scheme.startswith("rediss"),
                nodes=tuple(
                    _host_port(text, _REDIS_PORT) for text in parts.netloc.rpartition("@")[2].split(",")
                ),
            )
    except ValueError as error:
        raise SettingsError(f"The Redis address cannot be read: {error}.") from error
    raise SettingsError(
        f"A Redis address begins with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://, "
        f"not with '{parts.scheme or url[:20]}'."
    )


def _of(text: str | None) -> str | None:
    return None if not text else unquote(text)


def _host_port(text: str, default_port: int) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    return (host.strip("[]"), int(port) if port else default_port)
