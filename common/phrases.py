"""Phrases that are likely in a stream: their validation and their encoding.

The worker's decoder prefers them (gpu_worker/boosting, docs/phrases.md). Only a worker can decide whether a
model's pieces can write a phrase.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

import orjson

from common.errors import ClientFault, EntryError, ErrorCode, SettingsError, shown

MAX_PHRASES: Final = 500
MAX_PHRASES_BYTES: Final = 16 * 1024
MAX_PHRASE_CHARS: Final = 200
MAX_BOOST: Final = 10.0
# Boost of a phrase that states none; docs/phrases.md has the reason.
DEFAULT_BOOST: Final = 0.4
# Bound of the operator's file, whose phrases hold for all streams.
MAX_FILE_PHRASES: Final = 20_000
MAX_FILE_BYTES: Final = 4 * 1024 * 1024

_OPTION: Final = "Option 'phrases'"
TAKES: Final = (
    f"a list of at most {MAX_PHRASES} strings or objects with 'text', 'boost' and 'optional', "
    f"{MAX_PHRASES_BYTES} bytes in all"
)


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase.

    text: words with one space between them.
    boost: how much the decoder prefers each of its pieces; None for the server's default, 0 for not at all.
    optional: whether it is left out, without an error, if the model cannot write it.
    """

    text: str
    boost: float | None = None
    optional: bool = False


def parse_phrases(value: object) -> tuple[Phrase, ...]:
    """Validate a client's phrases. Raises ClientFault `bad_option`, which names the phrase."""
    if not isinstance(value, (list, tuple)):
        raise _bad(f"takes {TAKES}, not {shown(value)}")
    if len(value) > MAX_PHRASES:
        raise _bad(f"takes at most {MAX_PHRASES} phrases, not {len(value)}")
    phrases = tuple(map(_parse_phrase, value))
    num_bytes = sum(len(phrase.text.encode()) for phrase in phrases)
    if num_bytes > MAX_PHRASES_BYTES:
        raise _bad(f"takes at most {MAX_PHRASES_BYTES} bytes of text, not {num_bytes}")
    return phrases


def _parse_phrase(value: object) -> Phrase:
    boost: object = None
    optional: object = False
    text = value
    if isinstance(value, dict):
        unknown = [name for name in value if name not in ("text", "boost", "optional")]
        if unknown:
            raise _bad(f"has phrases of 'text', 'boost' and 'optional'; {shown(unknown[0])} is none of them")
        text, boost, optional = value.get("text"), value.get("boost"), value.get("optional", False)
    if not isinstance(text, str):
        raise _bad(f"takes {TAKES}, not {shown(value)} in it")
    words = " ".join(text.split())
    # Half of a surrogate pair cannot be encoded; it is among the characters that cannot be printed.
    if not words or not words.isprintable():
        raise _bad(f"takes phrases that can be read, not {shown(text)}")
    if len(words) > MAX_PHRASE_CHARS:
        raise _bad(f"takes phrases of at most {MAX_PHRASE_CHARS} characters, not {shown(text)}")
    if not isinstance(optional, bool):
        raise _bad(f"takes true or false for 'optional' of {shown(words)}, not {shown(optional)}")
    if boost is None:
        return Phrase(words, optional=optional)
    if isinstance(boost, bool) or not isinstance(boost, (int, float)) or not isfinite(boost):
        raise _bad(f"takes a number as the boost of {shown(words)}, not {shown(boost)}")
    if not 0 <= boost <= MAX_BOOST:
        raise _bad(f"takes a boost of 0 to {MAX_BOOST:g} for {shown(words)}, not {shown(boost)}")
    return Phrase(words, float(boost), optional)


def _bad(what: str) -> ClientFault:
    return ClientFault(ErrorCode.BAD_OPTION, f"{_OPTION} {what}.")


def fault_about(name: str, fault: ClientFault) -> ClientFault:
    """Return a fault of `parse_phrases` whose sentence calls the list as another protocol does."""
    return ClientFault(fault.code, fault.message.replace(_OPTION, f"'{name}'"))


def encode_phrases(phrases: Sequence[Phrase]) -> bytes:
    """Encode validated phrases as JSON."""
    return orjson.dumps([_as_json(phrase) for phrase in phrases])


def _as_json(phrase: Phrase) -> object:
    if phrase.boost is None and not phrase.optional:
        return phrase.text
    fields: dict[str, object] = {"text": phrase.text}
    if phrase.boost is not None:
        fields["boost"] = phrase.boost
    if phrase.optional:
        fields["optional"] = True
    return fields


def decode_phrases(data: bytes) -> tuple[Phrase, ...]:
    """Decode the JSON of `encode_phrases`. Raises EntryError."""
    try:
        return parse_phrases(orjson.loads(data))
    except (orjson.JSONDecodeError, ClientFault) as error:
        raise EntryError(f"The phrases of a stream cannot be read: {error}") from error


def read_phrases_file(path: str) -> tuple[Phrase, ...]:
    """Return the phrases of a text file: one a line, a tab and its boost; '#' begins a comment line.

    An empty path has no phrases. Raises SettingsError, which names the line.
    """
    if not path:
        return ()
    try:
        data = Path(path).read_bytes()[: MAX_FILE_BYTES + 1]
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--phrases-file {path} cannot be read: {error}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"--phrases-file {path} is longer than {MAX_FILE_BYTES} bytes.")
    phrases: list[Phrase] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        text, tab, boost = line.partition("\t")
        try:
            value = {"text": text, "boost": float(boost)} if tab else text
            phrases.append(_parse_phrase(value))
        except ValueError:
            raise SettingsError(
                f"--phrases-file {path}, line {number}: the boost {shown(boost)} is not a number."
            ) from None
        except ClientFault as error:
            raise SettingsError(f"--phrases-file {path}, line {number}: {error}") from None
    if len(phrases) > MAX_FILE_PHRASES:
        raise SettingsError(
            f"--phrases-file {path} has {len(phrases)} phrases; {MAX_FILE_PHRASES} may be there."
        )
    return tuple(phrases)


def phrases_digest(phrases: Sequence[Phrase]) -> str:
    """Return the digest of a list: equal lists have the same one, whatever files they come from."""
    return hashlib.sha256(encode_phrases(phrases)).hexdigest()[:16] if phrases else "none"
