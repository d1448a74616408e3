"""The rights of the Redis users: the least that each kind of process needs.

Three things are made from this table: the lines of an ACL file (`parakeet-server redis-users`), the check for
missing rights when a process starts (`requirements.py`), and the list in docs/redis.md. The service runs
under these users in `tests/integration/redis/test_users.py`, which fails for any denied command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from common.entries import IngressId, StreamId, WorkerId
from common.redis.keys import Keys

# Arguments with which a server is asked whether a user may call a command.
_ARGUMENTS: Final = {
    **dict.fromkeys(("ping", "info", "time", "hello", "client|id"), ""),
    **dict.fromkeys(("select", "client|unblock"), "1"),
    "eval": "script 1 key",
    **dict.fromkeys(("del", "exists", "get", "incr", "pttl", "strlen", "unlink"), "key"),
    **dict.fromkeys(("pexpire", "incrby", "incrbyfloat"), "key 1"),
    **dict.fromkeys(("append", "rpush", "rpushx", "set"), "key text"),
    "rename": "key key",
    **dict.fromkeys(("hget", "hdel", "hmget"), "key field"),
    **dict.fromkeys(("hset", "hsetnx"), "key field text"),
    **dict.fromkeys(("acl|load", "acl|log"), ""),
    "hincrby": "key field 1",
    **dict.fromkeys(("hgetall", "llen", "xlen", "zcard"), "key"),
    **dict.fromkeys(("getrange", "lrange", "zcount", "zrangebyscore", "zremrangebyscore"), "key 0 1"),
    "bzmpop": "1 1 key MIN",
    "zadd": "key 1 member",
    **dict.fromkeys(("zrem", "zscore"), "key member"),
    "xack": "key group 1-1",
    "xadd": "key 1-1 field text",
    "xclaim": "key group name 0 1-1",
    "xdel": "key 1-1",
    "xgroup|create": "key group 0",
    "xgroup|delconsumer": "key group name",
    **dict.fromkeys(("xgroup|destroy", "xpending"), "key group"),
    **dict.fromkeys(("xinfo|groups", "xinfo|stream"), "key"),
    "xrange": "key - +",
    "xrevrange": "key + -",
    "xreadgroup": "GROUP group name STREAMS key >",
    "xtrim": "key MINID 1-1",
    "publish": "channel text",
    "subscribe": "channel",
}
# For each rule about keys, a call that needs the right that the rule grants and no other.
_KEY_CALLS: Final = {"~": "EVAL script 1 {}", "%R~": "GET {}", "%W~": "PEXPIRE {} 1"}

_KEYS: Final = Keys()
_ONE: Final = _KEYS.stream(StreamId(0))
_STEM: Final = _ONE.meta[:-1]


def _any(key: bytes) -> str:
    """Return the pattern of a key, given with `*` for a name: of all shards where it is a stream's."""
    return key.replace(_STEM, f"{_KEYS.prefix}:{{*}}:[0-9]*:".encode()).decode()


def _any_shard(key: bytes) -> str:
    return key.replace(b"{0}", b"{*}").decode()


@dataclass(frozen=True, slots=True)
class Grants:
    """What one user may do.

    commands: as ACL rules name them, `container|subcommand`.
    keys: rules for keys: `~` for those that are read and written, `%R~` read, `%W~` written.
    channels: patterns.
    """

    user: str
    commands: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[str, ...] = ()

    @property
    def rules(self) -> str:
        """The rules of an ACL line, without the name and the password."""
        return " ".join(
            (
                "resetkeys resetchannels -@all",
                *(f"+{command}" for command in self.commands),
                *self.keys,
                *(f"&{channel}" for channel in self.channels),
            )
        )

    @property
    def calls(self) -> dict[str, str]:
        """What is granted, as a sentence names it, and a call that needs it.

        Keys come first: commands fail for want of them, too.
        """
        key = _example(next((rule for rule in self.keys if rule.startswith("~")), ""))
        channel = self.channels[0].replace("*", "0") if self.channels else ""
        calls: dict[str, str] = {}
        for rule in self.keys:
            access, _, pattern = rule.partition("~")
            calls[f"keys {pattern}"] = _KEY_CALLS[f"{access}~"].format(_example(rule))
        for command in self.commands:
            name = command.replace("|", " ").upper()
            words = ({"key": key, "channel": channel}.get(word, word) for word in _ARGUMENTS[command].split())
            calls[name] = " ".join((name, *words))
        return calls


def _example(rule: str) -> str:
    """Return a key for which a rule is."""
    return rule.partition("~")[2].replace("[0-9]*", "0").replace("*", "0")


_COMMON: Final = ("ping", "select", "info", "time", "eval")
_ANYBODY: Final = WorkerId("*")

INGRESS: Final = Grants(
    "parakeet-ingress",
    (
        *_COMMON,
        *("del", "exists", "pexpire", "pttl", "get", "set", "incr", "incrby", "incrbyfloat"),
        *("hdel", "hget", "hgetall", "hincrby", "hmget", "hset", "hsetnx"),
        *("zadd", "zcard", "zcount", "zrangebyscore", "zrem", "zremrangebyscore", "zscore"),
        *("xadd", "xgroup|create", "xinfo|groups", "xinfo|stream", "xpending", "xrange", "xrevrange"),
        "subscribe",
    ),
    (
        *(f"~{_any(key)}" for key in (_KEYS.settings, _KEYS.stream_counter, _KEYS.counter_run)),
        *(f"~{_any(key)}" for key in (_KEYS.admissions, _KEYS.once("*"))),
        *(f"~{_any(key)}" for key in (_KEYS.ingresses, _KEYS.ingress(IngressId("*")))),
        *(f"~{_any(key)}" for key in (_KEYS.key_streams("*"), _KEYS.key_minutes("*") + b"*")),
        *(f"~{_any(key)}" for key in (_KEYS.key_days("*") + b"*", _KEYS.status_line, _KEYS.status_turn)),
        f"~{_any(_KEYS.workers)}",
        *(f"%R~{_any(key)}" for key in (_KEYS.worker(_ANYBODY), _KEYS.served_model)),
        f"~{_any_shard(_KEYS.assignments(0))}",
        f"~{_any_shard(_KEYS.ready(0, _ANYBODY))}",
        *(f"~{_any(key)}" for key in (_ONE.meta, _ONE.audio, _ONE.results, _ONE.text)),
        # It renews what it may not read: the engine's state.
        f"%W~{_any(_ONE.snapshot)}",
    ),
    (_KEYS.channel(IngressId("*")).decode(),),
)

WORKER: Final = Grants(
    "parakeet-worker",
    (
        *_COMMON,
        *("client|id", "client|unblock"),
        *("del", "exists", "pexpire", "rename", "unlink", "append", "get", "getrange", "set", "strlen"),
        *("hdel", "hget", "hgetall", "hincrby", "hmget", "hset", "hsetnx"),
        *("llen", "lrange", "rpush", "rpushx"),
        *("bzmpop", "zadd", "zrangebyscore", "zrem", "zscore"),
        *("xack", "xadd", "xclaim", "xdel", "xgroup|create", "xgroup|delconsumer", "xgroup|destroy"),
        *("xpending", "xrange", "xreadgroup", "xrevrange", "xtrim"),
        "publish",
    ),
    (
        f"%R~{_any(_KEYS.settings)}",
        *(f"~{_any(key)}" for key in (_KEYS.served_model, _KEYS.workers, _KEYS.worker(_ANYBODY))),
        f"~{_any(_KEYS.ingresses)}",
        f"~{_any_shard(_KEYS.assignments(0))}",
        f"~{_any_shard(_KEYS.ready(0, _ANYBODY))}",
        *(f"~{_any(key)}" for key in (_ONE.meta, _ONE.audio, _ONE.results, _ONE.text, _ONE.snapshot)),
        f"~{_any(_ONE.snapshot)}:*",
        *(f"~{_any(key)}" for key in (_ONE.dead, _ONE.dead_audio)),
    ),
    (_KEYS.channel(IngressId("*")).decode(),),
)

SERVE: Final = Grants(
    "parakeet-serve",
    tuple(dict.fromkeys((*INGRESS.commands, *WORKER.commands))),
    tuple(dict.fromkeys((*INGRESS.keys, *WORKER.keys))),
    INGRESS.channels,
)
"""For `serve` with a Redis of its own choice: its processes share one address."""

READER: Final = Grants(
    "parakeet-reader",
    ("ping", "hello", "select", "info", "xlen", "xpending", "xinfo|groups"),
    (f"%R~{_any_shard(_KEYS.assignments(0))}",),
)
"""For programs that count: KEDA's scaler, and exporters that read INFO."""

KEEPER: Final = Grants("parakeet-keeper", ("ping", "acl|load", "acl|log"), ())
"""Has Redis read its ACL file again after an upgrade, and lists what was denied."""

USERS: Final = {"ingress": INGRESS, "worker": WORKER, "serve": SERVE, "reader": READER, "keeper": KEEPER}


def acl_file(digests: dict[str, str]) -> str:
    """Return an ACL file: nobody comes in but these users.

    digests: SHA-256 of the password of each, as hexadecimal digits, by the names of `USERS`. Whoever is not
        among them gets no line.
    """
    users = "".join(
        f"user {grants.user} on #{digests[name]} {grants.rules}\n"
        for name, grants in USERS.items()
        if name in digests
    )
    return f"user default off\n{users}"
