"""The status client: reading a status port, the table for people."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.settings import parse
from parakeet.terminal.status import NoStatus, read_status, show_status, table

STATUS = {
    "type": "status",
    "connected_streams": 3,
    "queues": {"raw_depth": 2, "encoded_streams": 1},
    "timings_ms": {"encode_avg": 1.25},
    "uptime_sec": 42.0,
}


@contextmanager
def port_that_says(*parts: bytes) -> Iterator[int]:
    """A server that sends the parts to one connection and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                for part in parts:
                    connection.sendall(part)

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join(60)


def test_the_answer_is_read_whole_however_it_is_cut() -> None:
    line = json.dumps(STATUS).encode() + b"\n"
    with port_that_says(line[:7], line[7:20], line[20:]) as port:
        assert read_status("127.0.0.1", port) == STATUS


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"[1]\n", b'{"type":"hello"}\n'])
def test_something_else_is_no_status(said: bytes) -> None:
    with port_that_says(said) as port, pytest.raises(NoStatus, match="not as a status port does"):
        read_status("127.0.0.1", port)


def test_an_error_of_the_server_is_passed_on() -> None:
    with (
        port_that_says(b'{"type":"error","code":"redis_unavailable","message":"Redis is away."}\n') as port,
        pytest.raises(NoStatus, match=r"cannot tell its status: Redis is away\."),
    ):
        read_status("127.0.0.1", port)


def test_without_a_terminal_it_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    with port_that_says(json.dumps(STATUS).encode() + b"\n") as port:
        assert show_status(parse("status", ["--status-port", str(port)], {})) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_on_a_terminal_it_is_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with port_that_says(json.dumps(STATUS).encode() + b"\n") as port:
        assert show_status(parse("status", ["--status-port", str(port)], {})) == 0
    assert capsys.readouterr().out == table(STATUS) + "\n"


def test_the_table_has_every_number_once() -> None:
    words = table(STATUS).split("\n")
    assert [line.split() for line in words if line] == [
        ["connected", "streams", "3"],
        ["queues"],
        ["raw", "depth", "2"],
        ["encoded", "streams", "1"],
        ["timings", "ms"],
        ["encode", "avg", "1.2"],
        ["uptime", "sec", "42.0"],
    ]
