"""The tree of ARCHITECTURE.md names the files that there are, each under its folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def files_named() -> dict[str, set[str]]:
    """Python files of each package as the tree names them."""
    tree = (ROOT / "ARCHITECTURE.md").read_text().split("## Tree\n")[1].split("```")[1]
    named: dict[str, set[str]] = {}
    package = ""
    for line in tree.splitlines():
        if top := re.match(r"(\w+)/", line):
            package = top[1]
        # Files stand at the begin of a line; what a folder holds is told in words.
        files = re.match(r"  ((?:\w+\.py\s*)+)", line)
        named.setdefault(package, set()).update(files[1].split() if files else ())
    return named


@pytest.mark.parametrize("package", ["parakeet", "common", "ingress", "gpu_worker"])
def test_the_tree_names_every_file(package: str) -> None:
    there = {path.name for path in (ROOT / package).glob("*.py") if not path.name.startswith("__")}
    assert files_named()[package] == there
