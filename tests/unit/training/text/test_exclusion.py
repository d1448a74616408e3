"""No line of the text overlaps what tests and benchmarks are measured on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.corpora.turn_corpus import SENTENCES
from tests.oracle.models import RECORDINGS
from training.text.coverage import FREQUENT, OFTEN
from training.text.exclusion import Exclusion, read_transcripts
from training.text.labels import label
from training.text.sources import Places, collect

# A few of Asterisk's prompts and of PocketSphinx' sentences, which are not in the repository.
FAMOUS = (
    "please enter your password followed by the pound key",
    "press four for the previous message",
    "unless to be rather cold hearted and rather selfish is to be ill disposed",
)


def transcripts() -> list[str]:
    bundled = list(read_transcripts(RECORDINGS / "clips.json"))
    return [*bundled, *(sentence.replace("|", " ") for sentence in SENTENCES), *FAMOUS]


@pytest.mark.parametrize("transcript", transcripts())
def test_every_transcript_of_tests_is_excluded(transcript: str) -> None:
    shipped = Exclusion.shipped()
    text = label(transcript)
    assert shipped.overlaps(text)
    words = text.split()
    if len(words) > 6:
        assert shipped.overlaps(f"well {' '.join(words[1:7])} or so")


def test_other_sentences_are_not() -> None:
    shipped = Exclusion.shipped()
    for text in ("thank you", "the cat sat on the mat and looked out of the window", "please enter", ""):
        assert not shipped.overlaps(text)


def test_numbers_are_found_however_they_are_read() -> None:
    exclusion = Exclusion.of(["call 42 now if you can hear me"])
    for text in ("call forty two now if you can", "call four two now if you can"):
        assert exclusion.overlaps(text)


def test_short_transcripts_are_anybodys_phrase() -> None:
    exclusion = Exclusion.of(["thank you", "please try again later"])
    assert not exclusion.overlaps("thank you")
    assert exclusion.overlaps("please try again later")
    assert not exclusion.overlaps("please try again later today")


def test_lists_of_other_programs_are_read(tmp_path: Path) -> None:
    asterisk = tmp_path / "core-sounds-en.txt.gz"
    asterisk.write_bytes(gzip.compress(b"; a comment\n\nvm-goodbye: Goodbye then.\ndigits/1: one\n"))
    assert list(read_transcripts(asterisk)) == ["Goodbye then.", "one"]
    sphinx = tmp_path / "transcription"
    sphinx.write_text("<s> he was not a young man </s> (austen_64kb-0880)\n")
    assert list(read_transcripts(sphinx)) == ["he was not a young man"]


def make_places(folder: Path) -> Places:
    """Packages in small, with one sentence of a test in each."""
    places = Places(folder / "chitchat", folder / "wordnet", folder / "hibari", folder / "scowl")
    places.scowl.mkdir()
    for size in FREQUENT:
        (places.scowl / f"english-words.{size}").write_text(f"sea\nwaxing\nrare{'abc'[size % 3]}\n")
        (places.scowl / f"american-words.{size}").write_text("beach\n")
    places.chitchat.mkdir()
    messages = [
        [{"text": "im fine. Ask not what your country can do for you."}],
        [{"text": "I have 2 dogs and they love the beach!"}],
    ]
    (places.chitchat / "dataset.json").write_text(json.dumps({"1": {"messages": messages}}))
    places.wordnet.mkdir()
    example = "he was not an ill disposed young man"
    entry = f'00001 03 n 01 sea_lion 0 000 | a large seal of the west coast; "{example}"\n'
    for part in ("noun", "verb", "adj", "adv"):
        (places.wordnet / f"data.{part}").write_text(f"  1 licence\n{entry if part == 'noun' else ''}")
    (places.hibari / "assets").mkdir(parents=True)
    for name in ("gold", "silver"):
        words = {"sea": "", "lion": "", "beach": ""} if name == "gold" else {"zebra": ""}
        data = gzip.compress(json.dumps(words).encode())
        (places.hibari / "assets" / f"lexicon_us_{name}.json.gz").write_bytes(data)
    return places


def test_the_text_has_no_test_transcript(tmp_path: Path) -> None:
    shipped = Exclusion.shipped()
    lines, excluded = collect(make_places(tmp_path), 400, 3, shipped)
    assert excluded >= 2
    labels = [line.label for line in lines]
    assert not any(shipped.overlaps(text) for text in labels)
    assert "i have two dogs and they love the beach" in labels
    assert "i'm fine" in labels
    assert any(line.source == "word" and "sea lion" in line.label for line in lines)
    assert sum(line.source == "template" for line in lines) > 300


def test_frequent_words_come_alone_and_in_frames(tmp_path: Path) -> None:
    lines, _ = collect(make_places(tmp_path), 400, 3, Exclusion.shipped())
    labels = [line.label for line in lines if line.source == "word"]
    for word in ("sea", "waxing", "beach", "voicemail"):
        assert word in [line.label for line in lines]
        assert sum(word in line.label.split() for line in lines) >= OFTEN
    # Each ending has frames of its own.
    assert any(label.startswith("they are waxing and ") for label in labels)
