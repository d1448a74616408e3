"""`parakeet-server`: one command for the whole stack, for its parts, and for its clients.

The logging of every process that this command starts is configured here: see `logging_config`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from common.errors import ParakeetError
from common.process.logging import configure, default_config
from common.process.standard_streams import complain, run_command
from common.process.version import package_version
from common.settings import (
    FLAGS,
    PROGRAM,
    ClusterSettings,
    IngressSettings,
    SettingsError,
    build_parser,
    child_argv,
    child_environment,
    parse,
)
from common.settings import SUMMARIES as FLAGGED

SUMMARIES = {
    **FLAGGED,
    "keys": "make, list and revoke the keys of clients (keys --help)",
    "redis-users": "make users of Redis with the least rights (redis-users --help)",
    "bench": "measure how many real-time streams a server carries (bench --help)",
    "model": "look at a model, or fetch it beforehand (model --help)",
}

_UNHEARD: Final = logging.NullHandler()


def logging_config(level: str, format_name: str) -> dict[str, Any]:
    """Return the logging dictConfig of `serve` and of the ingress and worker processes that it starts.

    Change it here for more detail. For example, the scheduler alone at DEBUG::

        config["loggers"]["gpu_worker.engine"] = {"level": "DEBUG"}

    Third parties log from WARNING; everything goes to stdout. `--log-config` (or PARAKEET_LOG_CONFIG)
    replaces all of it without touching this file.
    """
    return default_config(level, format_name)


def _log_config_of(settings: ClusterSettings) -> str:
    return settings.log_config or json.dumps(logging_config(settings.log_level, settings.log_format))


def serve(argv: Sequence[str]) -> int:
    """Run the whole stack until a signal stops it."""
    from parakeet.serve.supervisor import Supervisor

    settings = parse("serve", argv)
    log_config = _log_config_of(settings.ingress)
    configure(settings.ingress.log_level, settings.ingress.log_format, log_config)
    return Supervisor(
        replace(
            settings,
            ingress=replace(settings.ingress, log_config=log_config),
            worker=replace(settings.worker, log_config=log_config),
        )
    ).run()


def _become(command: Literal["ingress", "worker"], argv: Sequence[str]) -> int:
    """Check the flags, then replace this process by ``python -m ingress`` or ``python -m gpu_worker``."""
    parsed = parse(command, argv)
    settings = replace(parsed, log_config=_log_config_of(parsed))
    module = "ingress" if isinstance(settings, IngressSettings) else "gpu_worker"
    sys.stdout.flush()
    arguments = [sys.executable, "-m", module, *child_argv(settings)]
    os.execve(sys.executable, arguments, child_environment(settings))  # noqa: S606 - becoming it is the purpose


def ingress(argv: Sequence[str]) -> int:
    """Run one ingress process in this one's place."""
    return _become("ingress", argv)


def worker(argv: Sequence[str]) -> int:
    """Run one worker in this process's place."""
    return _become("worker", argv)


def status(argv: Sequence[str]) -> int:
    """Print the answer of the status port."""
    from parakeet.terminal.status import show_status

    return show_status(parse("status", argv))


def health(argv: Sequence[str]) -> int:
    """Print whether a worker of this host is healthy."""
    from parakeet.serve.readiness import show_health

    # It queries once, and its own sentence names the cause: no log line about a retry is needed.
    logging.getLogger("common.redis").addHandler(_UNHEARD)
    return show_health(parse("health", argv))


def transcribe(argv: Sequence[str]) -> int:
    """Stream audio to a server and print the text."""
    from parakeet.terminal.transcribe import run_transcribe

    return run_transcribe(parse("transcribe", argv))


def check(argv: Sequence[str]) -> int:
    """Check that a model recognises speech correctly here, and how fast."""
    from parakeet.check.command import run_check

    return run_check(parse("check", argv))


def keys(argv: Sequence[str]) -> int:
    """Make, list or revoke API keys."""
    from parakeet.keys import run_keys

    return run_keys(argv)


def redis_users(argv: Sequence[str]) -> int:
    """Write the users of Redis."""
    from parakeet.redis_users import run_redis_users

    return run_redis_users(argv)


def bench(argv: Sequence[str]) -> int:
    """Measure a server."""
    from parakeet.bench.command import main as run_bench

    return run_bench(argv)


def model(argv: Sequence[str]) -> int:
    """Run the worker's model tool, which has the requirements of a worker."""
    if importlib.util.find_spec("torch") is None:
        raise ParakeetError("The packages of a worker are missing: pip install parakeet-server")
    os.execv(sys.executable, [sys.executable, "-m", "gpu_worker.model", *argv])  # noqa: S606


RUN: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": serve,
    "ingress": ingress,
    "worker": worker,
    "status": status,
    "health": health,
    "transcribe": transcribe,
    "check": check,
    "keys": keys,
    "redis-users": redis_users,
    "bench": bench,
    "model": model,
}


def commands() -> str:
    """Return the text of `parakeet-server` without a command: usage, and a line a command."""
    width = shutil.get_terminal_size().columns - 2
    name_width = max(map(len, SUMMARIES))
    lines = "\n".join(
        textwrap.fill(
            f"{name:<{name_width}}  {summary}",
            max(width, name_width + 20),
            initial_indent="  ",
            subsequent_indent=" " * (name_width + 4),
        )
        for name, summary in SUMMARIES.items()
    )
    return (
        f"usage: {PROGRAM} COMMAND [FLAG ...]\n"
        f"       {PROGRAM} --version\n\n"
        "Real-time speech-to-text server.\n\n"
        f"commands:\n{lines}\n\n"
        f"Flags of a command:\n  {PROGRAM} COMMAND --help\nFlags of all commands:\n  {PROGRAM} --help\n"
    )


def overview() -> str:
    """Return the text of `parakeet-server --help`: commands, then all flags, grouped."""
    by_group = sorted(FLAGS, key=lambda flag: [other.group for other in FLAGS].index(flag.group))
    flags = build_parser("", by_group).format_help()
    flags = flags[flags.index("\n\n") + 2 :]
    return f"{commands()}\n{flags}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 2 for a wrong command line, 1 for a failure, else the command's own status.

    Closed or full standard streams, or a pipe without a reader, cause no traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    if not arguments:
        sys.stdout.write(commands())
        return 0
    command = arguments[0]
    if command in {"-V", "--version", "version"}:
        sys.stdout.write(f"{PROGRAM} {package_version()}\n")
        return 0
    if command in {"-h", "--help", "help"}:
        sys.stdout.write(overview())
        return 0
    if command not in RUN:
        complain(f"{PROGRAM}: got the command {command!r}, but takes {', '.join(RUN)}.")
        return 2
    try:
        return RUN[command](arguments[1:])
    except SettingsError as error:
        complain(f"{PROGRAM} {command}: {error}")
        return 2
    except ParakeetError as error:
        complain(f"{PROGRAM} {command}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
