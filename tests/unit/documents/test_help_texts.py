"""Every option of a program that a person starts says what it is for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_FOLDERS = ("benchmarks", "gpu_worker/model", "parakeet", "tests/attack", "tests/chaos", "training")
_PROGRAMS = [path for folder in _FOLDERS for path in sorted((_ROOT / folder).glob("*.py"))]


def _options(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument"):
            yield node


def _has_help(option: ast.Call) -> bool:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in option.keywords}
    return "help" in given or None in given or given.get("action") == "'version'"


@pytest.mark.parametrize("path", _PROGRAMS, ids=[str(path.relative_to(_ROOT)) for path in _PROGRAMS])
def test_every_option_has_a_help_text(path: Path) -> None:
    assert [ast.unparse(option.args[0]) for option in _options(path) if not _has_help(option)] == []
