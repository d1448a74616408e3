"""Kinds of flag values: they parse texts, and describe the valid values in words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Protocol

from common.addresses import bare_host
from common.redis.address import parse_address

AUTO = "auto"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""owner/name of a model of the hub."""


class ValueKind(Protocol):
    """Turns the text of a flag or environment variable into a value and back."""

    def parse(self, text: str) -> object:
        """Return the value of a text; raise ValueError for a text that is not valid."""
        ...

    def format(self, value: object) -> str:
        """Return the text that `parse` turns into `value`."""
        ...

    @property
    def takes(self) -> str:
        """Return the valid values in words, for a sentence with 'takes'."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds; `auto` (None) where allowed."""

    minimum: int
    maximum: int
    auto: bool = False
    multiple_of: int = 1

    def parse(self, text: str) -> int | None:
        if self.auto and text.lower() == AUTO:
            return None
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError(text)
        value = int(text)
        if not self.minimum <= value <= self.maximum or value % self.multiple_of:
            raise ValueError(text)
        return value

    def format(self, value: object) -> str:
        return AUTO if value is None else str(value)

    @property
    def takes(self) -> str:
        kind = f"a multiple of {self.multiple_of}" if self.multiple_of > 1 else "a whole number"
        return f"{kind} from {self.minimum} to {self.maximum}" + (f", or '{AUTO}'" if self.auto else "")


@dataclass(frozen=True, slots=True)
class Real:
    """A finite decimal number within bounds."""

    minimum: float
    maximum: float

    def parse(self, text: str) -> float:
        value = float(text)
        # The comparison is false for a NaN, so it refuses that too.
        if not self.minimum <= value <= self.maximum:
            raise ValueError(text)
        return value

    def format(self, value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    @property
    def takes(self) -> str:
        return f"a number from {self.minimum:g} to {self.maximum:g}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words, in small letters or large ones."""

    words: tuple[str, ...]

    def parse(self, text: str) -> str:
        word = text.lower()
        if word not in self.words:
            raise ValueError(text)
        return word

    def format(self, value: object) -> str:
        return str(value)

    @property
    def takes(self) -> str:
        return " or ".join((", ".join(self.words[:-1]), self.words[-1]))


@dataclass(frozen=True, slots=True)
class OnOff:
    """A switch: on, off and their usual spellings; `auto` (None) where allowed."""

    auto: bool = False

    def parse(self, text: str) -> bool | None:
        word = text.lower()
        if self.auto and word == AUTO:
            return None
        if word in {"on", "true", "yes", "1"}:
            return True
        if word in {"off", "false", "no", "0"}:
            return False
        raise ValueError(text)

    def format(self, value: object) -> str:
        return AUTO if value is None else "on" if value else "off"

    @property
    def takes(self) -> str:
        return "on, off or auto" if self.auto else "on or off"


@dataclass(frozen=True, slots=True)
class Text:
    """Any text that matches a pattern as a whole; `what` says in words what that is.

    small_letters: whether it is written in small letters only, and large ones count as these.
    """

    what: str
    pattern: str = r"[^\x00]*"
    small_letters: bool = False

    def parse(self, text: str) -> str:
        if self.small_letters:
            text = text.lower()
        if not re.fullmatch(self.pattern, text, re.DOTALL):
            raise ValueError(text)
        return text

    def format(self, value: object) -> str:
        return str(value)

    @property
    def takes(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class Networks:
    """IP addresses and networks, separated by commas, or none."""

    def parse(self, text: str) -> tuple[IPv4Network | IPv6Network, ...]:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())

    def format(self, value: object) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    @property
    def takes(self) -> str:
        return "addresses or networks such as 10.0.0.0/8, separated by commas"


_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ORIGIN = re.compile(r"https?://[^\s/,@]+")


@dataclass(frozen=True, slots=True)
class Origins:
    """Origins of web pages (RFC 6454), in small letters and separated by commas, or none; `*` is any."""

    def parse(self, text: str) -> tuple[str, ...]:
        origins = tuple(part.strip().lower() for part in text.split(",") if part.strip())
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(origin)
        return origins

    def format(self, value: object) -> str:
        return ",".join(value) if isinstance(value, tuple) else str(value)

    @property
    def takes(self) -> str:
        return "origins such as https://speech.example, separated by commas, or *"


@dataclass(frozen=True, slots=True)
class HostNames:
    """Names of hosts, in small letters and separated by commas, or none; `*` is any."""

    def parse(self, text: str) -> tuple[str, ...]:
        names = tuple(part.strip().lower() for part in text.split(",") if part.strip())
        for name in names:
            if name != "*" and not _HOST_NAME.fullmatch(name):
                raise ValueError(name)
        return names

    def format(self, value: object) -> str:
        return ",".join(value) if isinstance(value, tuple) else str(value)

    @property
    def takes(self) -> str:
        return "names such as speech.example, without ports, separated by commas, or *"


@dataclass(frozen=True, slots=True)
class RedisUrls:
    """One or several Redis addresses, separated by commas; none stands for 'not given'.

    `parse_address` reads them, and raises SettingsError. The hosts of a Sentinel address hold commas of their
    own.
    """

    def parse(self, text: str) -> tuple[str, ...]:
        urls = tuple(part.strip() for part in re.split(r",(?=\s*[a-z+]+://)", text)) if text else ()
        for url in urls:
            parse_address(url)
        return urls

    def format(self, value: object) -> str:
        return ",".join(value) if isinstance(value, tuple) else str(value)

    @property
    def takes(self) -> str:
        return "redis://, rediss://, unix:// or redis+sentinel:// addresses separated by commas"


@dataclass(frozen=True, slots=True)
class Host:
    """A host name or an address; an IPv6 address may have brackets, as in a URL."""

    def parse(self, text: str) -> str:
        if not re.fullmatch(r"[^\s/\[\]]+|\[[0-9A-Fa-f:.]+(%\S+)?\]", text):
            raise ValueError(text)
        return bare_host(text)

    def format(self, value: object) -> str:
        return str(value)

    @property
    def takes(self) -> str:
        return "a host name or an address"


HOST = Host()
PORT = Whole(0, 65535)
DEVICE = Text("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:[0-9]{1,3})?", small_letters=True)
PROCESS_ID = Text(
    "1 to 64 letters, digits, dots, dashes or underscores, or nothing to make one up",
    r"[A-Za-z0-9._-]{0,64}",
)
