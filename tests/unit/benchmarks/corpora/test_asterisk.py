"""Asterisk's transcripts: what is spoken of them, and which recordings are clips and utterances."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corpora import clips as clips_module
from benchmarks.corpora import turn_corpus
from benchmarks.corpora.asterisk import RATE, recordings_of, spoken, texts_of
from benchmarks.corpora.clips import RECORDINGS, read_clips
from benchmarks.corpora.turn_streams import stream_sessions

# Lines of core-sounds-en.txt: all of its kinds of brackets, and the two keys that it prints as signs.
LIST = """\
; Core Asterisk Sounds in English

ascending-2tone: [ascending tones]
beep: [this is a simple beep tone]
confbridge-join: <beep ascending>
confbridge-leave: <beep decending>
dictate/both_help: press * to toggle pause, press # to enter a new dictation filename
dictate/enter_filename: Enter a numeric dictation filename followed by # or just # to exit
letters/at: at [@]
letters/dash: dash [-]
letters/space: space [ ]
priv-callee-options: Dial 4 to send this caller to a polite "don't call" menu.
priv-callpending: I have a caller waiting, who introduces themselves as:
silence/10: (10 seconds of silence)
silence/1: (1 second of silence)
spy-iax2: IAX (note: does not say "2")
tt-monkeys: [sound of monkeys screaming]
vm-intro: Please leave your message.  Press the pound key. (simple tone sound plays)
vm-leavemsg:  Press 5 to leave a message
"""

SPOKEN = {
    "ascending-2tone": "",
    "beep": "",
    "confbridge-join": "",
    "confbridge-leave": "",
    "dictate/both_help": "press star to toggle pause, press pound to enter a new dictation filename",
    "dictate/enter_filename": "Enter a numeric dictation filename followed by pound or just pound to exit",
    "letters/at": "at",
    "letters/dash": "dash",
    "letters/space": "space",
    "priv-callee-options": 'Dial 4 to send this caller to a polite "don\'t call" menu.',
    "priv-callpending": "I have a caller waiting, who introduces themselves as:",
    "silence/10": "",
    "silence/1": "",
    "spy-iax2": "IAX",
    "tt-monkeys": "",
    "vm-intro": "Please leave your message. Press the pound key.",
    "vm-leavemsg": "Press 5 to leave a message",
}
CLIPS = {
    "dictate/both_help",
    "dictate/enter_filename",
    "priv-callee-options",
    "priv-callpending",
    "vm-intro",
    "vm-leavemsg",
}


@pytest.fixture
def usr(tmp_path: Path) -> Path:
    """The packages' folder, with a recording for every line of the list, of 3 s by its size."""
    texts = tmp_path / "share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    texts.parent.mkdir(parents=True)
    texts.write_bytes(gzip.compress(LIST.encode()))
    for name in SPOKEN:
        path = tmp_path / "share/asterisk/sounds/en_US_f_Allison" / f"{name}.g722"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 24_000)
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """Replaces ffmpeg by three seconds of noise, and returns the names of the files that were read."""
    files: set[str] = set()

    def noise(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        files.add(path.stem)
        rng = np.random.default_rng(len(files))
        return (rng.standard_normal(3 * RATE) * 3_000).astype(np.int16)

    monkeypatch.setattr(clips_module, "read_g722", noise)
    monkeypatch.setattr(turn_corpus, "read_g722", noise)
    return lambda: files


def test_what_is_spoken_of_a_transcript(usr: Path) -> None:
    assert {name: spoken(text) for name, text in texts_of(usr).items()} == SPOKEN


def test_bundled_transcripts_are_spoken_whole() -> None:
    texts = [one["text"] for one in json.loads((RECORDINGS / "clips.json").read_text(encoding="utf-8"))]
    assert [spoken(text) for text in texts] == texts


def test_descriptions_amid_words_and_a_bracket_alone() -> None:
    assert spoken("Two (2 seconds) and (3 seconds) more") == "Two and more"
    assert spoken("An open ( alone") == "An open ( alone"


def test_clips_have_what_is_spoken_alone(usr: Path, read: Callable[[], set[str]]) -> None:
    found = read_clips(["asterisk"], usr, 100)
    assert {clip.name: clip.text for clip in found} == {name: SPOKEN[name] for name in CLIPS}
    assert read() == {Path(name).name for name in CLIPS}


def test_sounds_take_places_of_the_draw_and_are_left_out_after_it(
    usr: Path, read: Callable[[], set[str]]
) -> None:
    drawn = sorted([*CLIPS, "confbridge-join", "confbridge-leave", "silence/1", "silence/10", "spy-iax2"])
    random.Random(clips_module.SEED).shuffle(drawn)
    for count in (1, 4, 8, 11):
        found = [clip.name for clip in read_clips(["asterisk"], usr, count)]
        assert found == [name for name in drawn[:count] if name in CLIPS]


def test_no_sound_is_an_utterance_of_turn_detection(usr: Path, read: Callable[[], set[str]]) -> None:
    sessions = turn_corpus.build(["asterisk"], recordings=RECORDINGS, usr=usr, max_clips=100)
    speech = {Path(name).name for name, text in SPOKEN.items() if text}
    assert read() == speech
    assert sum(len(session.utterances) for session in sessions) == len(speech)


def test_no_sound_is_an_utterance_of_a_stream(
    usr: Path, read: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_librivox(sources: list[str], folder: Path, count: int) -> list[clips_module.Clip]:
        return read_clips(sources, folder, count) if sources == ["asterisk"] else []

    monkeypatch.setattr("benchmarks.corpora.turn_streams.read_clips", without_librivox)
    (session,) = stream_sessions(usr, max_asterisk=100)
    assert len(session.utterances) == len(CLIPS)


def test_a_package_that_is_missing_is_named(usr: Path, tmp_path: Path) -> None:
    assert list(recordings_of(usr))[:2] == ["ascending-2tone", "beep"]
    with pytest.raises(FileNotFoundError, match="apt-get install asterisk-core-sounds-en-g722"):
        recordings_of(tmp_path / "nowhere")
