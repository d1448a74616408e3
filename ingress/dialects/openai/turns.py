"""`turn_detection` of a session: who ends an item, and the options of the turn detector for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from common.options import (
    DETECTOR_WINDOW_MS,
    MAX_SILENCE_MS,
    MAX_THRESHOLD,
    MIN_THRESHOLD,
    StreamOptions,
)
from ingress.dialects.openai.faults import invalid

# OpenAI's longest silence within an item, by eagerness.
_LONGEST_WAIT_MS: Final = {"low": 8000, "medium": 4000, "high": 2000, "auto": 4000}


@dataclass(frozen=True, slots=True)
class ServerVad:
    """Silence ends an item. threshold: probability of speech. Times in milliseconds."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500

    def shown(self) -> dict[str, Any]:
        """Return the object of `session.updated`."""
        return {
            "type": "server_vad",
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms,
        }

    def applied(self, options: StreamOptions) -> StreamOptions:
        """Return a stream's options with these turns."""
        return replace(
            options,
            turn_detection=True,
            auto_finalize=True,
            turn_signals="vad",
            vad_threshold=min(max(self.threshold, MIN_THRESHOLD), MAX_THRESHOLD),
            turn_silence_ms=self.silence_duration_ms,
            turn_max_pause_ms=self.silence_duration_ms,
        )


@dataclass(frozen=True, slots=True)
class SemanticVad:
    """The model's `<EOU>` and smart-turn end an item, where the worker has them, and else a long silence.

    eagerness: the length of that silence.
    """

    eagerness: str = "auto"
    prefix_padding_ms: int = 300

    def shown(self) -> dict[str, Any]:
        """Return the object of `session.updated`."""
        return {"type": "semantic_vad", "eagerness": self.eagerness}

    def applied(self, options: StreamOptions) -> StreamOptions:
        """Return a stream's options with these turns."""
        return replace(
            options,
            turn_detection=True,
            auto_finalize=True,
            turn_signals="vad+eou+smart_turn",
            turn_max_pause_ms=_LONGEST_WAIT_MS[self.eagerness],
        )


Turns = ServerVad | SemanticVad


def read_turns(value: object, param: str, before: Turns | None) -> Turns | None:
    """Parse the member `turn_detection`; None, JSON's null, leaves the ends of items to the client.

    before: the earlier value; missing fields keep its values. Raises EventFault.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid(param, "an object or null", value)
    kind = value.get("type")
    if kind is None and isinstance(before, SemanticVad):
        kind = "semantic_vad"
    if kind == "semantic_vad":
        eager = value.get("eagerness")
        if eager is None:
            eager = before.eagerness if isinstance(before, SemanticVad) else "auto"
        if not isinstance(eager, str) or eager not in _LONGEST_WAIT_MS:
            raise invalid(f"{param}.eagerness", "low, medium, high or auto", eager)
        return SemanticVad(eager)
    if kind not in (None, "server_vad"):
        raise invalid(f"{param}.type", "server_vad or semantic_vad", kind)
    base = before if isinstance(before, ServerVad) else ServerVad()
    return ServerVad(
        _threshold(value, param, base.threshold),
        _milliseconds(value, param, "prefix_padding_ms", 0, base.prefix_padding_ms),
        _milliseconds(value, param, "silence_duration_ms", DETECTOR_WINDOW_MS, base.silence_duration_ms),
    )


def _threshold(fields: Mapping[str, Any], param: str, default: float) -> float:
    value = fields.get("threshold")
    if value is None:
        return default
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise invalid(f"{param}.threshold", "a number from 0 to 1", value)
    return float(value)


def _milliseconds(fields: Mapping[str, Any], param: str, name: str, minimum: int, default: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not minimum <= value <= MAX_SILENCE_MS:
        raise invalid(f"{param}.{name}", f"a number from {minimum} to {MAX_SILENCE_MS}", value)
    return int(value)
