"""Command lines as documents write them, put before the parsers of the programs that they start."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from parakeet.cli import RUN, main

_PACKAGES: Final = ("parakeet", "common", "ingress", "gpu_worker", "training", "benchmarks", "tests")


class CommandLineError(Exception):
    """The program would refuse the command line."""


class _Parsed(BaseException):
    """The program has parsed its command line; what it would do next is not done."""


def command_lines(text: str) -> list[list[str]]:
    """Return the commands of shell code, or of a code span, that start a program of this repository.

    Each as its words. A command with `...` in it is no whole one, and left out.
    """
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        try:
            words = _words(line.removeprefix("$ "))
        except ValueError:  # a span may end within quotes
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word.strip("|&;"):
                command.append(word)
                continue
            while command and re.fullmatch(r"\w+=.*", command[0]):
                del command[0]
            if ">" in command:  # where the output goes is the shell's
                del command[command.index(">") :]
            if _is_ours(command) and "..." not in command and "…" not in command:
                found.append(command)
            command = []
    return found


def _words(line: str) -> list[str]:
    reader = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    reader.whitespace_split = True
    return list(reader)


def _is_ours(command: Sequence[str]) -> bool:
    match command:
        case ["parakeet-server", name, *_]:
            return name.islower()
        case ["python" | "python3", "-m", module, *_]:
            return module.split(".")[0] in _PACKAGES
    return False


def parse(command: Sequence[str], *, whole: bool) -> None:
    """Let the program parse a command line, and do nothing else.

    whole: nothing that the program requires may be missing. Raises CommandLineError.
    """
    match command:
        case ["parakeet-server", "model", *arguments]:
            module = "gpu_worker.model"
        case ["parakeet-server", *arguments]:
            module = "parakeet.cli"
            if arguments[0] not in {*RUN, "--help", "--version"}:
                raise CommandLineError(f"{arguments[0]} is no command")
        case [_, _, module, *arguments]:
            pass
        case _:
            raise AssertionError(command)
    if not _is_program(module):
        raise CommandLineError(f"{module} is no program")
    if not arguments or arguments[-1] in {"--help", "--version"}:
        return
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def relaxed(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if not whole:
            for action in self._actions:
                action.required = False
                if not action.option_strings and action.nargs is None:
                    action.nargs = "?"
        return parse_known_args(self, args, namespace)

    def parsed(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        _, others = self.parse_known_args(args, namespace)
        if others:
            raise CommandLineError(f"unknown: {' '.join(others)}")
        raise _Parsed

    def refused(_self: argparse.ArgumentParser, message: str) -> None:
        raise CommandLineError(message)

    parser = argparse.ArgumentParser
    with (
        patch.object(sys, "argv", ["program", *arguments]),
        patch.object(parser, "parse_known_args", relaxed),
        patch.object(parser, "parse_args", parsed),
        patch.object(parser, "error", refused),
        warnings.catch_warnings(),
    ):
        # Another test of this process may have imported the module; it is run from its file anew.
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
        try:
            if module == "parakeet.cli":
                main(arguments)
            else:
                runpy.run_module(module, run_name="__main__")
        except _Parsed:
            return
        except SystemExit as left:  # a parser with an `error` of its own
            raise CommandLineError(f"{module} refuses {' '.join(arguments)}") from left
    raise CommandLineError(f"{module} has not parsed its command line")


def _is_program(module: str) -> bool:
    """Return whether `python -m` of a module does something."""
    try:
        found = importlib.util.find_spec(module)
        if found is not None and found.submodule_search_locations is not None:
            found = importlib.util.find_spec(f"{module}.__main__")
    except ModuleNotFoundError:
        return False
    if found is None or found.origin is None:
        return False
    return '__name__ == "__main__"' in Path(found.origin).read_text(encoding="utf-8")
