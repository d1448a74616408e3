"""Requirement files say what pyproject.toml says, and packages carry their data."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _requirements(lines: list[str]) -> dict[str, str]:
    stripped = [line.strip().replace('"', "'") for line in lines]
    return {
        re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]: line
        for line in stripped
        if line and not line.startswith("#")
    }


def test_the_ingress_image_installs_the_same_versions_and_nothing_heavy() -> None:
    whole = _requirements(PROJECT["project"]["dependencies"])
    ingress = _requirements((ROOT / "requirements" / "ingress.txt").read_text(encoding="utf-8").splitlines())
    assert ingress
    assert {name: whole.get(name) for name in ingress} == ingress
    assert not {"torch", "triton", "numpy", "soxr", "safetensors", "sentencepiece"} & ingress.keys()


@pytest.mark.parametrize("path", ["Makefile", "docker/worker.Dockerfile"])
def test_the_pinned_torch_is_one_that_the_package_takes(path: str) -> None:
    pinned = re.search(r"TORCH_VERSION ?\??= ?(\S+)", (ROOT / path).read_text(encoding="utf-8"))
    assert pinned is not None
    assert pinned[1] == "2.13.0"
    assert "torch>=2.11,<2.14" in PROJECT["project"]["dependencies"]


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
