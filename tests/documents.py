"""The Markdown files of the repository as tests read them: links, anchors and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT: Final = Path(__file__).parents[1]
_FOLDERS_OF_OTHERS: Final = ("node_modules", "build", "dist")
DOCUMENTS: Final = tuple(
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".") or part in _FOLDERS_OF_OTHERS for part in path.relative_to(ROOT).parts)
)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code. mark: a comment of HTML right before it, without its brackets, or empty."""

    document: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        """Where a reader finds it."""
        return f"{name(self.document)}:{self.line}"


@cache
def _tokens(document: Path) -> tuple[Token, ...]:
    reader = MarkdownIt("commonmark").enable("table")
    return tuple(reader.parse(document.read_text(encoding="utf-8")))


def name(document: Path) -> str:
    """Return a document's path within the repository."""
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path, *languages: str) -> list[Block]:
    """Return the blocks of code in some languages; in any, where none is named.

    A block that is set off by spaces has no language.
    """
    found = []
    before = ""
    for token in _tokens(document):
        if token.type in {"fence", "code_block"} and (not languages or token.info in languages):
            assert token.map is not None
            found.append(Block(document, token.map[0] + 1, token.info, token.content, before))
        comment = (
            re.fullmatch(r"<!--\s*(.*?)\s*-->\s*", token.content) if token.type == "html_block" else None
        )
        before = comment[1] if comment is not None else ""
    return found


def _inline(document: Path) -> Iterator[Token]:
    for token in _tokens(document):
        yield from token.children or ()


def code_spans(document: Path) -> list[str]:
    """Return what stands in backquotes within sentences and tables."""
    return [token.content for token in _inline(document) if token.type == "code_inline"]


def targets(document: Path) -> list[str]:
    """Return where the links and the images of a document lead."""
    found = []
    for token in _inline(document):
        address = token.attrs.get({"link_open": "href", "image": "src"}.get(token.type, ""))
        if address is not None:
            found.append(str(address))
    return found


@cache
def anchors(document: Path) -> frozenset[str]:
    """Return the anchors of a document's headings, as code hosts and the site make them."""
    found: set[str] = set()
    tokens = _tokens(document)
    for at, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        words = "".join(child.content for child in tokens[at + 1].children or ())
        slug = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return frozenset(found)


def sentences(document: Path) -> list[str]:
    """Return the text of a document without its code and its links, piece by piece."""
    found = []
    within_link = False
    for token in _inline(document):
        if token.type in {"link_open", "link_close"}:
            within_link = token.type == "link_open"
        elif token.type == "text" and not within_link:
            found.append(token.content)
    return found
