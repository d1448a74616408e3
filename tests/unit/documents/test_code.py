"""Code in every document is code: programs compile, data parses, command lines have flags that exist.

Programs also run: that of README.md in tests/e2e/clients/test_readme.py, those of docs/clients.md in
tests/clients.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from common.settings import FLAGS
from tests.documents import DOCUMENTS, ROOT, Block, blocks, code_spans, name
from tests.unit.documents.command_lines import CommandLineError, command_lines, parse

# Known to a reader's highlighter, and to these tests. Blocks without a language are no code.
LANGUAGES = {"bash", "console", "js", "json", "mermaid", "python", "ts", "yaml", ""}
# Of docker compose and node.
FLAGS_OF_OTHERS = {"--experimental-websocket", "--gpus", "--no-recreate", "--profile", "--scale"}
PACKAGES = ("parakeet", "common", "gpu_worker", "training", "benchmarks", "tests")


def _all(*languages: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in blocks(document, *languages)]


def _place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", _all(), ids=_place)
def test_languages_are_known(block: Block) -> None:
    assert block.language in LANGUAGES


@pytest.mark.parametrize("block", _all("python"), ids=_place)
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", _all("python", "js"), ids=_place)
def test_programs_are_run_by_a_test(block: Block) -> None:
    assert name(block.document) in {"README.md", "docs/clients.md"}


def test_the_programs_of_the_clients_page_are_run() -> None:
    """tests/clients finds them by their marks."""
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests/clients").glob("test_*.py"))
    run = {
        f"example: {environment} {name}"
        for environment, name in re.findall(r'"([a-z-]+)", "([a-z-]+)"', tests)
    }
    assert {block.mark for block in blocks(ROOT / "docs" / "clients.md")} <= run


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_data_parses(document: Path) -> None:
    for block in blocks(document, "json"):
        json.loads(block.text)
    for block in blocks(document, "yaml"):
        assert list(yaml.safe_load_all(block.text))


@pytest.mark.parametrize("block", _all("bash", "console"), ids=_place)
def test_command_lines_of_blocks_parse(block: Block) -> None:
    for line in command_lines(block.text):
        parse(line, whole=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_command_lines_elsewhere_have_flags_that_exist(document: Path) -> None:
    """Those in sentences and beside figures may leave out what a command requires."""
    for text in (*code_spans(document), *(block.text for block in blocks(document, ""))):
        for line in command_lines(text):
            parse(line, whole=False)


def test_the_readme_installs_a_torch_that_the_project_takes() -> None:
    (installed,) = re.findall(r'pip install "(torch[^"]+)"', (ROOT / "README.md").read_text(encoding="utf-8"))
    assert f'"{installed}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_wrong_command_line_is_found() -> None:
    for line in (
        ["parakeet-server", "serve", "--colour", "red"],
        ["parakeet-server", "dance"],
        ["parakeet-server", "serve", "--port", "--host"],
        ["python", "-m", "training", "text", "--loud"],
        ["python", "-m", "benchmarks.nothing"],
    ):
        with pytest.raises(CommandLineError):
            parse(line, whole=True)


@cache
def _known_flags() -> set[str]:
    """Return the flags of all programs: the server's from its table, others from the lines that add them."""
    known = {flag.option for flag in FLAGS} | FLAGS_OF_OTHERS | {"--help", "--version"}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            known.update(re.findall(r"\(\s*\"(--[a-z][\w-]*)\",", file.read_text(encoding="utf-8")))
    return known


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_flags_named_without_a_command_exist(document: Path) -> None:
    written = {span.split()[0] for span in code_spans(document) if re.match(r"--[a-z]", span)}
    assert {re.sub(r"=.*", "", flag) for flag in written} <= _known_flags()
