"""The turn state of one stream in the stage, and how it travels in a snapshot."""

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
from gpu_worker.turn.endpointing import Endpointer, TurnChunk
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.utterances import UtteranceLog

_VERSION: Final = 1


@dataclass(slots=True)
class HeldChunk:
    """A chunk that waits: its result without turn detection, what it says of turns, its audio."""

    output: StreamOutput
    chunk: TurnChunk
    samples: NDArray[np.int16] | None


@dataclass(slots=True)
class Lane:
    """The turn state of one stream.

    endpointer: None when turn detection is off for the stream.
    history: the last 8 s of audio and the chunk being read, for smart-turn; None without it.
    history_end_sample: position of the history's end.
    waiting: result of the chunk that is half read and waits for a verdict.
    deadline_s: when the verdict is given up.
    held: chunks behind it.
    reported: what the last result said, (last_state, turn_detection).
    utterances: finals of utterances; None without `auto_finalize`.
    """

    endpointer: Endpointer | None = None
    history: NDArray[np.int16] | None = None
    history_end_sample: int = 0
    waiting: StreamOutput | None = None
    deadline_s: float = 0.0
    held: deque[HeldChunk] = field(default_factory=deque)
    reported: tuple[LastState | None, TurnDetection] = (None, "pause")
    utterances: UtteranceLog | None = None


def export_lane(lane: Lane, ready: Sequence[StreamOutput]) -> bytes:
    """A header of JSON behind its length, then the audio as int16.

    Args:
        lane: of the stream.
        ready: its results that are complete and were not fetched yet.
    """
    audio = [] if lane.history is None else [lane.history]
    audio += [held.samples for held in lane.held if held.samples is not None]
    header = {
        "version": _VERSION,
        "endpointer": None if lane.endpointer is None else lane.endpointer.export().decode(),
        "history_samples": None if lane.history is None else len(lane.history),
        "history_end_sample": lane.history_end_sample,
        "ready": [_encode_output(output) for output in ready],
        "waiting": None if lane.waiting is None else _encode_output(lane.waiting),
        "held": [
            {
                "output": _encode_output(held.output),
                "chunk": asdict(held.chunk),
                "samples": None if held.samples is None else len(held.samples),
            }
            for held in lane.held
        ],
        "reported": lane.reported,
        "utterances": None if lane.utterances is None else lane.utterances.export(),
    }
    text = json.dumps(header).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(part.tobytes() for part in audio)])


def import_lane(exported: bytes, settings: TurnSettings, stream: StreamId) -> tuple[Lane, list[StreamOutput]]:
    """What `export_lane` wrote: the lane, and results that are ready; the stream may have another id here.

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
    lane = Lane(
        endpointer=None if endpointer is None else Endpointer.restore(settings, endpointer.encode()),
        history=take(header["history_samples"]),
        history_end_sample=header["history_end_sample"],
        waiting=None if header["waiting"] is None else decode_output(stream, header["waiting"]),
        reported=tuple(header["reported"]),
    )
    if header["utterances"] is not None:
        lane.utterances = UtteranceLog(settings)
        lane.utterances.load(header["utterances"])
    for held in header["held"]:
        chunk = held["chunk"]
        lane.held.append(
            HeldChunk(
                decode_output(stream, held["output"]),
                TurnChunk(
                    chunk["end_sample"],
                    tuple(chunk["probs"]),
                    tuple(chunk["eou_samples"]),
                    chunk["final"],
                ),
                take(held["samples"]),
            )
        )
    return lane, [decode_output(stream, values) for values in header["ready"]]


def _encode_output(output: StreamOutput) -> dict[str, Any]:
    assert output.failed is None  # a failure ends the lane, it is never held
    return asdict(output)
