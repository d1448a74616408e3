"""The table of endpointing: states, events, transitions, and the turn fields of each state.

`python -m gpu_worker.turn.transitions` prints it as the Mermaid diagram of docs/turn-detection.md.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from common.messages import LastState, TurnDetection


class State(StrEnum):
    """The state of a stream. In the last four an utterance is open."""

    IDLE = "idle"
    STARTING = "starting"
    SPEAKING = "speaking"
    DIPPING = "dipping"
    PAUSED = "paused"
    RESUMING = "resuming"
    CLOSED = "closed"

    # Enum's own hash is a Python function, and members are looked up for every window.
    __hash__ = str.__hash__


class Event(StrEnum):
    """An event: of a window, a token or the end of the audio. Windows come every 32 ms."""

    SPEECH = "speech"
    SPEECH_HELD = "speech held"
    SILENCE = "silence"
    SILENCE_HELD = "silence held"
    EOU = "<EOU>"
    ENDED = "end decided"
    FINISHED = "audio finished"

    __hash__ = str.__hash__


class Action(StrEnum):
    """An action of a transition beside the change of state."""

    OPEN = "start_of_utterance"
    CLOSE = "end_of_utterance"
    ASK = "ask smart-turn"
    NOTE_EOU = "note <EOU>"
    FORGET = "forget <EOU> and verdict"


@dataclass(frozen=True, slots=True)
class Transition:
    """The state after an event, and the action."""

    to: State
    action: Action | None = None


TABLE: Final[dict[tuple[State, Event], Transition]] = {
    (State.IDLE, Event.SPEECH): Transition(State.STARTING),
    (State.IDLE, Event.SPEECH_HELD): Transition(State.SPEAKING, Action.OPEN),
    (State.IDLE, Event.SILENCE): Transition(State.IDLE),
    (State.IDLE, Event.SILENCE_HELD): Transition(State.IDLE),
    (State.IDLE, Event.EOU): Transition(State.IDLE),
    (State.IDLE, Event.FINISHED): Transition(State.CLOSED),
    (State.STARTING, Event.SPEECH): Transition(State.STARTING),
    (State.STARTING, Event.SPEECH_HELD): Transition(State.SPEAKING, Action.OPEN),
    (State.STARTING, Event.SILENCE): Transition(State.IDLE),
    (State.STARTING, Event.SILENCE_HELD): Transition(State.IDLE),
    (State.STARTING, Event.EOU): Transition(State.STARTING),
    (State.STARTING, Event.FINISHED): Transition(State.CLOSED),
    (State.SPEAKING, Event.SPEECH): Transition(State.SPEAKING),
    (State.SPEAKING, Event.SPEECH_HELD): Transition(State.SPEAKING),
    (State.SPEAKING, Event.SILENCE): Transition(State.DIPPING),
    (State.SPEAKING, Event.SILENCE_HELD): Transition(State.PAUSED, Action.ASK),
    (State.SPEAKING, Event.EOU): Transition(State.SPEAKING, Action.NOTE_EOU),
    (State.SPEAKING, Event.FINISHED): Transition(State.CLOSED, Action.CLOSE),
    (State.DIPPING, Event.SPEECH): Transition(State.SPEAKING),
    (State.DIPPING, Event.SPEECH_HELD): Transition(State.SPEAKING),
    (State.DIPPING, Event.SILENCE): Transition(State.DIPPING),
    (State.DIPPING, Event.SILENCE_HELD): Transition(State.PAUSED, Action.ASK),
    (State.DIPPING, Event.EOU): Transition(State.DIPPING, Action.NOTE_EOU),
    (State.DIPPING, Event.ENDED): Transition(State.IDLE, Action.CLOSE),
    (State.DIPPING, Event.FINISHED): Transition(State.CLOSED, Action.CLOSE),
    (State.PAUSED, Event.SPEECH): Transition(State.RESUMING),
    (State.PAUSED, Event.SPEECH_HELD): Transition(State.SPEAKING, Action.FORGET),
    (State.PAUSED, Event.SILENCE_HELD): Transition(State.PAUSED),
    (State.PAUSED, Event.EOU): Transition(State.PAUSED, Action.NOTE_EOU),
    (State.PAUSED, Event.ENDED): Transition(State.IDLE, Action.CLOSE),
    (State.PAUSED, Event.FINISHED): Transition(State.CLOSED, Action.CLOSE),
    (State.RESUMING, Event.SPEECH): Transition(State.RESUMING),
    (State.RESUMING, Event.SPEECH_HELD): Transition(State.SPEAKING, Action.FORGET),
    (State.RESUMING, Event.SILENCE_HELD): Transition(State.PAUSED),
    (State.RESUMING, Event.EOU): Transition(State.RESUMING, Action.NOTE_EOU),
    (State.RESUMING, Event.FINISHED): Transition(State.CLOSED, Action.CLOSE),
}

REPORTED: Final[dict[State, tuple[LastState, TurnDetection]]] = {
    State.IDLE: ("silence", "pause"),
    State.STARTING: ("silence", "pause"),
    State.SPEAKING: ("speech", "running"),
    State.DIPPING: ("speech", "running"),
    State.PAUSED: ("silence", "pause"),
    State.RESUMING: ("silence", "pause"),
    State.CLOSED: ("silence", "pause"),
}
"""The turn fields of a chunk without a start or an end, for each state."""


class IllegalTransitionError(Exception):
    """An event in a state whose row of the table does not have it."""


def mermaid() -> str:
    """Return the table as a Mermaid state diagram, one arrow for each pair of states and action."""
    arrows: dict[tuple[State, State, Action | None], list[str]] = {}
    for (state, event), transition in TABLE.items():
        if state is not transition.to or transition.action is not None:
            arrows.setdefault((state, transition.to, transition.action), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {State.IDLE.value}"]
    for (state, to, action), events in arrows.items():
        label = ", ".join(events).replace("<EOU>", "EOU")
        if action is not None:
            label += " / " + action.value.replace("<EOU>", "EOU")
        lines.append(f"    {state.value} --> {to.value}: {label}")
    lines.append(f"    {State.CLOSED.value} --> [*]")
    return "\n".join(lines)


if __name__ == "__main__":
    print(mermaid())  # noqa: T201
