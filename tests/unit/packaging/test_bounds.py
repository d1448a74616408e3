"""`requirements/bounds.py`: each direct dependency at its lowest version, or as it is declared."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _printed(bound: str, part: str) -> dict[str, Requirement]:
    """What the program prints, by name."""
    command = [sys.executable, str(ROOT / "requirements" / "bounds.py"), bound, part]
    lines = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=30
    ).stdout.splitlines()
    found = {Requirement(line).name: Requirement(line) for line in lines}
    assert len(found) == len(lines), "a requirement twice"
    return found


def test_the_lowest_versions_are_the_lower_bounds_of_all_dependencies_but_torch() -> None:
    pinned = _printed("lowest", "all")
    for line in PROJECT["dependencies"]:
        declared = Requirement(line)
        if declared.name == "torch":
            assert "torch" not in pinned
            continue
        bounds = [one.version for one in declared.specifier if one.operator in (">=", "==")]
        assert [one.version for one in pinned[declared.name].specifier] == bounds
        assert pinned[declared.name].marker == declared.marker
    for name in ("onnxruntime", "matplotlib", "pytest", "fakeredis"):
        assert name in pinned


def test_an_ingress_needs_nothing_of_a_worker() -> None:
    pinned = _printed("lowest", "ingress")
    assert {"redis", "hiredis", "websockets", "pytest"} <= pinned.keys()
    assert not {"torch", "triton", "numpy", "soxr", "safetensors", "sentencepiece"} & pinned.keys()


@pytest.mark.parametrize("part", ["ingress", "all"])
def test_newest_is_what_is_declared(part: str) -> None:
    declared = _printed("newest", part)
    assert {one.operator for one in declared["redis"].specifier} == {">=", "<"}
    assert declared.keys() == _printed("lowest", part).keys()


def test_every_dependency_is_bounded_on_both_sides() -> None:
    extras = PROJECT["optional-dependencies"]
    for line in (
        *PROJECT["dependencies"],
        *extras["test"],
        *extras["smart-turn"],
        *extras["otel"],
        *extras["bench"],
    ):
        assert {one.operator for one in Requirement(line).specifier} in ({">=", "<"}, {"=="}), line
