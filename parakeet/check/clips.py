"""The bundled recordings and their reference texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RECORDINGS: Final = Path(__file__).parents[1] / "recordings"


@dataclass(frozen=True, slots=True)
class Clip:
    """A bundled recording and what is said in it."""

    path: Path
    text: str


def clips() -> tuple[Clip, ...]:
    """Return all bundled recordings."""
    listed = json.loads((RECORDINGS / "clips.json").read_text(encoding="utf-8"))
    return tuple(Clip(RECORDINGS / entry["file"], entry["text"]) for entry in listed)


def clip(name: str) -> Clip:
    """Return the bundled recording of a file name."""
    (found,) = (one for one in clips() if one.path.name == name)
    return found
