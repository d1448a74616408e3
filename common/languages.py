"""The languages that the served model can recognise, and how a client's choice is matched with them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from common.errors import ClientFault, ErrorCode, shown

ANY: Final = "multi"
"""What a client names (Deepgram's word) that leaves the language to the model."""


@dataclass(frozen=True, slots=True)
class Languages:
    """The languages of a model.

    names: the model's own names, such as `en` or `de-DE`, the preferred ones first; empty where they are not
        known.
    prompted: whether a stream chooses one of them by its option `language`.
    letters: the characters that its pieces have, but the space; empty where they are not known, or where it
        writes any.
    """

    names: tuple[str, ...] = ()
    prompted: bool = False
    letters: str = ""

    def can_write(self, text: str) -> bool:
        """Return whether the model can write a phrase, in one of the cases in which it is looked for."""
        if not self.letters:
            return True
        plain = unicodedata.normalize("NFKC", text)
        cases = (plain, plain.lower(), plain.upper())
        return any(all(mark in self.letters or mark.isspace() for mark in one) for one in cases)

    def option_for(self, tag: str | None) -> str | None:
        """Return the option `language` of a stream whose client names a language by a tag of BCP 47.

        None leaves it to the model. A tag matches the name that is the same, else the first one of the same
        language: `de` and `de-AT` match `de-DE`. Where the names are not known every tag is accepted.

        Raises ClientFault `bad_option` for a language that the model does not have.
        """
        if not tag or tag.lower() == ANY or not self.names:
            return None
        name = self._matching(_plain(tag))
        if name is None:
            raise ClientFault(
                ErrorCode.BAD_OPTION,
                f"The model does not have the language {shown(tag)}; it has {', '.join(self.names)}.",
            )
        return name if self.prompted else None

    def option_for_any(self, tags: Iterable[str]) -> str | None:
        """Return the option for several languages that may be spoken: of one that all of them match, or None.

        Raises ClientFault `bad_option` as `option_for` does.
        """
        options = {self.option_for(tag) for tag in tags}
        return options.pop() if len(options) == 1 else None

    def _matching(self, tag: str) -> str | None:
        plain = {_plain(name): name for name in reversed(self.names)}
        if tag in plain:
            return plain[tag]
        language = tag.partition("-")[0]
        return next((name for name in self.names if _plain(name).partition("-")[0] == language), None)


UNKNOWN: Final = Languages()
ENGLISH: Final = Languages(("en",))


def _plain(tag: str) -> str:
    return tag.lower().replace("_", "-")
