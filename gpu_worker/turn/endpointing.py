"""Endpointing: decides where an utterance starts, pauses and ends, with a state machine per stream.

It combines the speech detector's probabilities, the model's `<EOU>` tokens and smart-turn's verdicts into
the two fields of a result: `turn_detection` and `last_state`. It does no I/O and reads no clock: time is the
position in the audio, in 16 kHz samples. Its output is a function of its input, in whatever order chunks and
verdicts arrive: a verdict is read at a position that the audio defines, and a chunk whose outcome needs a
verdict that is not there yet waits for it.

The engine does not use this class directly: `gpu_worker.turn.stage.TurnStage` holds one `Endpointer` a
stream. The calls here are::

    endpointer = Endpointer(settings)
    outcomes = endpointer.read(TurnChunk(end_sample, probs, eou_samples))  # every chunk, in order
    for question in endpointer.take_questions(): ...       # ask smart-turn about the audio so far
    while outcomes is None:                                # the chunk waits for a verdict
        endpointer.answer(question.number, Verdict.COMPLETE)
        outcomes = endpointer.resume()

A chunk has an outcome for each start and end of an utterance in it, in order, and one where it has neither.
The chunk with `final` ends an open utterance.
"""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final, Self

from gpu_worker.turn.outcome import (
    WINDOW_SAMPLES,
    Cause,
    TurnChunk,
    TurnOutcome,
    TurnQuestion,
    Verdict,
)
from gpu_worker.turn.settings import SAMPLES_PER_MS, Signal, TurnSettings
from gpu_worker.turn.transitions import (
    REPORTED,
    TABLE,
    Action,
    Event,
    IllegalTransitionError,
    State,
)

# A name of the module is looked up faster than a member of an enumeration.
_IDLE, _SPEAKING, _PAUSED = State.IDLE, State.SPEAKING, State.PAUSED


@dataclass(frozen=True, slots=True)
class _TurnEvent:
    ends: bool
    sample: int
    speech_start_sample: int
    speech_end_sample: int | None = None
    cause: Cause | None = None


@dataclass(slots=True)
class _Tape:
    """The chunk being read: the rest of its marks, in order of position."""

    end_sample: int
    final: bool
    marks: deque[tuple[int, float | None]]
    """(position, probability of the window that ends there, or None for an `<EOU>`)."""


class Endpointer:
    """The turn state of one stream. One thread owns it.

    Args:
        settings: thresholds and times; they stay for the stream's life.
    """

    __slots__ = (
        "_awaiting",
        "_eou_sample",
        "_events",
        "_is_speech",
        "_never_waits",
        "_num_questions",
        "_question_sample",
        "_questions",
        "_read_sample",
        "_silences",
        "_speech_end_sample",
        "_speech_run_samples",
        "_speech_start_sample",
        "_state",
        "_tape",
        "_verdict",
        "settings",
    )

    def __init__(self, settings: TurnSettings) -> None:
        self.settings = settings
        self._state = State.IDLE
        self._tape: _Tape | None = None
        self._events: list[_TurnEvent] = []
        self._questions: deque[TurnQuestion] = deque()
        self._read_sample = 0
        self._is_speech: bool | None = None
        self._speech_run_samples = 0
        self._speech_start_sample = 0
        self._speech_end_sample = 0
        self._eou_sample: int | None = None
        self._num_questions = 0
        self._question_sample: int | None = None
        self._verdict: Verdict | None = None
        self._awaiting = False
        self._silences = _silences(settings)
        self._never_waits = Signal.SMART_TURN not in settings.signals

    @property
    def state(self) -> State:
        """The state after all chunks that were read."""
        return self._state

    @property
    def read_sample(self) -> int:
        """End of the audio that was read, a waiting chunk included."""
        return self._read_sample

    @property
    def has_heard(self) -> bool:
        """Whether a window was read: until then results have no information about speech."""
        return self._is_speech is not None

    @property
    def steady_outcome(self) -> TurnOutcome:
        """Return the outcome of a chunk without any event in this state."""
        (outcome,) = _STEADY[self._state] if self.has_heard else _UNHEARD
        return outcome

    @property
    def silent_until(self) -> int | None:
        """First position at which more silence may end the utterance, in a pause; None outside of pauses."""
        if self._state is not State.PAUSED:
            return None
        return self._silent_until(self._read_sample // WINDOW_SAMPLES * WINDOW_SAMPLES)

    def _silent_until(self, last_window: int) -> int:
        """Return where more silence may change something, in a pause after the window up to `last_window`.

        Every rule that ends an utterance applies from some length of silence on.
        """
        first = self._speech_end_sample
        for silence_samples in self._silences:
            if first + silence_samples > last_window:
                return first + silence_samples
        return last_window

    def skip(self, num_windows: int, end_sample: int) -> None:
        """Take chunks of nothing but speech in speech, or of nothing but silence outside of it, as one.

        Args:
            num_windows: number of windows that they complete.
            end_sample: end of the last of them.
        """
        if num_windows and self._state is State.SPEAKING:
            self._speech_run_samples += num_windows * WINDOW_SAMPLES
            self._speech_end_sample = end_sample // WINDOW_SAMPLES * WINDOW_SAMPLES
        elif num_windows:
            self._is_speech = False
            self._speech_run_samples = 0
        self._read_sample = end_sample

    @property
    def awaited_question(self) -> int | None:
        """Number of the question for whose answer the chunk being read waits; None if it does not wait."""
        return self._num_questions if self._awaiting else None

    @property
    def onset_sample(self) -> int | None:
        """Start of speech that is still too short to start an utterance; None without any."""
        if self._state is not State.STARTING:
            return None
        return self._read_sample // WINDOW_SAMPLES * WINDOW_SAMPLES - self._speech_run_samples

    def read(self, chunk: TurnChunk) -> Sequence[TurnOutcome] | None:
        """Read the next chunk; return None if it waits for a verdict: `resume` then goes on with it.

        Raises:
            ValueError: the number of probabilities is not that of the windows which the chunk completes,
                chunks are out of order, or the last one still waits.
        """
        start_sample = self._read_sample
        if chunk.end_sample < start_sample or self._state is State.CLOSED or self._tape is not None:
            raise ValueError("chunks come in order, each after those of the last, none after the final")
        num_windows = chunk.end_sample // WINDOW_SAMPLES - start_sample // WINDOW_SAMPLES
        if len(chunk.probs) != num_windows:
            raise ValueError(f"the chunk completes {num_windows} windows, got {len(chunk.probs)}")
        if self._never_waits and not chunk.eou_samples:
            self._read_sample = chunk.end_sample
            self._read_windows(start_sample // WINDOW_SAMPLES * WINDOW_SAMPLES, chunk.probs)
            if chunk.final:
                self._apply(Event.FINISHED, chunk.end_sample, Cause.FINISHED)
            return self._outcomes()
        first = start_sample // WINDOW_SAMPLES + 1
        marks: list[tuple[int, float | None]] = [
            ((first + index) * WINDOW_SAMPLES, prob) for index, prob in enumerate(chunk.probs)
        ]
        if chunk.eou_samples:
            # A token is known when its chunk is decoded: a position outside the chunk is moved to its border.
            marks += [
                (min(max(sample, start_sample), chunk.end_sample), None) for sample in chunk.eou_samples
            ]
            marks.sort(key=lambda mark: (mark[0], mark[1] is None))
        self._tape = _Tape(chunk.end_sample, chunk.final, deque(marks))
        self._read_sample = chunk.end_sample
        return self.resume()

    def _read_windows(self, last_window: int, probs: Sequence[float]) -> None:
        """Read the windows after `last_window`.

        Windows that do not change the state are skipped together, with the same result in less time.
        """
        settings, state, until = self.settings, self._state, 0
        speech_level, silence_level = settings.vad_threshold, settings.vad_threshold - settings.vad_margin
        sample = last_window
        for prob in probs:
            sample += WINDOW_SAMPLES
            if prob >= speech_level:
                if state is _SPEAKING:
                    self._speech_run_samples += WINDOW_SAMPLES
                    self._speech_end_sample = sample
                    continue
            elif prob < silence_level:
                if state is _PAUSED and not until:
                    until = self._silent_until(sample - WINDOW_SAMPLES)
                if state is _IDLE or (state is _PAUSED and sample < until):
                    self._is_speech = False
                    self._speech_run_samples = 0
                    continue
            self._read_window(sample, prob)
            state, until = self._state, 0

    def resume(self) -> Sequence[TurnOutcome] | None:
        """Go on with the waiting chunk; return None if it still waits.

        Raises:
            ValueError: no chunk waits.
        """
        tape = self._tape
        if tape is None:
            raise ValueError("no chunk waits for a verdict")
        while tape.marks:
            sample, prob = tape.marks[0]
            read = self._read_eou(sample) if prob is None else self._read_window(sample, prob)
            if not read:
                return None
            tape.marks.popleft()
        if tape.final:
            self._apply(Event.FINISHED, tape.end_sample, Cause.FINISHED)
        self._tape = None
        return self._outcomes()

    def take_questions(self) -> Sequence[TurnQuestion]:
        """Return the questions since the last call. Only the answer to the last one can still matter."""
        if not self._questions:
            return ()
        questions = tuple(self._questions)
        self._questions.clear()
        return questions

    def answer(self, number: int, verdict: Verdict) -> None:
        """Take smart-turn's verdict; an answer to an obsolete question is ignored."""
        if number == self._num_questions and self._question_sample is not None:
            self._verdict = verdict

    def _read_eou(self, sample: int) -> bool:
        """Read the model's end of utterance; return False when a verdict must be read first."""
        if not self._awaiting:
            self._apply(Event.EOU, sample)
        return self._decide(sample)

    def _read_window(self, sample: int, prob: float) -> bool:
        """Read a window; return False if its outcome needs a verdict first: it is read again then."""
        if not self._awaiting:
            settings = self.settings
            if prob >= settings.vad_threshold:
                self._is_speech = True
            elif prob < settings.vad_threshold - settings.vad_margin or self._is_speech is None:
                self._is_speech = False
            if self._is_speech:
                self._read_speech(sample)
                return True
            self._read_silence(sample)
        return self._decide(sample)

    def _read_speech(self, sample: int) -> None:
        resumes = self._state in (State.PAUSED, State.RESUMING)
        needed_ms = self.settings.min_resume_ms if resumes else self.settings.min_speech_ms
        self._speech_run_samples += WINDOW_SAMPLES
        held = self._speech_run_samples >= needed_ms * SAMPLES_PER_MS
        self._apply(Event.SPEECH_HELD if held else Event.SPEECH, sample)
        # Speech too short to end a pause does not end its silence either: the count goes on.
        if self._state is not State.RESUMING:
            self._speech_end_sample = sample

    def _read_silence(self, sample: int) -> None:
        self._speech_run_samples = 0
        held = sample - self._speech_end_sample >= self.settings.pause_ms * SAMPLES_PER_MS
        self._apply(Event.SILENCE_HELD if held else Event.SILENCE, sample)

    def _decide(self, sample: int) -> bool:
        if self._state not in (State.DIPPING, State.PAUSED):
            return True
        silence_samples = sample - self._speech_end_sample
        if silence_samples < self._silences[0] and self._verdict is None:
            return True
        self._awaiting = self._needs_verdict(silence_samples)
        cause = None if self._awaiting else self._cause(silence_samples)
        if cause is not None:
            self._apply(Event.ENDED, sample, cause)
        return not self._awaiting

    def _cause(self, silence_samples: int) -> Cause | None:
        """Return the rule that ends the utterance at this silence, with the verdict as far as it is known."""
        settings = self.settings
        verdict = self._verdict_at(silence_samples)
        incomplete = verdict is Verdict.INCOMPLETE
        has_eou = self._has_eou()
        # A token alone is no evidence where better evidence is about to come.
        judged = verdict is not None or Signal.SMART_TURN not in settings.signals
        if has_eou and judged and not incomplete and _reaches(silence_samples, settings.eou_silence_ms):
            return Cause.EOU
        if verdict is Verdict.COMPLETE:
            return Cause.SMART_TURN
        # If token and verdict contradict each other, silence decides, as it does without either.
        undecided = has_eou if incomplete else Signal.VAD in settings.signals or verdict is Verdict.ABSENT
        if undecided and _reaches(silence_samples, settings.end_silence_ms):
            return Cause.SILENCE
        return Cause.MAX_PAUSE if _reaches(silence_samples, settings.max_pause_ms) else None

    def _has_eou(self) -> bool:
        """Return whether there is an `<EOU>` after which the model has emitted no speech."""
        return (
            Signal.EOU in self.settings.signals
            and self._eou_sample is not None
            and self._speech_end_sample - self._eou_sample <= self.settings.eou_hold_ms * SAMPLES_PER_MS
        )

    def _verdict_at(self, silence_samples: int) -> Verdict | None:
        """Return the verdict from the position on at which it takes effect, however soon it came."""
        return self._verdict if _reaches(silence_samples, self.settings.smart_silence_ms) else None

    def _needs_verdict(self, silence_samples: int) -> bool:
        return (
            Signal.SMART_TURN in self.settings.signals
            and self._state is State.PAUSED
            and self._verdict is None
            and _reaches(silence_samples, self.settings.smart_silence_ms)
        )

    def _apply(self, event: Event, sample: int, cause: Cause | None = None) -> None:
        transition = TABLE.get((self._state, event))
        if transition is None:
            raise IllegalTransitionError(f"{event.value!r} in state {self._state.value!r}")
        self._state = transition.to
        if transition.action is None:
            return
        match transition.action:
            case Action.OPEN:
                self._forget()
                self._speech_start_sample = sample - self._speech_run_samples
                self._events.append(_TurnEvent(False, sample, self._speech_start_sample))
            case Action.CLOSE:
                self._forget()
                self._events.append(
                    _TurnEvent(True, sample, self._speech_start_sample, self._speech_end_sample, cause)
                )
            case Action.ASK if Signal.SMART_TURN in self.settings.signals:
                self._num_questions += 1
                self._question_sample = sample
                self._questions.append(TurnQuestion(self._num_questions, sample))
            case Action.NOTE_EOU:
                self._eou_sample = sample
            case Action.FORGET:
                self._forget()
            case _:
                pass

    def _forget(self) -> None:
        self._eou_sample = None
        self._verdict = None
        self._question_sample = None

    def _outcomes(self) -> Sequence[TurnOutcome]:
        if not self._events:
            return _STEADY[self._state] if self._is_speech is not None else _UNHEARD
        events, self._events = self._events, []
        return [
            TurnOutcome(
                "silence" if event.ends else "speech",
                "end_of_utterance" if event.ends else "start_of_utterance",
                event.sample,
                event.speech_start_sample,
                event.speech_end_sample,
                event.cause,
            )
            for event in events
        ]

    def export(self) -> bytes:
        """Return the whole state, a chunk that waits included, as JSON; `restore` goes on from it exactly."""
        state: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        state["_state"] = self._state.value
        state["_verdict"] = None if self._verdict is None else self._verdict.value
        state["_events"] = [astuple(event) for event in self._events]
        tape = self._tape
        state["_tape"] = tape and [tape.end_sample, tape.final, list(tape.marks)]
        return json.dumps({"version": _EXPORT_VERSION, **state}).encode()

    @classmethod
    def restore(cls, settings: TurnSettings, exported: bytes) -> Self:
        """Return an endpointer in the state that `export` wrote. A question that stands is asked anew.

        Raises:
            ValueError: the state was written by another version.
        """
        state = json.loads(exported)
        if state.pop("version", None) != _EXPORT_VERSION:
            raise ValueError("the turn state was written by another version")
        endpointer = cls(settings)
        for name in _PLAIN_FIELDS:
            setattr(endpointer, name, state[name])
        endpointer._state = State(state["_state"])
        verdict = state["_verdict"]
        endpointer._verdict = None if verdict is None else Verdict(verdict)
        endpointer._events.extend(
            _TurnEvent(ends, at, start, end, None if cause is None else Cause(cause))
            for ends, at, start, end, cause in state["_events"]
        )
        if state["_tape"] is not None:
            end_sample, final, marks = state["_tape"]
            endpointer._tape = _Tape(end_sample, final, deque((at, prob) for at, prob in marks))
        asked_sample = endpointer._question_sample
        if asked_sample is not None and verdict is None:
            endpointer._questions.append(TurnQuestion(endpointer._num_questions, asked_sample))
        return endpointer


_STEADY: Final = {state: (TurnOutcome(*reported),) for state, reported in REPORTED.items()}
_UNHEARD: Final = (TurnOutcome(None, "pause"),)
_EXPORT_VERSION: Final = 2
_PLAIN_FIELDS: Final = (
    "_read_sample",
    "_is_speech",
    "_speech_run_samples",
    "_speech_start_sample",
    "_speech_end_sample",
    "_eou_sample",
    "_num_questions",
    "_question_sample",
    "_awaiting",
)


def _silences(settings: TurnSettings) -> tuple[int, ...]:
    """Return the samples of silence at which a rule may end an utterance or ask, the shortest first."""
    lengths_ms = {settings.end_silence_ms, settings.max_pause_ms}
    if Signal.EOU in settings.signals:
        lengths_ms.add(settings.eou_silence_ms)
    if Signal.SMART_TURN in settings.signals:
        lengths_ms.add(settings.smart_silence_ms)
    return tuple(sorted(SAMPLES_PER_MS * length_ms for length_ms in lengths_ms))


def _reaches(silence_samples: int, needed_ms: int) -> bool:
    return silence_samples >= needed_ms * SAMPLES_PER_MS
