"""The sources of the text, all under licences that permit shipping the weights.

- `chitchat-dataset` (PyPI, MIT): messages of people who get to know each other.
- WordNet 3.0 (Debian's wordnet-base, WordNet licence): examples, glosses, and words in frames.
- templates of this package.
- frequent words of SCOWL (Debian's scowl, free licence) and of the templates: alone, and in frames.
- words of hibari-tts' lexicon (PyPI, Apache-2.0) that no other source has.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from training.text.coverage import FREQUENT, OFTEN, frequent_words
from training.text.exclusion import Exclusion
from training.text.labels import certain_label, label, repaired, sentences
from training.text.templates import Templates

_PARTS_OF_SPEECH: Final = ("noun", "verb", "adj", "adv")
# Most glosses are definitions that are never spoken; a fifth of them is left out.
_GLOSSES_DROPPED: Final = 0.2
_MIN_GLOSS_WORDS: Final = 4
# Templates draw the same short phrase often; more repeats than this are useless.
_MAX_REPEATS: Final = 40
# A word that has been seen less often gets sentences of its own.
_RARE: Final = 3
# A frequent word gets frames until it has been seen so often: some of its lines have no known pronunciation.
_ENOUGH: Final = OFTEN + 4
_FRAMES: Final = {
    "noun": "the {}|a {}|what is a {}?|tell me about the {}.|how do you spell {}?|search for {}.|"
    "we talked about the {}.|{} and {}.|the {} of the {}.|is that a {} or a {}?|some {}.",
    "name": "{}.|tell me about {}.|have you heard of {}?|i read about {}.|{} and {}.|what about {}?",
    "verb": "to {}.|do not {}.|they will {} it.|can you {} that?|we had to {} and {}.|it is hard to {}.|"
    "you should {} or {}.",
    "adj": "it is {}.|that was very {}.|are they {}?|quite {}.|{} and {}.|not {} but {}.",
    "adv": "{}.|it happened {}.|she said it {}.|they did it {} and {}.|he answered {}.",
    "word": "{}.|{}, {}.|the word is {}.|{} and {}.|how do you spell {}?|i said {}, not {}.",
    "frequent": "{}, {}.|{} and {}.|{}, {}, {}.|{} or {}?|{} {}.|the {} {}.|{} the {}.|i said {}, not {}.|"
    "{}, {} and {}.|to {} the {}.|no {}, no {}.|{}? {}.|{} {} {}.|write {}, then {}.|about {} and {}.",
    "s": "{} and {}.|the {} and {}.|these {}, those {}.|it {} and {}.|{}, {}, {}.|all {}.|she {} the {}.",
    "ed": "{} and {}.|it was {} and {}.|they {} and {} it.|{}, {}, {}.|not {} but {}.|we {} the {}.",
    "ing": "{} and {}.|they are {} and {}.|{}, {}, {}.|without {} or {}.|keep {}.|{} the {}.|"
    "after {} it, {}.",
    "ly": "{} and {}.|it happened {}.|{}, {}, {}.|she said it {}, not {}.|very {}.|they {} {} did it.",
}
_ENDINGS: Final = ("ing", "ed", "ly", "s")


@dataclass(frozen=True, slots=True)
class Line:
    """A sentence to be spoken: its source, its written form, and its label."""

    source: str
    written: str
    label: str


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of the packages, unpacked or installed.

    `chitchat` holds dataset.json, `wordnet` the files data.noun and so on, `hibari` the folder assets,
    `scowl` the files english-words.10 and so on.
    """

    chitchat: Path
    wordnet: Path
    hibari: Path
    scowl: Path


def collect(places: Places, num_templates: int, seed: int, exclusion: Exclusion) -> tuple[list[Line], int]:
    """Return all lines in random order, and how many were dropped for overlapping a test transcript."""
    random_ = random.Random(seed)
    kept = _Kept(exclusion)
    for source, sentence in _written(places):
        if source == "gloss" and random_.random() < _GLOSSES_DROPPED:
            continue
        kept.add(source, sentence, once=True)
    _add_templates(kept, num_templates, random_)
    for source, sentence in _rare_words(places, kept.counts, random_):
        kept.add(source, sentence, once=True)
    frequent = [word for word, times in wanted_words(places).items() if times >= FREQUENT[20]]
    for sentence in _frequent_words(frequent, kept.counts, random_):
        kept.add("word", sentence, once=True)
    random_.shuffle(kept.lines)
    return kept.lines, kept.num_excluded


def wanted_words(places: Places) -> dict[str, int]:
    """Return how often each frequent word, and each word of the templates' lists, should come."""
    lists = Templates(0).words.values()
    own = {word for entries in lists for entry in entries for word in label(entry).split()}
    return {**frequent_words(places.scowl), **dict.fromkeys(sorted(own), OFTEN)}


class _Kept:
    """The lines so far, and the count of each word in them."""

    def __init__(self, exclusion: Exclusion) -> None:
        self._exclusion = exclusion
        self._seen: Counter[str] = Counter()
        self.lines: list[Line] = []
        self.counts: Counter[str] = Counter()
        self.num_excluded = 0

    def add(self, source: str, sentence: str, *, once: bool) -> None:
        text = certain_label(sentence) if source != "template" else label(sentence)
        if not text or self._seen[text] >= (1 if once else _MAX_REPEATS):
            return
        num_words = len(text.split())
        if source in ("example", "gloss") and num_words < (_MIN_GLOSS_WORDS if source == "gloss" else 2):
            return
        if self._exclusion.overlaps(text):
            self.num_excluded += 1
            return
        self._seen[text] += 1
        self.counts.update(text.split())
        self.lines.append(Line(source, sentence, text))


def _written(places: Places) -> Iterator[tuple[str, str]]:
    for sentence in _chats(places.chitchat):
        yield "chat", sentence
        fixed = repaired(sentence)
        if fixed != sentence:
            yield "chat", fixed
    for _part, line in _wordnet_lines(places.wordnet):
        gloss = line.partition("|")[2]
        for example in re.findall(r'"([^"]+)"', gloss):
            yield "example", example.strip()
        for definition in re.sub(r'"[^"]*"', "", gloss).strip(" ;\n").split(";"):
            yield "gloss", definition.strip()


def _chats(folder: Path) -> Iterator[str]:
    conversations = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    for conversation in conversations.values():
        for turn in conversation["messages"]:
            for message in turn if isinstance(turn, list) else [turn]:
                text = message.get("text", "") if isinstance(message, dict) else str(message)
                yield from sentences(text)


def _wordnet_lines(folder: Path) -> Iterator[tuple[str, str]]:
    for part in _PARTS_OF_SPEECH:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                yield part, line


def _add_templates(kept: _Kept, count: int, random_: random.Random) -> None:
    templates = Templates(random_.getrandbits(32))
    for _ in range(count):
        sentence = templates.sentence()
        if not _has_letters(sentence):
            sentence = _capital(sentence, random_) + random_.choice([".", ".", "", "?", "!", "."])
        kept.add("template", sentence, once=False)


def _has_letters(sentence: str) -> bool:
    """Whether a sentence spells a word: its capitals are spoken one by one."""
    return re.search(r"\b[A-Z]\b", sentence) is not None


def _capital(sentence: str, random_: random.Random) -> str:
    return sentence[:1].upper() + sentence[1:] if random_.random() < 0.5 else sentence


def _rare_words(places: Places, counts: Counter[str], random_: random.Random) -> Iterator[tuple[str, str]]:
    """Yield frames with WordNet's words, then with the lexicon's, for words that are rare so far."""
    known, common = _lexicon(places.hibari)
    groups: dict[str, list[str]] = {}
    for part, word in sorted(_lemmas(places.wordnet)):
        words = label(word).split()
        if words and all(one in known or re.sub(r"'s$|s$", "", one) in known for one in words):
            groups.setdefault("name" if part == "noun" and word[0].isupper() else part, []).append(word)
    groups["word"] = sorted(word for word in common if not counts[word])
    for kind, words in groups.items():
        random_.shuffle(words)
        for word in words:
            if any(counts[one] < _RARE for one in label(word).split()):
                frame = random_.choice(_FRAMES[kind].split("|"))
                yield "word", _capital(_article(frame.format(word, random_.choice(words))), random_)


def _frequent_words(words: Sequence[str], counts: Counter[str], random_: random.Random) -> Iterator[str]:
    """Yield each word alone, then frames with those that are seen less often than they should."""
    for word in words:
        yield _capital(f"{word}.", random_)
    for _ in range(_ENOUGH):
        rare = [word for word in words if counts[word] < _ENOUGH]
        groups: dict[str, list[str]] = {}
        for word in rare:
            groups.setdefault(_kind(word), []).append(word)
        random_.shuffle(rare)
        for word in rare:
            # Another word's frame may have had this one.
            if counts[word] < _ENOUGH:
                frame = random_.choice(_FRAMES[_kind(word)].split("|"))
                others = random_.choices(groups[_kind(word)], k=2)
                yield _capital(_article(frame.format(word, *others)), random_)


def _kind(word: str) -> str:
    """Return the kind of frames that fit a frequent word, by its ending."""
    return next(filter(word.endswith, _ENDINGS), "frequent")


def _article(sentence: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)


def _lemmas(folder: Path) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for part, line in _wordnet_lines(folder):
        fields = line.partition("|")[0].split()
        for index in range(int(fields[3], 16)):
            word = re.sub(r"\(\w+\)$", "", fields[4 + 2 * index]).replace("_", " ")
            if re.fullmatch(r"[A-Za-z][A-Za-z' -]*", word) and len(word) > 2 and len(word.split()) <= 3:
                found.add((part, word))
    return found


def _lexicon(folder: Path) -> tuple[set[str], set[str]]:
    """Return the words with a known pronunciation, and the plain ones among the most trusted."""

    def words(name: str) -> Iterable[str]:
        with gzip.open(folder / "assets" / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            return list(json.load(file))

    gold = words("lexicon_us_gold")
    known = {word.lower() for word in (*gold, *words("lexicon_us_silver"))}
    common = {word for word in gold if re.fullmatch(r"[a-z][a-z']*[a-z]", word) and len(word) > 2}
    return known, common
