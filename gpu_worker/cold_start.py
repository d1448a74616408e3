"""Cold start of a stream: an engine goes on from a checkpoint without its snapshot.

An engine of another layout cannot use a snapshot: one with another compute type (a worker on CPU beside one
on CUDA), or of another release. The audio before the checkpoint is gone by then. So the engine begins anew at
the checkpoint, with the data that Redis still has of the stream: the audio since then, and the text before.
It decodes the next words without their left context, so the first of them may differ from the words that the
stream's last owner recognised.
"""

from __future__ import annotations

from dataclasses import replace

from common.entries import StreamId
from common.streams.assignments import Base, Checkpoint
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE, StreamOutput

_FRAME_SAMPLES = ENGINE_SAMPLE_RATE * 80 // 1000


def base_at(checkpoint: Checkpoint) -> Base:
    """Return the base at which an engine begins that cannot use the snapshot of a checkpoint."""
    return replace(
        checkpoint.base,
        samples=checkpoint.samples_decoded,
        text_chars=checkpoint.text_chars,
        utterances=checkpoint.utterances,
    )


def acknowledgement(stream: StreamId, samples: int) -> StreamOutput:
    """Return the output that acknowledges audio before the checkpoint, up to `samples`."""
    return StreamOutput(
        stream=stream,
        samples_decoded=samples,
        token_ids=(),
        confidence_scores=(),
        token_frames=(),
        text="",
        last_state=None,
        turn_detection="running",
        is_final=False,
        is_turn_event=False,
        words=None,
        changed=False,
    )


def placed(output: StreamOutput, base: Base, text_before: str) -> StreamOutput:
    """Return the output of an engine that began at `base`, as part of the whole stream.

    text_before: the text before the base.
    """
    shift_s = base.samples / ENGINE_SAMPLE_RATE
    words = output.words
    return replace(
        output,
        samples_decoded=output.samples_decoded + base.samples,
        token_frames=tuple(frame + base.samples // _FRAME_SAMPLES for frame in output.token_frames),
        text=" ".join(part for part in (text_before, output.text) if part),
        words=None
        if words is None
        else tuple(
            replace(word, start_s=round(word.start_s + shift_s, 3), end_s=round(word.end_s + shift_s, 3))
            for word in words
        ),
        utterances=tuple(
            replace(
                one,
                number=one.number + base.utterances,
                start_s=round(one.start_s + shift_s, 3),
                end_s=round(one.end_s + shift_s, 3),
            )
            for one in output.utterances
        ),
    )
