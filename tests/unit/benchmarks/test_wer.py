"""Streams of clips and counting of words, without a service."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corpora import clips as clips_module
from benchmarks.corpora.clips import GAP_S, LEAD_S, TAIL_S, Clip, normalised, read_clips, streams
from benchmarks.wer import Score, score, table

RATE = 16_000


def clip(name: str, seconds: float, text: str) -> Clip:
    return Clip(name, "asterisk", np.full(int(seconds * RATE), 1_000, np.int16), text)


CLIPS = [clip("a", 1.0, "Press 1"), clip("b", 0.5, "twenty-one"), clip("c", 0.5, "goodbye")]


def test_a_clip_a_stream() -> None:
    made = list(streams(CLIPS, 1))
    assert [text for _, text in made] == ["press  one ", "twenty one", "goodbye"]
    audio = made[0][0]
    assert len(audio) == int((LEAD_S + 1.0 + TAIL_S) * RATE)
    lead = int(LEAD_S * RATE)
    assert 0 < int(abs(audio[:lead]).max()) < 40
    assert int(audio[lead : lead + RATE].min()) > 900


def test_clips_together_stand_apart() -> None:
    ((audio, text),) = streams(CLIPS, 30)
    assert text.split() == ["press", "one", "twenty", "one", "goodbye"]
    assert len(audio) == int((LEAD_S + 2.0 + 2 * GAP_S + TAIL_S) * RATE)
    assert len(list(streams(CLIPS, 2))) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Dial 23, please.", "dial twenty three please"),
        ("50% off", "fifty percent off"),
        ("twenty-one", "twenty one"),
    ],
)
def test_numbers_count_as_words(text: str, words: str) -> None:
    assert normalised(text).replace(",", "").replace(".", "").split() == words.split()


def test_score_and_table() -> None:
    audio = list(streams(CLIPS, 1))
    one = score("service, 160 ms", "asterisk", 1, audio, ["press 1", "twenty two", ""])
    assert (one.errors, one.words, one.streams) == (2, 5, 3)
    assert one.percent == 40.0
    lines = table(
        [
            one,
            Score("whisper-tiny.en", "asterisk", 1, 1, 5, 3, 5.0),
            Score("service, 160 ms", "asterisk", 30, 1, 4, 1, 5.0),
        ]
    )
    assert lines[0] == "| system | asterisk | asterisk, 30 a stream |"
    assert lines[2:] == [
        "| service, 160 ms | 40.0 | 25.0 |",
        "| whisper-tiny.en | 20.0 |  |",
        "| words | 5 | 4 |",
    ]


def test_clips_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voice = tmp_path / "share/asterisk/sounds/en_US_f_Allison"
    (voice / "digits").mkdir(parents=True)
    for name in ("hello-world", "vm-bye", "beep", "digits/1"):
        (voice / f"{name}.g722").write_bytes(b"x" * 100)
    texts = tmp_path / "share/doc/asterisk-core-sounds-en"
    texts.mkdir(parents=True)
    lines = [
        "; comment", "", "hello-world: Hello world.", "vm-bye: Good bye then.", "beep: [a beep tone]",
        "digits/1: one", "no-file: Not there.",
    ]  # fmt: skip
    (texts / "core-sounds-en.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setattr(clips_module, "read_g722", lambda path: np.ones(RATE, np.int16))
    found = read_clips(["asterisk"], tmp_path, 10)
    assert {(one.name, one.text) for one in found} == {
        ("hello-world", "Hello world."),
        ("vm-bye", "Good bye then."),
    }
    assert len(read_clips(["asterisk"], tmp_path, 1)) == 1
    with pytest.raises(FileNotFoundError, match="transcription"):
        read_clips(["librivox"], tmp_path, 1)


def test_bundled_recordings_have_their_texts() -> None:
    found = read_clips(["recordings"], Path("/nowhere"), 0)
    assert len(found) == 4
    assert all(len(one.samples) > RATE and one.text for one in found)


def test_other_recognisers_are_run_by_their_own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.wer import by_others

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == "/other/python"
        assert command[2] == "pocketsphinx"
        with np.load(command[3]) as audio:
            assert sorted(audio.files) == ["00000", "00001", "00002"]
        return subprocess.CompletedProcess(command, 0, 'noise\n["a", "b", "c"]\n', "")

    monkeypatch.setattr(subprocess, "run", run)
    assert by_others("/other/python", "pocketsphinx", list(streams(CLIPS, 1))) == ["a", "b", "c"]
