"""The command line: help, exit statuses, and what children are given."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
from typing import Any

import pytest

from common.process.logging import default_config
from common.settings import COMMANDS, FLAGS
from parakeet import cli
from parakeet.terminal import status


def test_help_shows_every_flag_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in FLAGS:
        assert f"{flag.option} " in text
        assert flag.variable in text
    for group in {flag.group for flag in FLAGS}:
        assert f"{group}:" in text


def test_alone_it_shows_a_line_a_command_and_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    for command, summary in cli.SUMMARIES.items():
        assert f"  {command} " in shown
        assert " ".join(summary.split()) in " ".join(shown.split())
    assert not any(f"\n  {flag.option} " in shown for flag in FLAGS)
    assert len(shown.splitlines()) < 30


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_begins_with_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    usage, summary, _ = capsys.readouterr().out.split("\n\n", 2)
    assert usage.startswith(f"usage: parakeet-server {command} [FLAG ...]")
    assert ("[FILE]" in usage) == (command == "transcribe"), "what its sentences call the source"
    said = " ".join(summary.split())
    assert said[0].lower() + said[1:] == f"{cli.SUMMARIES[command]}."


@pytest.mark.parametrize("columns", [80, 110])
@pytest.mark.parametrize("argv", [["--help"], *([command, "--help"] for command in (*COMMANDS, "bench"))])
def test_help_is_as_wide_as_the_terminal(
    argv: list[str], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.suppress(SystemExit):
        cli.main(argv)
    widest = max(map(len, capsys.readouterr().out.splitlines()))
    assert columns * 0.75 < widest < columns


@pytest.mark.parametrize(
    "argv", [["--version"], ["-V"], ["version"], ["serve", "--version"], ["bench", "--version"]]
)
def test_the_version_is_that_of_the_package(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):  # so argparse leaves
        cli.main(argv)
    assert capsys.readouterr().out == f"parakeet-server {importlib.metadata.version('parakeet-server')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_its_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in FLAGS:
        assert (f"\n  {flag.option} " in text) == (command in flag.commands), flag.option


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["fly"], "got the command 'fly', but takes serve, ingress, worker, status, health, transcribe"),
        (["serve", "--num-ingress", "0"], "serve: --num-ingress got '0', but takes a whole number from 1"),
        (["worker", "--lease-ms", "soon"], "worker: --lease-ms got 'soon'"),
        (["ingress", "--port", "8000"], "ingress: --ws-port got 8000"),
        (["serve", "--nope"], "parakeet-server serve: unrecognized arguments: --nope.\n"),
    ],
)
def test_a_wrong_command_line_is_status_2_and_one_line(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(("command", "module"), [("ingress", "ingress"), ("worker", "gpu_worker")])
def test_a_single_process_becomes_its_module_with_our_logging(
    command: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable
        became.append((arguments, environment))
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setenv("PARAKEET_LOG_LEVEL", "debug")
    monkeypatch.setenv("PARAKEET_REDIS_URL", "redis://:secret@h:1/0")
    with pytest.raises(SystemExit):
        cli.main([command, "--redis-shards", "2"])
    ((arguments, environment),) = became
    assert arguments[1:3] == ["-m", module]
    assert "--redis-shards=2" in arguments
    assert "secret" not in " ".join(arguments)
    assert environment["PARAKEET_REDIS_URL"] == "redis://:secret@h:1/0"
    assert json.loads(environment["PARAKEET_LOG_CONFIG"])["root"]["level"] == "DEBUG"


def test_the_documented_place_of_the_logging_configuration_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(level: str, format_name: str) -> dict[str, Any]:
        config = default_config(level, format_name)
        config["loggers"]["gpu_worker.engine"] = {"level": "DEBUG"}
        return config

    given: list[str] = []
    monkeypatch.setattr(cli, "logging_config", changed)
    monkeypatch.setattr(cli, "configure", lambda *_: None)
    monkeypatch.setattr(
        "parakeet.serve.supervisor.Supervisor.__init__",
        lambda _self, settings: given.extend((settings.worker.log_config, settings.ingress.log_config)),
    )
    monkeypatch.setattr("parakeet.serve.supervisor.Supervisor.run", lambda _self: 0)
    assert cli.main(["serve"]) == 0
    assert [json.loads(text)["loggers"]["gpu_worker.engine"] for text in given] == [{"level": "DEBUG"}] * 2


def test_a_status_port_that_nobody_listens_on_is_status_1(
    capsys: pytest.CaptureFixture[str], free_port: int
) -> None:
    assert cli.main(["status", "--status-port", str(free_port)]) == 1
    assert f"No server answers at the status port 127.0.0.1:{free_port}" in capsys.readouterr().err


def test_the_status_is_awaited_until_the_server_can_say_that_redis_does_not_answer() -> None:
    (redis_timeout_ms,) = (float(flag.default) for flag in FLAGS if flag.name == "redis_timeout_ms")
    assert 2 * redis_timeout_ms + 1000 < status.TIMEOUT_S * 1000
