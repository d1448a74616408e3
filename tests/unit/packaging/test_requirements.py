"""Requirement files say what pyproject.toml says, and packages carry their data."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TORCH_PINS = {
    "Makefile": r"^TORCH_VERSION \?= (\S+)$",
    "docker/worker.Dockerfile": r"^ARG TORCH_VERSION=(\S+)$",
    "requirements/golden.txt": r"^torch==(\S+)$",
}
"""Where one version of torch is pinned, and how it is written there."""


def _requirements(lines: list[str]) -> dict[str, str]:
    stripped = [line.strip().replace('"', "'") for line in lines]
    return {
        re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]: line
        for line in stripped
        if line and not line.startswith("#")
    }


def _taken(name: str) -> SpecifierSet:
    """The versions of a dependency that the package takes."""
    wanted = map(Requirement, PROJECT["project"]["dependencies"])
    (specifier,) = (requirement.specifier for requirement in wanted if requirement.name == name)
    return specifier


def _pinned_torch(path: str) -> str:
    pin = re.search(TORCH_PINS[path], (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert pin is not None
    return pin[1]


def test_the_ingress_image_installs_the_same_versions_and_nothing_heavy() -> None:
    whole = _requirements(PROJECT["project"]["dependencies"])
    ingress = _requirements((ROOT / "requirements" / "ingress.txt").read_text(encoding="utf-8").splitlines())
    assert ingress
    assert {name: whole.get(name) for name in ingress} == ingress
    assert not {"torch", "triton", "numpy", "soxr", "safetensors", "sentencepiece"} & ingress.keys()


@pytest.mark.parametrize("path", TORCH_PINS)
def test_the_pinned_torch_is_one_that_the_package_takes(path: str) -> None:
    assert _taken("torch").contains(_pinned_torch(path))


def test_the_same_torch_is_pinned_everywhere() -> None:
    assert len({_pinned_torch(path) for path in TORCH_PINS}) == 1


def test_every_data_file_is_in_the_wheel() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ("parakeet", "gpu_worker"):
        matched = {path for pattern in patterns[package] for path in (ROOT / package).glob(pattern)}
        data = {
            path
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix not in {".py", ".pyc", ".typed"}
        }
        assert data <= matched
