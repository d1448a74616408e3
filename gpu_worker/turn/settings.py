"""The settings of turn detection: thresholds and times of one stream's endpointing."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

SAMPLES_PER_MS: Final = 16


class Signal(StrEnum):
    """A signal that may end an utterance. The start of one is always the speech detector's."""

    VAD = "vad"
    EOU = "eou"
    SMART_TURN = "smart_turn"

    # Enum's own hash is a Python function, and members are looked up for every window.
    __hash__ = str.__hash__


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """Settings of the endpointing of one stream. Times are of audio, in milliseconds.

    enabled: whether turn detection runs at all; False computes no window and keeps no state.
    signals: the signals that may end an utterance before `max_pause_ms`.
    vad_threshold: a window whose probability reaches it is speech.
    vad_margin: a window is silence when its probability is below the threshold by more than this;
        in between it counts as the window before it did.
    min_speech_ms: speech without a gap that opens an utterance.
    min_resume_ms: speech without a gap that continues an utterance after a pause.
    pause_ms: silence that is reported as a pause, and about which smart-turn is asked.
    eou_silence_ms: silence that ends an utterance together with an `<EOU>` token.
    eou_hold_ms: an `<EOU>` token counts when no speech later than this came after it.
    smart_silence_ms: silence at which smart-turn's verdict is read; "complete" ends the utterance there.
    end_silence_ms: silence that ends an utterance without other evidence (signal `vad`).
    max_pause_ms: silence that ends an utterance whatever the signals say.
    auto_finalize: whether each utterance gets a final of its own.
    finalize_lag_ms: audio after the end of the speech that is decoded before that final, because the
        model emits a word later than it was spoken.
    """

    enabled: bool = True
    signals: frozenset[Signal] = frozenset({Signal.VAD, Signal.EOU})
    vad_threshold: float = 0.5
    vad_margin: float = 0.15
    min_speech_ms: int = 96
    min_resume_ms: int = 64
    pause_ms: int = 96
    eou_silence_ms: int = 96
    eou_hold_ms: int = 480
    smart_silence_ms: int = 256
    end_silence_ms: int = 1_000
    max_pause_ms: int = 1_500
    auto_finalize: bool = False
    finalize_lag_ms: int = 480

    def __post_init__(self) -> None:
        if not 0.0 < self.vad_threshold < 1.0:
            raise ValueError(f"vad_threshold must lie between 0 and 1, got {self.vad_threshold}")
        if not 0.0 <= self.vad_margin < self.vad_threshold:
            raise ValueError(f"vad_margin must lie in [0, vad_threshold), got {self.vad_margin}")
        for name in ("min_speech_ms", "min_resume_ms", "pause_ms", "eou_silence_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("eou_hold_ms", "finalize_lag_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.smart_silence_ms < self.pause_ms:
            raise ValueError(
                f"smart_silence_ms ({self.smart_silence_ms}) must be at least pause_ms ({self.pause_ms})"
            )
        if self.end_silence_ms < self.pause_ms:
            raise ValueError(
                f"end_silence_ms ({self.end_silence_ms}) must be at least pause_ms ({self.pause_ms})"
            )
        if self.max_pause_ms < max(self.end_silence_ms, self.smart_silence_ms, self.eou_silence_ms):
            raise ValueError(f"max_pause_ms ({self.max_pause_ms}) must be the longest of the silences")

    def limited(self, *, has_eou: bool, has_smart_turn: bool) -> "TurnSettings":
        """Return the settings without signals that this server lacks; silence decides in their place."""
        missing = set()
        if not has_eou:
            missing.add(Signal.EOU)
        if not has_smart_turn:
            missing.add(Signal.SMART_TURN)
        if not self.signals & missing:
            return self
        return replace(self, signals=self.signals - missing | {Signal.VAD})


def parse_signals(text: str) -> frozenset[Signal]:
    """Read `vad+eou` and the like.

    Raises:
        ValueError: the text names no signal or one that does not exist.
    """
    return frozenset(Signal(name) for name in text.split("+"))
