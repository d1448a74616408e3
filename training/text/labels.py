"""Conversion of written text to its spoken form, and to the label that the model learns.

A label has the letters a to z, apostrophes and spaces. A sentence whose reading is not certain, because of
digits, abbreviations, symbols or another language's letters, is dropped rather than guessed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final

from training.text.spoken_numbers import cardinal, ordinal, year

MAX_WORDS: Final = 26

_UNCERTAIN: Final = re.compile(r"[\d%$&#@*<>\[\]_=+~|/\\]|\.\.|[a-z]\.[a-zA-Z]|[:;]['-]?[)(DPp]")
_ABBREVIATIONS: Final = re.compile(
    r"\b(mr|mrs|ms|dr|st|jr|sr|vs|etc|e\.g|i\.e|no|prof|gen|col|lt|ft|inc|ltd|ave|blvd|approx|dept|est|fig|"
    r"govt|cm|mm|km|kg|lb|lbs|oz|esp|usu|cf|ca|al)\.",
    re.IGNORECASE,
)
_CAPITALS_THAT_ARE_WORDS: Final = frozenset(("OK", "I'M", "I'D", "I'LL", "I'VE"))
# Words whose spelling differs from their speech.
_MISSPELT: Final = frozenset("ur ya lol lmao omg btw idk tbh haha hahaha hmm xd kk thx pls plz".split())
# Swear words and slurs, as the first digits of their SHA-256, so that they are not written here.
_UNWANTED: Final = frozenset(
    (
        "08a841e9 0be9b885 0f28c496 120f6e5b 2f5f6ce5 30a989af 31506a84 3b1e0d7c 517ae3f7 566f532d 5a9d9dce "
        "5b3ae48b 6ac3c336 796e43a5 85fc17f7 89133bc0 8f5083e3 986c9900 98b52c4b 9915ba2d 9ae315a9 ad505b0b "
        "b690cdbe bb61ef40 be00f1af c2c3b68b c3de533e cc020323 d75a838d dd92623b e7b98c6a ee5a869b f9d0d9b1"
    ).split()
)
_CONTRACTIONS: Final = {
    **{
        word.replace("'", "").lower(): word
        for word in (
            "I'm don't can't won't didn't doesn't isn't that's what's he's she's you're they're I've "
            "wouldn't couldn't shouldn't wasn't haven't hasn't aren't weren't hadn't we've you've they've"
        ).split()
    },
    "idk": "I don't know", "btw": "by the way", "tbh": "to be honest", "omg": "oh my gosh",
}  # fmt: skip
_EMOTICONS: Final = re.compile(r"(?<!\w)[:;=]['-]?[)(DPpo3/\\]+(?!\w)|[:;=]['-]?[)(DP]+|<3|\^_*\^")
_LAUGHTER: Final = re.compile(
    r"\b(?:(?:ba?)?(?:ha){2,}h?|(?:he){2,}h?|heh|a*ha+h(?:a+h*)*|h?aha+h?|lo+l(?:ol)*|lmao|xd)\b[,.! ]*",
    re.IGNORECASE,
)
# A number that stands alone, not part of a time, a date, a price or a name.
_ALONE: Final = r"(?<![\w.:,/$%'-])(?:{})(?![\w:/%'-]|[.,]\d)"
_YEARS: Final = re.compile(_ALONE.format("19[0-9]{2}|20[0-2][0-9]"))
_NUMBERS: Final = re.compile(_ALONE.format("0|[1-9][0-9]{0,2}"))
_PERCENT: Final = re.compile(r"(?<![\w.:,/$%'-])([1-9]\d?)%")
_ORDINALS: Final = re.compile(r"(?<![\w.:,/$%'-])([1-9]\d?)(?:st|nd|rd|th)\b")
_DROPPED_ENDS: Final = re.compile(r"'(em|til|cause|bout)|[a-z]+(s|in)'")


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, by their closing marks."""
    yield from re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text).strip())


def repaired(sentence: str) -> str:
    """Repair a line of a chat: contractions, numbers as words, no laughter, no emoticons."""
    text = _EMOTICONS.sub(" ", sentence)
    text = _LAUGHTER.sub(" ", text)
    text = re.sub(r"\b([gG])o{3,}d\b", r"\1ood", text)
    text = re.sub(r"\b([cC])o{3,}l\b", r"\1ool", text)
    text = re.sub(r"\b(\w*?[a-zA-Z])([a-z])\2{2,}\b", r"\1\2", text)
    text = re.sub(r"\b([aA])lot\b", r"\1 lot", text)
    text = re.sub(r"([!?,])\1+", r"\1", text.strip())
    text = re.sub(r"\s*\.{2,}\s*$", ".", text)
    text = re.sub(r"\s*\.{2,}\s*", ", ", text)
    text = re.sub(r"^[,.!; ]+", "", text)
    text = re.sub(r"\b[A-Za-z]+\b(?!')", _contraction, text)
    text = _YEARS.sub(lambda match: year(int(match[0])), text)
    text = _ORDINALS.sub(lambda match: ordinal(int(match[1])), text)
    text = _PERCENT.sub(lambda match: f"{cardinal(int(match[1]))} percent", text)
    text = _NUMBERS.sub(lambda match: cardinal(int(match[0])), text)
    return text.replace("&", " and ").strip()


def label(text: str) -> str:
    """Return the letters and apostrophes of a text, lower case, words apart by one space."""
    text = text.replace("’", "'").replace("‘", "'")
    text = re.sub(r"[-–—/]", " ", text)
    text = re.sub(r"[^A-Za-z' ]", " ", text).lower()
    words = (word if _DROPPED_ENDS.fullmatch(word) else word.strip("'") for word in text.split())
    return " ".join(word for word in words if word)


def certain_label(sentence: str) -> str | None:
    """Return the label of a sentence that can be read in one way only, else None."""
    if _UNCERTAIN.search(sentence) or _ABBREVIATIONS.search(sentence):
        return None
    for word in re.findall(r"[A-Za-z']+", sentence):
        if len(word) > 1 and word.isupper() and word not in _CAPITALS_THAT_ARE_WORDS:
            return None
    text = label(sentence)
    words = text.split()
    if not 1 <= len(words) <= MAX_WORDS or len(text) < 2:
        return None
    return None if any(map(_is_unwanted, words)) else text


def _is_unwanted(word: str) -> bool:
    if len(word) == 1:
        return word not in "ai"
    return word in _MISSPELT or hashlib.sha256(word.encode()).hexdigest()[:8] in _UNWANTED


def _contraction(match: re.Match[str]) -> str:
    word = match[0]
    # "WONT" in capitals may be a name; "IM" hardly is.
    if word.isupper() and word != "IM":
        return word
    return _CONTRACTIONS.get(word.lower(), word)
