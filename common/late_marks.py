"""Late punctuation marks: they belong to words that were sent already."""

from __future__ import annotations

import re
from typing import Final

# Marks that close the text before them. Those of Latin script only where no word follows at once: '.5'.
_LATE_MARKS: Final = re.compile(r"\s*([.,?!;:…]+(?=\s|$)|[。，、？！；：]+)")


def without_late_marks(text: str) -> str:
    """Return a part of a transcript without the leading marks that belong to the part before it."""
    late = _LATE_MARKS.match(text)
    return text if late is None else text[late.end() :]
