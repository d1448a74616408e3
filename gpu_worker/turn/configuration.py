"""Makes turn settings from flags and a stream's options, and smart-turn from flags."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypeVar

from common.errors import SettingsError
from common.options import StreamOptions
from common.settings import WorkerSettings
from gpu_worker.engine.interface import UnsupportedOption
from gpu_worker.turn.settings import TurnSettings, parse_signals
from gpu_worker.turn.smart_turn_pool import SmartTurnPool

_T = TypeVar("_T")


def turn_settings(settings: WorkerSettings) -> Callable[[StreamOptions], TurnSettings]:
    """Return the function from a stream's options to its settings: an option overrides the flag of its name.

    Contradictory silences are adjusted: a pause is no longer than the silence that ends an utterance, and
    `turn_max_pause_ms` is the longest of all.

    The function raises UnsupportedOption for a stream with `auto_finalize` and without turn detection.
    """

    def of_stream(options: StreamOptions) -> TurnSettings:
        silence_ms = _either(options.turn_silence_ms, settings.turn_silence_ms)
        pause_ms = min(_either(options.turn_pause_ms, settings.turn_pause_ms), silence_ms)
        defaults = TurnSettings()
        smart_silence_ms = max(pause_ms, defaults.smart_silence_ms)
        max_pause_ms = _either(options.turn_max_pause_ms, settings.turn_max_pause_ms)
        threshold = _either(options.vad_threshold, settings.vad_threshold)
        enabled = settings.turn_detection and _either(options.turn_detection, True)
        if options.auto_finalize and not enabled:
            raise UnsupportedOption("Option 'auto_finalize' needs turn detection, which is off here.")
        return TurnSettings(
            enabled=enabled,
            signals=parse_signals(_either(options.turn_signals, settings.turn_signals)),
            vad_threshold=threshold,
            # In proportion for low thresholds, so that some probability counts as silence.
            vad_margin=min(defaults.vad_margin, 0.3 * threshold),
            min_speech_ms=_either(options.turn_min_speech_ms, settings.turn_min_speech_ms),
            pause_ms=pause_ms,
            smart_silence_ms=smart_silence_ms,
            end_silence_ms=silence_ms,
            max_pause_ms=max(max_pause_ms, silence_ms, smart_silence_ms, defaults.eou_silence_ms),
            auto_finalize=options.auto_finalize,
        )

    return of_stream


def make_smart_turn(settings: WorkerSettings) -> SmartTurnPool | None:
    """Return smart-turn in its pool, or None when it is off.

    Raises SettingsError when it is on and onnxruntime is not installed.
    """
    if not (settings.smart_turn and settings.turn_detection):
        return None
    # Imported here: a worker without smart-turn needs no onnxruntime.
    from gpu_worker.turn.smart_turn import SmartTurn, SmartTurnUnavailableError

    try:
        model = SmartTurn()
    except SmartTurnUnavailableError as error:
        raise SettingsError(f"--smart-turn is on, but {error}.") from error
    return SmartTurnPool(
        model,
        threshold=settings.smart_turn_threshold,
        num_threads=settings.smart_turn_threads,
        timeout_s=settings.smart_turn_timeout_ms / 1_000,
    )


def verdict_counts(judge: SmartTurnPool | None) -> Callable[[], Mapping[str, int | float]]:
    """Return the counters of smart-turn, for the worker's hash; none without it."""
    if judge is None:
        return dict
    return lambda: {f"smart_turn_{name}": count for name, count in asdict(judge.stats).items()}


def nobody_waits(_wake: Callable[[], None]) -> None:
    """Ignore the callback that would wake an engine: all work is done in its own thread."""


def _either(first: _T | None, second: _T) -> _T:
    return second if first is None else first
