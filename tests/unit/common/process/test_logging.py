"""Log records as text and as JSON lines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.process.logging import configure, default_config


@pytest.fixture(autouse=True)
def _own_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_text_names_the_fields_of_process_and_stream(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text", fields={"worker_id": "w-1"})
    logging.getLogger("gpu_worker.worker").info("claimed %d", 2, extra={"stream_id": 7, "epoch": 3})
    line = capsys.readouterr().out
    assert line.endswith("Z INFO gpu_worker.worker [worker_id=w-1 stream_id=7 epoch=3] claimed 2\n")


@pytest.mark.parametrize(
    "break_", ["\n", "\r\n", "\v", "\x1b[2J", "\x7f", "\x85", "\x9b2J", "\u2028", "\u2029"]
)
@pytest.mark.parametrize("format_name", ["text", "json"])
def test_nothing_that_a_client_says_forges_a_line_or_moves_the_cursor(
    break_: str, format_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", format_name, fields={"ingress_id": f"i{break_}1"})
    forged = f"x{break_}2026-01-01T00:00:00.000Z CRITICAL ingress fake"
    logging.getLogger("ingress").info("unknown: %s", forged, extra={"stream_id": forged})
    (line,) = capsys.readouterr().out.removesuffix("\n").splitlines()
    assert line.isprintable()
    if format_name == "json":
        assert json.loads(line)["message"] == f"unknown: {forged}"


def test_text_in_other_scripts_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    logging.getLogger("ingress").info("größer – 大きい")
    assert capsys.readouterr().out.endswith(" größer – 大きい\n")


def test_the_lines_of_a_traceback_are_none_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    log = logging.getLogger("ingress")
    try:
        raise ValueError("x\n2026-01-01T00:00:00.000Z CRITICAL ingress fake\x1b[2J")
    except ValueError:
        log.exception("lost", stack_info=True)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.endswith("ERROR ingress lost")
    assert "  ValueError: x" in others
    assert all(line.startswith("  ") and line.isprintable() for line in others)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", "json", fields={"ingress_id": "i-1"})
    log = logging.getLogger("ingress.server")
    try:
        raise OSError("no route\nto host")
    except OSError:
        log.exception("lost", extra={"stream_id": 7, "port": 8000})
    (line,) = capsys.readouterr().out.splitlines()
    entry = json.loads(line)
    assert entry["level"] == "error"
    assert (entry["ingress_id"], entry["stream_id"], entry["port"]) == ("i-1", 7, 8000)
    assert "OSError: no route" in entry["exception"]


def test_below_the_level_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning", "text")
    logging.getLogger("x").info("no")
    logging.getLogger("websockets.server").info("no")
    assert capsys.readouterr().out == ""


def test_a_config_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = default_config("error", "text")
    config["loggers"]["special"] = {"level": "DEBUG"}
    path = tmp_path / "logging.json"
    path.write_text(json.dumps(config))
    for source in (str(path), json.dumps(config)):
        configure("info", "json", source)
        logging.getLogger("special").debug("seen")
        logging.getLogger("other").info("not seen")
        assert capsys.readouterr().out.endswith("DEBUG special seen\n")


@pytest.mark.parametrize("source", ["/no/such/file", "{broken", "[1]"])
def test_a_wrong_config_is_a_sentence(source: str, tmp_path: Path) -> None:
    if source == "[1]":
        (tmp_path / "list.json").write_text(source)
        source = str(tmp_path / "list.json")
    with pytest.raises(SettingsError, match="--log-config takes"):
        configure("info", "text", source)
