"""Redis addresses, and where shards live."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from common.errors import SettingsError
from common.redis.address import RedisAddress, TlsOptions, parse_address
from common.redis.clients import RedisServers, is_passing
from common.redis.connect import login, pack
from common.settings import parse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://example:7000/2", RedisAddress(host="example", port=7000, db=2)),
        ("redis://example", RedisAddress(host="example", port=6379)),
        ("rediss://u:p%40ss@example", RedisAddress(host="example", username="u", password="p@ss", tls=True)),
        ("redis://:secret@[::1]:7000", RedisAddress(host="::1", port=7000, password="secret")),
        ("unix:///run/redis.sock?db=3", RedisAddress(path="/run/redis.sock", db=3)),
        ("unix://:secret@/run/redis.sock", RedisAddress(path="/run/redis.sock", password="secret")),
        (
            "redis+sentinel://:pw@a:26000,b/mymaster/1",
            RedisAddress(password="pw", sentinels=(("a", 26_000), ("b", 26_379)), master="mymaster", db=1),
        ),
    ],
)
def test_addresses(url: str, address: RedisAddress) -> None:
    assert parse_address(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example", "begins with redis://"),
        ("example:6379", "begins with redis://"),
        ("redis://example:port", "a port is a number from 1 to 65535"),
        ("redis://example:0", "a port is a number from 1 to 65535"),
        ("redis://example:70000", "a port is a number from 1 to 65535"),
        ("redis://::1:6379", "a port is a number"),
        ("redis://[::g]:6379", "neither a name nor an address"),
        ("redis://redis..svc:6379", "neither a name nor an address"),
        (f"redis://{64 * 'x'}.svc:6379", "neither a name nor an address"),
        ("redis://.svc", "neither a name nor an address"),
        ("redis://\udcff", "no spaces"),
        ("redis+sentinel://a,b..c/m", "neither a name nor an address"),
        ("redis://example/-1", "a database is a number"),
        ("redis://example/one", "a database is a number"),
        ("redis://example?db=1", "takes no '\\?'"),
        ("unix:///run/redis.sock?host=1", r"than \?db=number"),
        ("unix://", "names a socket"),
        ("unix://run/redis.sock", "names a socket"),
        ("unix:///run/a%00b", "names a socket"),
        ("redis+sentinel://a:26379", "names its master"),
        ("redis+cluster://a:26379", "Redis Cluster is not supported"),
        ("redis://:secret/1@example", "percent-encoded"),
        ("redis://:secret#1@example", "percent-encoded"),
        ("redis://:secret?1@example", "percent-encoded"),
        ("redis://user:secret@ex ample", "no spaces"),
    ],
)
def test_wrong_addresses_say_what_is_wrong_and_show_no_password(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as raised:
        parse_address(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("password", ["p@ss", "p%40ss", "p%2Fw%23%3F", "a,b", "p:w", "%70"])
def test_a_password_may_hold_what_parts_an_address(password: str) -> None:
    plain = unquote(password)
    assert parse_address(f"redis://:{password}@example:7000").password == plain
    assert parse_address(f"redis://u:{password}@example").host == "example"
    assert parse_address(f"unix://:{password}@/run/s").password == plain
    assert parse_address(f"redis+sentinel://:{password}@a,b:1/m") == RedisAddress(
        password=plain, sentinels=(("a", 26379), ("b", 1)), master="m"
    )


def test_no_log_shows_a_password() -> None:
    for url in ("redis://u:secret@a", "unix://:secret@/run/s", "redis+sentinel://:secret@a/m"):
        assert "secret" not in str(parse_address(url))


def test_shards_are_spread_over_the_servers() -> None:
    servers = RedisServers.parse(("redis://a", "redis://b"), shards=5)
    assert [servers.server_of_shard(shard) for shard in range(5)] == [0, 1, 0, 1, 0]
    assert [servers.shards_of_server(server) for server in range(2)] == [(0, 2, 4), (1, 3)]


def test_every_server_has_a_shard() -> None:
    assert RedisServers.parse(("redis://a", "redis://b", "redis://c"), shards=1).shards == 3


def test_a_cluster_needs_a_server() -> None:
    with pytest.raises(SettingsError):
        RedisServers.parse(())


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (RuntimeError("OOM command not allowed when used memory > 'maxmemory'."), True),
        (RuntimeError("LOADING Redis is loading the dataset in memory"), True),
        (RuntimeError("READONLY You can't write against a read only replica."), True),
        (RuntimeError("WRONGTYPE Operation against a key holding the wrong kind of value"), False),
        (RuntimeError("ERR wrong number of arguments"), False),
    ],
)
def test_which_refusals_pass(error: Exception, passing: bool) -> None:
    assert is_passing(error) is passing


def test_flags_complete_every_address(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret@1\n")
    urls = "rediss://ingress@a,rediss://:own@b?ca=/b.pem,redis://ingress@c"
    flags = ["--redis-password-file", str(password), "--redis-tls-ca", "/ca.pem"]
    servers = RedisServers.of(parse("ingress", ["--redis-url", urls, *flags], {}))
    first, second, third = servers.addresses
    assert (first.username, first.password, first.tls_options) == (
        "ingress",
        "secret@1",
        TlsOptions(ca="/ca.pem"),
    )
    assert (second.password, second.tls_options.ca) == ("own", "/b.pem")
    assert (third.password, third.tls_options) == ("secret@1", TlsOptions())


def test_the_password_is_read_again_for_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("first\n")
    flags = ["--redis-url", "redis://u@a,redis://u:own@b", "--redis-password-file", str(path)]
    ours, own = RedisServers.of(parse("worker", flags, {})).addresses
    assert login(ours) == [pack("AUTH", "u", "first")]
    path.write_text("second\n")
    assert login(ours) == [pack("AUTH", "u", "second")]
    assert login(own) == [pack("AUTH", "u", "own")]
    path.unlink()
    assert login(ours) == [pack("AUTH", "u", "first")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        (b"", "must hold a password and nothing else"),
        (b"one\ntwo\n", "must hold a password and nothing else"),
        (b"\xff", "cannot be read: it is no text"),
        (b"x" * 5000, "must hold a password and nothing else"),
    ],
)
def test_a_file_without_a_password_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=says) as raised:
        RedisServers.of(
            parse("worker", ["--redis-url", "redis://u@a", "--redis-password-file", str(path)], {})
        )
    assert "xxx" not in str(raised.value)
