"""Marks of punctuation that come late: they belong to words that were sent already."""

from __future__ import annotations

import re
from typing import Final

# Marks that close what stands before them. Those of Latin script only where no word follows at once: '.5'.
_LATE_MARKS: Final = re.compile(r"\s*([.,?!;:…]+(?=\s|$)|[。，、？！；：]+)")


def without_late_marks(text: str) -> str:
    """Return a part of a transcript, behind another part, without the marks that close the other one."""
    late = _LATE_MARKS.match(text)
    return text if late is None else text[late.end() :]
