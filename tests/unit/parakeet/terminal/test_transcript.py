"""Transcripts in each format, and the file that they go to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.messages import Result, Utterance, Word
from parakeet.terminal.transcript import NoOutput, Transcript, check_output, format_of, write_output


def _result(text: str, word: Word | None, acked: int, utterances: tuple[Utterance, ...] = ()) -> Result:
    return Result(
        text=text,
        token_ids=(),
        confidence_scores=(),
        is_final=False,
        last_state=None,
        turn_detection="running",
        seq=1,
        audio_ack_samples=acked,
        words=None if word is None else (word,),
        utterances=utterances,
    )


@pytest.fixture
def transcript() -> Transcript:
    made = Transcript(8000)
    made.add(_result("go", Word("go", 0.1, 0.5, 0.91), 8000))
    made.add(_result("go", None, 12_000, (Utterance(1, "go", 0.1, 0.9),)))
    made.add(_result("go on", Word("on", 1.0, 1.25, 0.5), 16_000))
    return made


def test_each_format(transcript: Transcript) -> None:
    assert transcript.written("txt") == "go on\n"
    assert transcript.written("txt", words=True) == "0.10\t0.50\t0.910\tgo\n1.00\t1.25\t0.500\ton\n"
    assert transcript.written("srt").count(" --> ") == 2
    assert transcript.written("vtt").startswith("WEBVTT\n\n00:00:00.100 --> 00:00:00.500\ngo\n")
    assert json.loads(transcript.written("json")) == {
        "text": "go on",
        "duration_s": 2.0,
        "words": [
            {"word": "go", "start_s": 0.1, "end_s": 0.5, "confidence": 0.91},
            {"word": "on", "start_s": 1.0, "end_s": 1.25, "confidence": 0.5},
        ],
        "utterances": [{"number": 1, "text": "go", "start_s": 0.1, "end_s": 0.9}],
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", "txt"), ("a", "txt"), ("a.SRT", "srt"), ("b/a.vtt", "vtt"), ("a.json", "json")],
)
def test_a_file_name_says_its_format(path: str, expected: str) -> None:
    assert format_of(path) == expected


@pytest.mark.parametrize("path", ["talk.xyz", "a.b/talk.doc", "talk.srt.gz"])
def test_a_file_name_whose_ending_says_no_format_is_a_wrong_command_line(path: str) -> None:
    with pytest.raises(SettingsError, match=r"it takes \.txt, \.srt, \.vtt, \.json, or any with --format"):
        format_of(path)


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "a.txt"):
        with pytest.raises(SettingsError, match=r"--output .* cannot be written"):
            check_output(str(path))
    check_output(str(tmp_path / "a.txt"))
    with pytest.raises(NoOutput, match="No space left on device"):
        write_output("/dev/full", "text")
