"""A Redis that is not what the service needs is refused at the start: one sentence with address and cause."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import redis.exceptions

from common.errors import UnfitRedis
from common.redis.address import parse_address
from common.redis.grants import INGRESS, SERVE, WORKER, Grants
from common.redis.requirements import check_servers
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.servers import ServerKind, make_server, raw_client

_TIMEOUT_S = 30.0


def check(url: str, grants: Grants = SERVE) -> None:
    check_servers((parse_address(url),), _TIMEOUT_S, grants)


def refused(url: str, *says: str) -> None:
    """The address is refused with one sentence that has the address, the cause, and no password."""
    with pytest.raises(UnfitRedis) as raised:
        check(url)
    sentence = str(raised.value)
    for words in (str(parse_address(url)), *says):
        assert words in sentence
    assert "\n" not in sentence
    assert "secret" not in sentence


@contextmanager
def answering(*replies: bytes, greeting: bytes = b"", close: bool = False) -> Iterator[str]:
    """A server of canned replies, one to each read; return its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.sendall(greeting)
                for reply in () if close else replies:
                    if not connection.recv(65536):
                        break
                    connection.sendall(reply)
                if not close:
                    connection.recv(65536)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def bulk(text: str) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text.encode()), text.encode())


def test_a_server_that_has_all_is_taken_and_nothing_is_left_there(redis_url: str) -> None:
    check(redis_url)
    client = raw_client(redis_url)
    assert list(client.scan_iter()) == []
    client.close()


@pytest.mark.parametrize("version", ["6.2.14", "5.0.7", "6.0.16"])
def test_a_version_that_lacks_commands_of_workers_is_refused(version: str) -> None:
    info = f"# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\nrole:master\r\n"
    with answering(bulk(info)) as url:
        refused(url, f"is version {version}", "7.0 or newer is needed")


def test_an_eviction_policy_that_drops_keys_is_refused(server_kind: ServerKind) -> None:
    with make_server(server_kind, "--maxmemory-policy", "allkeys-lru") as server:
        refused(server.url, "maxmemory-policy allkeys-lru", "noeviction is needed")


def test_a_replica_is_refused(server_kind: ServerKind) -> None:
    with make_server(server_kind) as server:
        client = raw_client(server.url)
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        client.close()
        refused(server.url, "read-only replica")


def test_a_node_of_a_cluster_is_refused(server_kind: ServerKind) -> None:
    with make_server(server_kind, "--cluster-enabled", "yes") as server:
        refused(server.url, "a node of a Redis Cluster")


def set_user(server: EmbeddedRedis, rules: str) -> str:
    """Make a user with these rules; the address at which he comes in."""
    client = raw_client(server.url)
    client.execute_command("ACL", "SETUSER", "app", "on", ">secret@1", *rules.split())
    client.close()
    return server.url.replace("unix://", "unix://app:secret@1@")


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("+@all ~app:* &*", "needs: keys px:{0}:conf, keys px:{0}:sid, keys"),
        ("+@all ~px:{0}:[a-z]* &px:*", "needs: keys px:{*}:[0-9]*:m, keys px:{*}:[0-9]*:a, keys"),
        ("+@all -bzmpop ~px:* &*", "needs: BZMPOP."),
        ("+@all -xautoclaim -xclaim -xgroup ~px:* &*", "needs: XGROUP CREATE, XCLAIM, XGROUP DELCONSUMER"),
        ("+@all ~px:* resetchannels", "needs: SUBSCRIBE, PUBLISH."),
        ("+@all ~px:* resetchannels &other", "needs: SUBSCRIBE, PUBLISH."),
        ("+@all -subscribe ~px:* &*", "needs: SUBSCRIBE."),
        ("+@all -info ~px:* &*", "needs: INFO."),
        ("+@all -eval ~px:* &*", "needs: EVAL."),
        ("+@all -@scripting ~px:* &*", "needs: EVAL."),
    ],
)
def test_a_user_without_rights_is_refused_with_what_is_lacking(
    own_server: EmbeddedRedis, rules: str, says: str
) -> None:
    refused(set_user(own_server, rules), "does not allow its user what parakeet-serve needs", says)


@pytest.mark.parametrize("grants", [INGRESS, WORKER, SERVE], ids=lambda grants: grants.user)
def test_a_user_with_just_the_rights_that_are_needed_is_taken(
    own_server: EmbeddedRedis, grants: Grants
) -> None:
    check(set_user(own_server, grants.rules), grants)


@pytest.mark.parametrize("grants", [INGRESS, WORKER], ids=lambda grants: grants.user)
def test_every_right_that_is_taken_away_is_named(own_server: EmbeddedRedis, grants: Grants) -> None:
    rules = grants.rules.split()
    for lacking in rules[3:]:
        # One rule may be needed for the calls that the others are tried by.
        url = set_user(
            own_server, f"reset on >secret@1 {' '.join(rule for rule in rules if rule != lacking)}"
        )
        with pytest.raises(UnfitRedis) as raised:
            check(url, grants)
        name = lacking.lstrip("+&").replace("|", " ")
        if "~" in lacking:
            name = f"keys {lacking.partition('~')[2]}"
        elif lacking.startswith("&"):
            name = "SUBSCRIBE" if grants is INGRESS else "PUBLISH"
        else:
            name = name.upper()
        assert name in str(raised.value)


def test_passwords_that_are_wrong_or_lacking_are_told(own_server: EmbeddedRedis) -> None:
    client = raw_client(own_server.url)
    client.execute_command("CONFIG", "SET", "requirepass", "secret@1")
    check(own_server.url.replace("unix://", "unix://:secret@1@"))
    check(own_server.url.replace("unix://", "unix://:secret%401@"))
    refused(own_server.url.replace("unix://", "unix://:secret2@"), "WRONGPASS")
    refused(own_server.url, "NOAUTH")
    client.close()


def test_a_database_that_is_not_there_is_refused(redis_url: str) -> None:
    check(f"{redis_url}?db=3")
    refused(f"{redis_url}?db=99", "DB index is out of range")


def test_what_is_no_redis_server_is_refused() -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as url:
        refused(url, "is no Redis server")
    with answering(greeting=b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        refused(url, "is no Redis server")
    with answering(b"-ERR unknown command\r\n") as url:
        refused(url, "refuses INFO")


def test_tls_where_there_is_none_is_refused() -> None:
    with answering(100 * b"HTTP/1.1 400 Bad Request\r\n") as url:
        refused(url.replace("redis://", "rediss://"), "TLS")


def test_a_sentinel_given_as_a_server_is_refused() -> None:
    with answering(bulk("redis_version:7.0.15\r\nredis_mode:sentinel\r\n")) as url:
        refused(url, "is a Sentinel", "redis+sentinel://")


def test_protected_mode_is_told_without_its_page_of_advice() -> None:
    denied = (
        b"-DENIED Redis is running in protected mode because protected mode is enabled and no password is set"
        b" for the default user. In this mode connections are only accepted from the loopback interface."
        b" 1) Just disable protected mode ...\r\n"
    )
    with answering(greeting=denied, close=True) as url:
        refused(url, "does not let us in: DENIED Redis is running in protected mode")


@pytest.mark.parametrize("info", ["loading:1", "async_loading:0\r\nloading:1"])
def test_a_server_that_loads_may_be_waited_for(info: str) -> None:
    whole = f"redis_version:7.0.15\r\nrole:master\r\ncluster_enabled:0\r\n{info}\r\n"
    with answering(bulk(whole)) as url, pytest.raises(redis.exceptions.ConnectionError, match="loading"):
        check(url)


def test_a_server_that_is_away_or_silent_may_be_waited_for_within_the_time_out() -> None:
    with pytest.raises(redis.exceptions.ConnectionError, match=r"Redis at unix:///nowhere .* No such file"):
        check("unix:///nowhere")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(redis.exceptions.TimeoutError, match=f"{address}/0 does not answer in time"):
            check_servers((parse_address(f"redis://{address}"),), 0.2, SERVE)


def test_a_resolver_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_arguments: object, **_options: object) -> list[object]:
        release.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with pytest.raises(redis.exceptions.TimeoutError, match=r"Redis at redis\.svc:6379/0 does not"):
            check_servers((parse_address("redis://redis.svc"),), 0.2, SERVE)
    finally:
        release.set()
