"""Languages of a model. A checkpoint without language prompts does not name them, so its origin is used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from common.languages import ENGLISH, UNKNOWN, Languages
from gpu_worker.model.loading.checkpoint import BUNDLED
from gpu_worker.model.loading.export import ORIGIN_NAME
from gpu_worker.model.loading.hub import HUB_IDS

_TINY: Final = str(BUNDLED / "tiny")
_ENGLISH_SOURCES: Final = frozenset((_TINY, *HUB_IDS.values()))
# An export notes the name by which its model was loaded.
_ENGLISH_ORIGINS: Final = _ENGLISH_SOURCES | {"tiny", *HUB_IDS}


def spoken_languages(source: str, prompts: Iterable[str], letters: str = "") -> Languages:
    """Return the languages of a model.

    source: folder, file or hub id of the model. prompts: names of the model's language prompts.
    letters: as the tokenizer has them.
    """
    # Ingresses read the names from a list with commas between them.
    names = tuple(name for name in prompts if "," not in name)
    if names:
        return Languages(names, prompted=True, letters=letters)
    is_english = source in _ENGLISH_SOURCES or _origin(Path(source)) in _ENGLISH_ORIGINS
    return replace(ENGLISH if is_english else UNKNOWN, letters=letters)


def size_source(size: str) -> str:
    """Return the source of `--model-size`."""
    return HUB_IDS.get(size, _TINY)


def _origin(folder: Path) -> str | None:
    """Return the source of an exported folder; None for any other folder."""
    try:
        note = json.loads((folder / ORIGIN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    origin = note.get("origin") if isinstance(note, dict) else None
    return origin if isinstance(origin, str) else None
