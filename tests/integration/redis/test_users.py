"""The service runs under the users of `redis-users`, and nothing that it does is denied.

A command, a script or a key that is new and not in `common/redis/grants.py` fails here.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from common.entries import StreamId, WorkerId
from common.redis.clients import RedisServers, SyncRedis
from common.redis.grants import INGRESS, READER, USERS, WORKER
from common.redis.keys import Keys
from common.redis.scripts import FOLDER
from common.redis.scripts.ownership import keep_dead_letter
from parakeet.client import connect
from parakeet.redis_users import create_users
from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.e2e.serve_process import ServeProcess
from tests.ports import HOST, free_ports
from tests.servers import ServerKind, raw_client, server_binary
from tests.stack import TIMEOUTS, Stack, check_gapless, collect, transcribe
from tests.stream_client import expected_text, noise
from tests.waiting import until, wait_until
from tests.worker_process import SHORT_LEASE_MS

# Who runs the scripts of a folder; and of single ones where others do.
SCRIPTS_OF: Final = {
    "admission": {"ingress"},
    "ownership": {"worker"},
    "presence": {"worker"},
    "presence/beat": {"ingress"},
    "presence/others_serve": {"ingress"},
    "status": {"ingress"},
    "status/refused": {"ingress", "worker"},
    "streams": {"ingress"},
    "streams/kept_text": {"ingress", "worker"},
    "streams/last_result": {"ingress", "worker"},
    "usage": {"ingress"},
}
_CALL: Final = re.compile(r"redis\.p?call\(\s*'(\w+)'(?:,\s*'(CREATE|DESTROY|DELCONSUMER|GROUPS|STREAM)')?")


def called(script: Path) -> set[str]:
    """Commands that a script and the prelude functions it uses call, as ACL rules name them."""
    text = script.read_text()
    for function in re.findall(r"local function (\w+).*?^end", PRELUDE, re.DOTALL | re.MULTILINE):
        if f"{function}()" in text:
            text += PRELUDE[PRELUDE.index(f"function {function}") :].split("\nend")[0]
    return {"|".join(filter(None, found)).lower() for found in _CALL.findall(text)}


PRELUDE: Final = (FOLDER / "prelude.lua").read_text()
SCRIPTS: Final = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.rglob("*.lua")
    if path.name != "prelude.lua"
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_of_a_script_is_granted(script: str) -> None:
    users = SCRIPTS_OF.get(script) or SCRIPTS_OF[script.partition("/")[0]]
    commands = called(FOLDER / f"{script}.lua")
    assert commands or script in ("status/refused", "ownership/beyond_limit")
    for user in users:
        assert commands <= set(USERS[user].commands), user


class Denials:
    """What a server has denied its users."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.execute_command("ACL", "LOG", "RESET")

    def __call__(self) -> list[str]:
        rows = self._client.execute_command("ACL", "LOG")
        flat = [row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True)) for row in rows]
        entries = [
            {(key.decode() if isinstance(key, bytes) else key): value for key, value in row.items()}
            for row in flat
        ]
        return [
            " ".join(_text(entry[name]) for name in ("username", "reason", "context", "object"))
            for entry in entries
        ]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.fixture
def urls(own_server: EmbeddedRedis) -> dict[str, str]:
    """Addresses of a server for each user."""
    client = raw_client(own_server.url)
    for name, grants in USERS.items():
        client.execute_command("ACL", "SETUSER", grants.user, "on", f">{name}-secret", *grants.rules.split())
    client.close()
    return {
        name: own_server.url.replace("unix://", f"unix://{grants.user}:{name}-secret@")
        for name, grants in USERS.items()
    }


@pytest.fixture
def processes(
    urls: dict[str, str], own_server: EmbeddedRedis, tmp_path: Path
) -> Iterator[tuple[Stack, Stack]]:
    """A stack for ingresses, and one for workers."""
    ingresses, workers = (
        Stack(urls[name], tmp_path, raw_client(own_server.url)) for name in ("ingress", "worker")
    )
    yield ingresses, workers
    ingresses.close()
    workers.close()


async def test_nothing_is_denied_of_what_the_service_does(
    processes: tuple[Stack, Stack], tmp_path: Path
) -> None:
    """A key that counts, snapshots, a killed worker, a killed ingress, resumes, status, ends."""
    ingresses, workers = processes
    denials = Denials(ingresses.client)
    keys = tmp_path / "keys.json"
    limited = KeyRecord(
        key_id=KeyId(""), digest="", name="desk", max_streams=5, new_per_minute=100, audio_s_per_day=10_000
    )
    _, key = create_key(keys, limited)
    first, second = (ingresses.ingress(name, auth_keys_file=str(keys)) for name in ("i-1", "i-2"))
    one = workers.worker("w-1", replay_seconds=2, lease_ms=SHORT_LEASE_MS)
    workers.worker("w-2", replay_seconds=2)
    pcm = noise(16.0, seed=3)
    addresses = (first.ws_url, second.tcp_url)
    async with await connect(addresses, api_key=key, timeouts=TIMEOUTS) as stream:
        async with asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(collect(stream))
            for index, at in enumerate(range(0, len(pcm), 5120)):
                await stream.send(pcm[at : at + 5120])
                if index == 40:
                    snapshot = Keys().stream(StreamId(int(stream.stream_id))).snapshot
                    await until(lambda: ingresses.client.exists(snapshot), what="a snapshot")  # noqa: B023
                    one.send(signal.SIGKILL)
                elif index == 60:
                    first.send(signal.SIGKILL)
                await asyncio.sleep(0.03)
            await until(lambda: second.status()["connected_streams"] >= 1, what="the stream in the status")
            await stream.finish()
        assert stream.num_resumptions >= 1
    check_gapless(collecting.result())
    assert collecting.result()[-1].text == expected_text(pcm)
    await until(lambda: ingresses.client.keys("px:{0}:key:*:day:*"), what="the audio of the key is counted")
    assert denials() == []
    second.send(signal.SIGTERM)
    assert second.wait() == 0
    assert denials() == []


async def test_serve_comes_with_one_user(urls: dict[str, str], own_server: EmbeddedRedis) -> None:
    client = raw_client(own_server.url)
    denials = Denials(client)
    with ServeProcess("--redis-url", urls["serve"]) as serve:
        serve.wait_until_ready()
        pcm = noise(2.0)
        assert (await transcribe(f"ws://{HOST}:{serve.ws_port}", pcm))[-1].text == expected_text(pcm)
        assert serve.stop() == 0
    assert denials() == []
    client.close()


async def test_a_dead_letter_is_written(urls: dict[str, str], own_server: EmbeddedRedis) -> None:
    client = raw_client(own_server.url)
    denials = Denials(client)
    keys = Keys().stream(StreamId(7))
    client.hset(keys.meta, mapping={"epoch": "3", "died_at": "0-1", "options": "{}"})
    client.xadd(keys.audio, {"o": "0", "p": b"\0\0"}, id="1-1")
    redis = SyncRedis(RedisServers.parse((urls["worker"],)))
    command = keep_dead_letter(keys, epoch=3)
    assert redis.cluster.execute_command(*command) == 1
    assert client.xlen(keys.dead_audio) == 1
    assert denials() == []
    redis.close()
    client.close()


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("ingress", ("LRANGE", "px:{0}:7:s", 0, -1)),
        ("ingress", ("XREADGROUP", "GROUP", "workers", "w", "STREAMS", "px:{0}:new", ">")),
        ("ingress", ("PUBLISH", "px:in:i", "x")),
        ("ingress", ("HSET", "px:{0}:w:w-1", "capacity", 1000)),
        ("ingress", ("XRANGE", "px:{0}:7:dead-audio", "-", "+")),
        ("ingress", ("FLUSHALL",)),
        ("worker", ("SUBSCRIBE", "px:in:i")),
        ("worker", ("HSET", "px:{0}:conf", "max_num_streams", 1)),
        ("worker", ("INCRBY", "px:{0}:sid", 1)),
        ("worker", ("HGETALL", "px:{0}:key:abc:streams")),
        ("worker", ("KEYS", "*")),
        ("worker", ("CONFIG", "GET", "*")),
        ("worker", ("GET", "other:key")),
        ("reader", ("XRANGE", "px:{0}:new", "-", "+")),
        ("reader", ("HGETALL", "px:{0}:7:m")),
        ("reader", ("EVAL", "return 1", 0)),
    ],
)
def test_what_is_no_business_of_a_user_is_denied(
    urls: dict[str, str], user: str, command: tuple[str | int, ...]
) -> None:
    redis = SyncRedis(RedisServers.parse((urls[user],)))
    with pytest.raises(Exception, match="NOPERM"):
        redis.cluster.execute_command(*command)
    redis.close()


async def test_a_password_is_changed_under_streams(
    urls: dict[str, str], own_server: EmbeddedRedis, tmp_path: Path
) -> None:
    """The file is replaced, then Redis is told: new connections use the new password."""
    admin = raw_client(own_server.url)
    files = {name: tmp_path / f"{name}-password" for name in ("ingress", "worker")}
    stacks = {}
    for name, file in files.items():
        file.write_text(f"{name}-secret\n")
        url = urls[name].replace(f":{name}-secret@", "@")
        stacks[name] = Stack(url, tmp_path, raw_client(own_server.url))
    stacks["worker"].worker(redis_password_file=files["worker"])
    ingress = stacks["ingress"].ingress(redis_password_file=files["ingress"])
    pcm = noise(2.0)
    async with await connect(ingress.tcp_url, timeouts=TIMEOUTS) as stream:
        results = asyncio.create_task(collect(stream))
        await stream.send(pcm[: len(pcm) // 2])
        await until(lambda: admin.exists(f"px:{{0}}:{stream.stream_id}:r"), what="a result")
        for name, file in files.items():
            file.write_text(f"{name}-changed\n")
            admin.execute_command("ACL", "SETUSER", USERS[name].user, "resetpass", f">{name}-changed")
        for kind in ("normal", "pubsub"):
            admin.client_kill_filter(_type=kind, skipme=True)
        await stream.send(pcm[len(pcm) // 2 :])
        await stream.finish()
        check_gapless(await results)
        assert results.result()[-1].text == expected_text(pcm)
    for stack in stacks.values():
        stack.close()
    admin.close()


def test_the_reader_counts(urls: dict[str, str], own_server: EmbeddedRedis) -> None:
    client = raw_client(own_server.url)
    client.xgroup_create("px:{0}:new", "workers", mkstream=True)
    redis = SyncRedis(RedisServers.parse((urls["reader"],)))
    assert redis.cluster.execute_command("XLEN", "px:{0}:new") == 0
    assert redis.cluster.execute_command("XPENDING", "px:{0}:new", "workers")[0] == 0
    assert len(redis.cluster.execute_command("XINFO", "GROUPS", "px:{0}:new")) == 1
    assert b"used_memory" in redis.cluster.execute_command("INFO")
    redis.close()
    client.close()


def test_a_server_takes_the_file(server_kind: ServerKind, tmp_path: Path) -> None:
    """The whole file, as `redis-users create` writes it; a second run keeps the passwords."""
    create_users(tmp_path)
    passwords = {name: (tmp_path / name / "redis-password").read_text() for name in USERS}
    create_users(tmp_path)
    assert {name: (tmp_path / name / "redis-password").read_text() for name in USERS} == passwords
    assert len(set(passwords.values())) == len(USERS)
    for path in (tmp_path / "redis" / "users.acl", *(tmp_path / name / "redis-password" for name in USERS)):
        assert path.stat().st_mode & 0o777 == 0o600
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [
            *(server_binary(server_kind), "--port", str(port), "--bind", HOST, "--save", ""),
            *("--dir", str(tmp_path), "--aclfile", str(tmp_path / "redis" / "users.acl")),
        ],
        stdout=subprocess.DEVNULL,
    )

    def answer(url: str) -> str:
        redis = SyncRedis(RedisServers.parse((url,), timeout_ms=30_000))
        try:
            return str(redis.cluster.execute_command("PING"))
        except Exception as error:
            return str(error)
        finally:
            redis.close()

    try:
        wait_until(lambda: "Authentication required" in answer(f"redis://{HOST}:{port}"), what="the server")
        for name, grants in USERS.items():
            url = f"redis://{grants.user}:{passwords[name].strip()}@{HOST}:{port}"
            assert answer(url) == "b'PONG'"
    finally:
        server.kill()
        server.wait()


def test_the_documented_rules_are_these() -> None:
    text = Path("docs/redis.md").read_text()
    for grants in USERS.values():
        assert f"user {grants.user} on #PASSWORD {grants.rules}\n" in text, grants.user


def test_no_user_reads_another_application() -> None:
    for grants in (INGRESS, WORKER, READER):
        assert all(rule.partition("~")[2].startswith("px:{") for rule in grants.keys)
        assert all(channel.startswith("px:in:") for channel in grants.channels)
    assert Keys().worker(WorkerId("w")).startswith(b"px:{")
