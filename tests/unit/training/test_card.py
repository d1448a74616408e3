"""A card has figures of its own weights alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.oracle.models import tiny
from training.__main__ import main
from training.card import CardError, render, weights_digest

SCORES = [
    {"system": "service, 160 ms", "source": "asterisk", "clips_a_stream": 1, "errors": 3, "words": 10},
    {"system": "service, 160 ms", "source": "asterisk", "clips_a_stream": 30, "errors": 4, "words": 10},
    {"system": "pocketsphinx", "source": "asterisk", "clips_a_stream": 1, "errors": 5, "words": 10},
]


def results(folder: Path, digest: str) -> Path:
    path = folder / "wer.json"
    path.write_text(
        json.dumps(
            {"date": "2026-11-29", "command": "python -m x", "weights_sha256": digest, "scores": SCORES}
        )
    )
    return path


def test_figures_and_facts(tmp_path: Path) -> None:
    folder = Path(tiny().source)
    text = render(folder, "tiny", "## Data\n\nNone.\n", results(tmp_path, weights_digest(folder)))
    lines = text.splitlines()
    assert lines[0] == "# tiny"
    assert "| | Asterisk prompts (10 words) | Asterisk prompts, 30 in one stream (10 words) |" in lines
    assert "| service, 160 ms | 30.0 | 40.0 |" in lines
    assert "| pocketsphinx | 50.0 |  |" in lines
    assert any("12,029,890 parameters" in line for line in lines)
    assert lines[-1] == "None."


def test_results_of_other_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(tiny().source)
    path = results(tmp_path, "0" * 64)
    with pytest.raises(CardError, match="other weights"):
        render(folder, "tiny", "", path)
    notes = tmp_path / "notes.md"
    notes.write_text("")
    given = ["--model", str(folder), "--title", "t", "--notes", str(notes), "--results", str(path)]
    assert main(["card", *given]) == 2
    assert "other weights" in capsys.readouterr().err
