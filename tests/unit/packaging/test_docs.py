"""Links between the documents lead somewhere, and documented flags exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.monitoring.families import INGRESS, WORKER
from common.settings import FLAGS

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    for link in links:
        if "://" not in link:
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


@pytest.mark.parametrize("name", ["README.md", "docs/operations.md"])
def test_flags_of_the_server_that_are_documented_exist(name: str) -> None:
    known = {flag.option for flag in FLAGS} | {"--help"}
    others = {
        "--profile",
        "--build",
        "--scale",
        "--index-url",
        "--scan",
        "--pattern",
        "--no-auth-warning",
        "--no-recreate",
        "--rm",
        "--time",
        "--user",
    }  # of docker, docker compose, pip, redis-cli
    text = (ROOT / name).read_text(encoding="utf-8")
    written = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert written
    assert written <= known | others


@pytest.mark.parametrize("name", ["docs/operations.md", "docs/scaling.md", "README.md"])
def test_metrics_that_are_documented_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    written = set(re.findall(r"parakeet_(?:ingress|worker)_[a-z_]+", text))
    assert written <= {family.name for family in (*INGRESS, *WORKER)}
