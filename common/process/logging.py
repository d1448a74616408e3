"""Logs to stdout, as text for people or as JSON lines, with the fields of the stream they are about.

A record names its stream, worker and epoch by `extra`: ``log.info("claimed", extra={"stream_id": 7})``.
Fields of the whole process (``worker_id``, ``ingress_id``) are given once to `configure`. Transcript text
never goes above DEBUG.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from common.errors import SettingsError
from common.process.last_words import LastWordsHandler, inherited_handler
from common.process.standard_streams import complain
from common.settings import ClusterSettings

FIELDS = ("ingress_id", "worker_id", "stream_id", "epoch")
"""Fields of `extra` that are printed, in this order; others are only in JSON."""

# Control characters and line breaks in JSON's notation: no text of a client, a file or a library can begin a
# line of the log or move a terminal's cursor.
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
_ESCAPED |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_process_fields: dict[str, object] = {}


def _timestamp(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _fields(record: logging.LogRecord) -> dict[str, object]:
    given = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return _process_fields | given


def _indented(trace: str) -> str:
    """Indent the lines of a traceback, to set them off from lines of the log: the last may have any text."""
    return "".join(f"\n  {line.translate(_ESCAPED)}" for line in trace.split("\n"))


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z INFO gpu_worker.worker [worker_id=w-1 stream_id=7] claimed``.

    One line a record, whatever its message holds; a traceback follows indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        named = " ".join(f"{name}={fields[name]}" for name in FIELDS if name in fields)
        line = f"{_timestamp(record)} {record.levelname} {record.name}{f' [{named}]' if named else ''}"
        line = f"{line} {record.getMessage()}".translate(_ESCAPED)
        if record.exc_info:
            line += _indented(self.formatException(record.exc_info))
        if record.stack_info:
            line += _indented(record.stack_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # JSON itself escapes only the control characters below 0x20.
        return json.dumps(entry, ensure_ascii=False, default=str).translate(_ESCAPED)


class StdoutHandler(logging.StreamHandler[TextIO]):
    """Writes to stdout; records that cannot be written (the reader has gone, or the disk is full) are lost.

    A server does not stop for that, nor does it fill stderr with tracebacks.
    """

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - overrides
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def default_config(level: str, format_name: str) -> dict[str, Any]:
    """Return the logging dictConfig: everything to stdout, third parties from WARNING or ERROR."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {"()": "common.process.logging.TextFormatter"},
            "json": {"()": "common.process.logging.JsonFormatter"},
        },
        "handlers": {
            "stdout": {
                "class": "common.process.logging.StdoutHandler",
                "formatter": format_name,
            }
        },
        "root": {"level": level.upper(), "handlers": ["stdout"]},
        "loggers": {
            # The form parser warns of every malformed form, which is the client's fault.
            "python_multipart": {"level": "ERROR"},
        }
        | {
            name: {"level": "WARNING"}
            for name in (
                "asyncio",
                "websockets",
                # The hub's client: at INFO it logs every request, signed addresses included.
                "httpx",
                "httpx2",
                "huggingface_hub",
                "urllib3",
                "numba",
                "nemo_logger",
                "opentelemetry",
            )
        },
    }


def read_config(source: str) -> dict[str, Any]:
    """Return the dictConfig of `--log-config`, which is JSON or the path of a JSON file.

    Raises SettingsError where it is neither.
    """
    try:
        text = source if source.lstrip().startswith("{") else Path(source).read_text(encoding="utf-8")
        config = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"--log-config takes a dictConfig as JSON or a file of it: {error}.") from error
    if not isinstance(config, dict):
        raise SettingsError("--log-config takes a JSON object.")
    return config


def configure(
    level: str, format_name: str, config: str = "", *, fields: Mapping[str, object] | None = None
) -> None:
    """Set up the logging of this process; `fields` go into every record (worker_id or ingress_id).

    Raises SettingsError where `config` is no JSON, or no dictConfig.
    """
    wanted = read_config(config) if config else default_config(level, format_name)
    try:
        logging.config.dictConfig(wanted)
    except (ValueError, TypeError, AttributeError, LookupError, ImportError) as error:
        # An error of the config's own handler or formatter is the cause of dictConfig's error.
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        raise SettingsError(f"--log-config is no dictConfig: {error}{cause}.") from error
    _process_fields.clear()
    _process_fields.update(fields or {})
    logging.captureWarnings(True)
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, LastWordsHandler)]:
        root.removeHandler(handler)
    if (last_words := inherited_handler(os.environ)) is not None:
        root.addHandler(last_words)


def configure_or_exit(settings: ClusterSettings, program: str, **fields: object) -> None:
    """Run `configure` for a `main`: a wrong `--log-config` ends it with a sentence on stderr and status 2."""
    try:
        configure(settings.log_level, settings.log_format, settings.log_config, fields=fields)
    except SettingsError as error:
        complain(f"{program}: {error}")
        raise SystemExit(2) from None
