"""Links of every document lead somewhere: files and anchors are there, addresses of others are whole."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from common.monitoring.families import INGRESS, WORKER
from tests.documents import DOCUMENTS, ROOT, anchors, name, sentences, targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_anchors(document: Path) -> None:
    broken = [target for target in targets(document) if not _leads_somewhere(document, target)]
    assert not broken


def _leads_somewhere(document: Path, target: str) -> bool:
    """Whether a link holds; one to another host is judged by its form, since tests have no network."""
    address = urlsplit(target)
    if address.scheme or address.netloc:
        return address.scheme == "https" and "." in address.netloc and " " not in target
    if address.path.startswith("/"):
        return False  # it would mean one thing on a code host and another in the site
    file = (document.parent / address.path).resolve() if address.path else document
    if not file.is_relative_to(ROOT) or not file.exists():
        return False
    return not address.fragment or (file in DOCUMENTS and address.fragment in anchors(file))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_references_are_defined(document: Path) -> None:
    """`[text][name]` without its definition is shown as it stands."""
    assert not [text for text in sentences(document) if re.search(r"\]\[[^\]]*\]|\]\(", text)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_documents_that_code_names_are_there(document: Path) -> None:
    """Sentences name documents and tests by their paths."""
    text = "\n".join(sentences(document))
    for path in re.findall(
        r"(?<![\w/.])(?:docs|tests|benchmarks|deploy)/[\w/.-]+\.(?:md|py|json|yaml)", text
    ):
        assert (ROOT / path).exists(), path


def test_documents_that_the_code_names_are_there() -> None:
    """Docstrings and comments name documents by their paths and anchors."""
    for package in ("parakeet", "common", "ingress", "gpu_worker", "training", "benchmarks"):
        for file in (ROOT / package).rglob("*.py"):
            for path, anchor in re.findall(
                r"\b(docs/[\w-]+\.md)(?:#([\w-]+))?", file.read_text(encoding="utf-8")
            ):
                assert (ROOT / path).exists(), f"{name(file)} names {path}"
                assert not anchor or anchor in anchors(ROOT / path), f"{name(file)} names {path}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_metrics_that_are_documented_exist(document: Path) -> None:
    written = set(re.findall(r"parakeet_(?:ingress|worker)_[a-z_]+", document.read_text(encoding="utf-8")))
    assert written <= {family.name for family in (*INGRESS, *WORKER)}
