"""The turn state of one stream in the stage, and its serialization for a snapshot."""

import json
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.entries import StreamId
from common.messages import LastState, TurnDetection
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.stored_output import decode_output
from gpu_worker.engine.transcript import Tokens, Transcript
from gpu_worker.turn.endpointing import Endpointer
from gpu_worker.turn.outcome import TurnChunk
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.utterances import UtteranceLog

_VERSION: Final = 2


@dataclass(slots=True)
class HeldChunk:
    """A chunk that is held back: its tokens, its turn findings, its audio where smart-turn needs it."""

    tokens: Tokens
    chunk: TurnChunk
    samples: NDArray[np.int16] | None


@dataclass(slots=True)
class StreamTurns:
    """The turn state of one stream.

    stream: its id.
    transcript: up to the last result.
    endpointer: None when turn detection is off for the stream.
    history: the last 8 s of audio and the chunk being read, for smart-turn; None without it.
    history_end_sample: position of the history's end.
    waiting: the chunk that is partly read and waits for a verdict.
    deadline_s: time at which the verdict is given up.
    held: later chunks, which were on the device already.
    reported: (last_state, turn_detection) of the last result.
    utterances: finals of utterances; None without `auto_finalize`.
    slot: where its steady chunks are counted; None when all are read one by one.
    second: second of audio in which its last result ended.
    """

    stream: StreamId
    transcript: Transcript
    endpointer: Endpointer | None = None
    history: NDArray[np.int16] | None = None
    history_end_sample: int = 0
    waiting: HeldChunk | None = None
    deadline_s: float = 0.0
    held: deque[HeldChunk] = field(default_factory=deque)
    reported: tuple[LastState | None, TurnDetection] = (None, "pause")
    utterances: UtteranceLog | None = None
    slot: int | None = None
    second: int = -1

    @property
    def is_steady(self) -> bool:
        """Whether a chunk that leaves the endpointer's state changes nothing else either."""
        if self.endpointer is None or self.history is not None or self.waiting is not None or self.held:
            return False
        if self.utterances is not None and self.utterances.is_waiting:
            return False
        outcome = self.endpointer.steady_outcome
        return self.reported == (outcome.last_state, outcome.turn_detection)


def export_turns(turns: StreamTurns, ready: Sequence[StreamOutput]) -> bytes:
    """Return the length of a JSON header, the header, and the audio as int16; without the transcript.

    Args:
        turns: turns of one stream.
        ready: its results that are complete and were not fetched yet.
    """
    audio = [] if turns.history is None else [turns.history]
    audio += [held.samples for held in turns.held if held.samples is not None]
    header = {
        "version": _VERSION,
        "endpointer": None if turns.endpointer is None else turns.endpointer.export().decode(),
        "history_samples": None if turns.history is None else len(turns.history),
        "history_end_sample": turns.history_end_sample,
        "ready": [_encode_output(output) for output in ready],
        "waiting": None if turns.waiting is None else _encode_chunk(turns.waiting),
        "held": [
            {
                **_encode_chunk(held),
                "samples": None if held.samples is None else len(held.samples),
            }
            for held in turns.held
        ],
        "reported": turns.reported,
        "utterances": None if turns.utterances is None else turns.utterances.export(),
    }
    text = json.dumps(header).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(part.tobytes() for part in audio)])


def import_turns(
    exported: bytes, settings: TurnSettings, stream: StreamId, transcript: Transcript
) -> tuple[StreamTurns, list[StreamOutput]]:
    """Return the turns and the ready results of an export, for a stream that may have a new id.

    transcript: the transcript at the time of the export.

    Raises:
        ValueError: it was written by another version.
    """
    (length,) = struct.unpack_from("<I", exported)
    header = json.loads(exported[4 : 4 + length])
    if header.get("version") != _VERSION:
        raise ValueError("the turn state was written by another version")
    audio = np.frombuffer(exported, np.int16, offset=4 + length)
    position = 0

    def take(num_samples: int | None) -> NDArray[np.int16] | None:
        nonlocal position
        if num_samples is None:
            return None
        start, position = position, position + num_samples
        return audio[start:position].copy()

    endpointer = header["endpointer"]
    turns = StreamTurns(
        stream,
        transcript,
        endpointer=None if endpointer is None else Endpointer.restore(settings, endpointer.encode()),
        history=take(header["history_samples"]),
        history_end_sample=header["history_end_sample"],
        waiting=None if header["waiting"] is None else _decode_chunk(header["waiting"], None),
        reported=tuple(header["reported"]),
    )
    if header["utterances"] is not None:
        turns.utterances = UtteranceLog(settings)
        turns.utterances.load(header["utterances"])
    turns.held.extend(_decode_chunk(held, take(held["samples"])) for held in header["held"])
    return turns, [decode_output(stream, values) for values in header["ready"]]


def _encode_output(output: StreamOutput) -> dict[str, Any]:
    assert output.failed is None  # a failure ends the turns, it is never held
    return asdict(output)


def _encode_chunk(held: HeldChunk) -> dict[str, Any]:
    tokens = held.tokens
    return {
        "tokens": [tokens.ids, tokens.frames, tokens.confidences],
        "chunk": asdict(held.chunk),
    }


def _decode_chunk(values: dict[str, Any], samples: NDArray[np.int16] | None) -> HeldChunk:
    chunk = values["chunk"]
    return HeldChunk(
        Tokens(*values["tokens"]),
        TurnChunk(
            chunk["end_sample"],
            tuple(chunk["probs"]),
            tuple(chunk["eou_samples"]),
            chunk["final"],
        ),
        samples,
    )
