"""Which languages a worker says that its model has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.languages import ENGLISH, UNKNOWN, Languages
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.model.loading.export import ORIGIN_NAME
from gpu_worker.model.loading.hub import HUB_IDS
from gpu_worker.model.loading.spoken import size_source, spoken_languages


@pytest.mark.parametrize("source", [size_source(size) for size in ("tiny", *HUB_IDS)])
def test_the_sizes_are_english(source: str) -> None:
    assert spoken_languages(source, ()) == ENGLISH


def test_the_bundled_model_is_english() -> None:
    assert spoken_languages(load_model(None, size="tiny").source, ()) == ENGLISH


def test_a_model_with_prompts_has_their_languages() -> None:
    source, prompts = HUB_IDS["small"], ("en-US", "de-DE")
    assert spoken_languages(source, prompts) == Languages(prompts, prompted=True)


@pytest.mark.parametrize(
    ("note", "languages"),
    [
        (json.dumps({"origin": HUB_IDS["large"]}), ENGLISH),
        (json.dumps({"origin": "tiny"}), ENGLISH),
        (json.dumps({"origin": "someone/parakeet-fr"}), UNKNOWN),
        (json.dumps({"origin": 1}), UNKNOWN),
        ("[]", UNKNOWN),
        ("{", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_an_exported_folder_has_those_of_its_origin(
    tmp_path: Path, note: str | None, languages: Languages
) -> None:
    if note is not None:
        (tmp_path / ORIGIN_NAME).write_text(note)
    assert spoken_languages(str(tmp_path), ()) == languages
