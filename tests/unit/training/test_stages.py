"""The commands: a session's training on shards, its resumption, and the export, on the bundled model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_worker.model.loaded_model import read_folder
from tests.oracle.models import ALL_RECORDINGS, speech, tiny
from tests.oracle.offline import OfflineOracle
from training.__main__ import _parser, _plan, main
from training.checkpoint.checkpoint import MAX_BYTES, Progress, read_progress
from training.data.utterances import HELD_OUT, Spoken, write_shard
from training.stages import _await_speech, _next_row, _pace
from training.text.phonemes import Phrase, write_phrases
from training.text.tokenizer import train_tokenizer

PLAN = ("--batch-s", "8", "--rate", "1e-5", "--muon-rate", "1e-5")


def make_shards(folder: Path) -> None:
    texts = ("go forward ten meters", "and so my fellow americans", "and mister john", "he was not")
    spoken = [
        Spoken((speech(name)[:30_000] * 32_767).astype(np.int16), text, (1, 2, 3))
        for name, text in zip(ALL_RECORDINGS, texts, strict=True)
    ]
    write_shard(folder, "speech-0", spoken * 3)
    write_shard(folder, HELD_OUT, spoken[:1])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_train_resume_and_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    # A checkpoint after every step.
    monkeypatch.setattr("training.stages._CHECKPOINT_MINUTES", 0.0)
    make_shards(tmp_path / "speech")
    folders = ("--speech", str(tmp_path / "speech"), "--checkpoint", str(tmp_path / "checkpoint"))
    card = tmp_path / "card.md"
    card.write_text("# A model\n")
    (tmp_path / "speech" / "next-row-0").write_text("600\n")
    (tmp_path / "speech" / "next-row-1").write_text("590\n")
    assert main(["train", *folders, "--steps", "2", *PLAN]) == 0
    assert "held-out voices, right context 13" in capsys.readouterr().out
    progress = read_progress(tmp_path / "checkpoint")
    assert progress == Progress(2, 600, 1, 1.0)
    assert sum(path.stat().st_size for path in (tmp_path / "checkpoint").iterdir()) < MAX_BYTES

    (tmp_path / "speech" / "next-row-1").write_text("900\n")
    assert main(["train", *folders, "--steps", "3", *PLAN]) == 0
    progress = read_progress(tmp_path / "checkpoint")
    assert progress == Progress(3, 900, 2, 1.0)

    target = tmp_path / "model"
    export = ["export", "--checkpoint", folders[3], "--card", str(card), "--out", str(target)]
    assert main(export) == 0
    assert sorted(path.name for path in target.iterdir()) == [
        "MODEL_CARD.md", "model_config.yaml", "tiny.safetensors", "tokenizer.model"
    ]  # fmt: skip
    # A service is another user.
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in target.iterdir())
    shipped = read_folder(target)
    # Three steps at a tiny rate: nearly the model that training went on from, but not the same.
    change = max(
        float((shipped.weights[name] - tiny().weights[name]).abs().max()) for name in shipped.weights
    )
    assert 0.0 < change < 0.01
    audio = torch.tensor(speech(ALL_RECORDINGS[0]))
    assert (
        OfflineOracle(shipped, (70, 13)).run(audio).tokens
        == OfflineOracle(tiny(), (70, 13)).run(audio).tokens
    )
    assert main(export) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "seconds", "said"),
    [
        ("", 60.0, ""),
        ("raise SystemExit(3)", 60.0, "`others` ended with status 3"),
        ("import time; time.sleep(600)", 0.0, "`others` took too long"),
    ],
)
def test_a_synthesiser_that_fails_costs_its_own_speech_alone(
    code: str, seconds: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        _await_speech("others", child, time.monotonic() + seconds)
        assert child.returncode is not None
    out = capsys.readouterr().out
    assert said in out
    assert bool(out) == bool(said)


def test_other_synthesisers_speak_what_kokoro_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phrases([Phrase(f"row {k}", "chat", "us", "ɡˈO") for k in range(50)], tmp_path / "text.tsv.xz")
    given: list[list[str]] = []

    def speak_many(_others: object, phrases: Sequence[Phrase], *_: object, **__: object) -> float:
        given.append([phrase.label for phrase in phrases])
        return 0.0

    monkeypatch.setattr("training.stages.speak_many", speak_many)
    monkeypatch.setattr("training.stages.SPOKEN_ROWS", 20)
    command = ["others", "--text", str(tmp_path / "text.tsv.xz"), "--speech", str(tmp_path)]
    command += ["--held-out", "5", "--flite", "flite"]
    assert main(command) == 0
    assert main([*command, "--first-row", "40"]) == 0
    assert given == [[f"row {k}" for k in range(5, 25)], [f"row {k}" for k in range(40, 50)]]
    assert main([*command, "--first-row", "50"]) == 2
    assert "has no row 50" in capsys.readouterr().err


def test_where_the_text_goes_on(tmp_path: Path) -> None:
    assert _next_row(tmp_path, 700) == 700
    (tmp_path / "next-row-0").write_text("900\n")
    (tmp_path / "next-row-1").write_text("800\n")
    assert _next_row(tmp_path, 700) == 900


def test_a_session_without_steps_ends_with_its_minutes() -> None:
    rest = ("--speech", "x", "--checkpoint", "y", "--minutes", "3")
    plan = _plan(_parser().parse_args(["train", *rest]))
    pace = _pace(plan, Progress(num_steps=9, share=0.25), time.monotonic() + 1000)
    assert 0.25 <= pace.progress(9) < 0.75
    assert plan.settings.schedule.only_short(0.0) is False
    plan = _plan(_parser().parse_args(["train", *rest, "--steps", "12", "--from-nothing"]))
    assert _pace(plan, Progress(), time.monotonic()).progress(9) == 0.75
    assert plan.settings.schedule.only_short(0.0)


def test_a_session_after_a_whole_schedule_does_another() -> None:
    rest = ("--speech", "x", "--checkpoint", "y", "--minutes", "3")
    plan = _plan(_parser().parse_args(["train", *rest]))
    pace = _pace(plan, Progress(num_steps=9, share=1.0), time.monotonic() + 1000)
    assert 0.0 <= pace.progress(9) < 0.1


def test_missing_inputs_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ("--speech", str(tmp_path / "none"), "--checkpoint", str(tmp_path / "checkpoint"))
    assert main(["train", *folders, "--steps", "1"]) == 2
    assert "holds no shards" in capsys.readouterr().err
    assert main(["tokenizer", "--text", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "none" in capsys.readouterr().err


def test_tokenizer_ends_with_the_end_of_an_utterance(tmp_path: Path) -> None:
    import sentencepiece

    labels = [
        f"{first} {second}" for first in ("go", "come", "run") for second in ("back", "home", "away")
    ] * 30
    model = train_tokenizer(labels, num_pieces=17)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert processor.vocab_size() == 18
    assert processor.id_to_piece(17) == "<EOU>"
    assert processor.decode(processor.encode("come back home")) == "come back home"
    write_phrases([Phrase(text, "chat", "us", "ɡˈO") for text in labels], tmp_path / "text.tsv.xz")
