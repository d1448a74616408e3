"""Flags and options of a stream become turn settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.options import OPTIONS, TURN_SIGNALS, StreamOptions, parse_options
from common.settings import WorkerSettings, parse
from gpu_worker.engine.interface import UnsupportedOption
from gpu_worker.turn.configuration import make_smart_turn, turn_settings
from gpu_worker.turn.settings import Signal, TurnSettings, parse_signals


def worker(*flags: str) -> WorkerSettings:
    settings = parse("worker", list(flags), {})
    assert isinstance(settings, WorkerSettings)
    return settings


def test_the_flags_defaults_are_the_defaults_of_the_settings() -> None:
    made = turn_settings(worker())(StreamOptions())
    assert made == TurnSettings(signals=frozenset(Signal))


def test_a_stream_s_word_goes_before_the_flag() -> None:
    of_stream = turn_settings(
        worker("--turn-silence-ms", "700", "--vad-threshold", "0.6", "--turn-signals", "vad")
    )
    made = of_stream(parse_options({"turn_silence_ms": 400, "turn_signals": "eou+smart_turn"}))
    assert (made.end_silence_ms, made.vad_threshold) == (400, 0.6)
    assert made.signals == {Signal.EOU, Signal.SMART_TURN}


def test_detection_is_off_when_worker_or_stream_say_so() -> None:
    off = parse_options({"turn_detection": False})
    assert not turn_settings(worker())(off).enabled
    assert not turn_settings(worker("--turn-detection", "off"))(
        parse_options({"turn_detection": True})
    ).enabled


def test_every_spelling_of_signals_can_be_read() -> None:
    assert {parse_signals(text) for text in TURN_SIGNALS} == {
        frozenset(kept) for kept in [{a, b, c} for a in Signal for b in Signal for c in Signal]
    }


def _numbers(name: str) -> st.SearchStrategy[float | None]:
    (option,) = [option for option in OPTIONS if option.name == name]
    assert option.minimum is not None
    assert option.maximum is not None
    if option.kind is int:
        return st.none() | st.integers(int(option.minimum), int(option.maximum))
    return st.none() | st.floats(option.minimum, option.maximum)


@given(
    st.fixed_dictionaries(
        {
            name: _numbers(name)
            for name in (
                "vad_threshold",
                "turn_min_speech_ms",
                "turn_pause_ms",
                "turn_silence_ms",
                "turn_max_pause_ms",
            )
        }
    )
)
def test_whatever_the_table_allows_makes_settings(values: dict[str, float | None]) -> None:
    given_values = {name: value for name, value in values.items() if value is not None}
    made = turn_settings(worker())(parse_options(given_values))
    assert made.pause_ms <= made.end_silence_ms <= made.max_pause_ms
    if "turn_silence_ms" in given_values:
        assert made.end_silence_ms == given_values["turn_silence_ms"]


def test_smart_turn_is_not_loaded_unless_it_is_on() -> None:
    assert make_smart_turn(worker()) is None
    assert make_smart_turn(worker("--smart-turn", "--turn-detection", "off")) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"vad_threshold": 0.0},
        {"vad_margin": 0.5},
        {"min_speech_ms": 0},
        {"eou_hold_ms": -1},
        {"smart_silence_ms": 64},
        {"end_silence_ms": 64},
        {"max_pause_ms": 500},
        {"finalize_lag_ms": -1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        TurnSettings(**changes)  # type: ignore[arg-type]


def test_finals_of_utterances_need_turn_detection() -> None:
    wanted = StreamOptions(auto_finalize=True)
    assert turn_settings(worker())(wanted).auto_finalize
    with pytest.raises(UnsupportedOption, match="'auto_finalize' needs turn detection"):
        turn_settings(worker("--turn-detection", "off"))(wanted)
