"""The command line of a benchmark: its docstring as it is written, and the default of each option."""

from __future__ import annotations

import argparse
from pathlib import Path


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and names each default that is a value."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, told = action.default, action.help or ""
        if default is None or default is argparse.SUPPRESS or isinstance(default, bool) or "default" in told:
            return action.help
        if isinstance(default, list | tuple):
            return f"{told} (default: {' '.join(map(str, default))})"
        return f"{told} (default: %(default)s)"


def command_line(file: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a benchmark.

    file: ``__file__`` of the benchmark; it runs as ``python -m benchmarks.NAME``
    doc: its docstring
    """
    name = f"python -m benchmarks.{Path(file).stem}"
    return argparse.ArgumentParser(prog=name, description=doc, formatter_class=_Help)
