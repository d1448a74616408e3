"""Outputs of streams as engines make them, before turn detection has its say."""

from __future__ import annotations

from collections.abc import Sequence

from common.entries import StreamId
from gpu_worker.engine.interface import EngineError, StreamOutput
from gpu_worker.engine.transcript import Token, Transcript


def chunk_output(
    stream: StreamId, transcript: Transcript, tokens: Sequence[Token], samples_decoded: int, *, is_final: bool
) -> StreamOutput:
    """What a chunk gave; its tokens go into the transcript, which the final output closes."""
    words = transcript.add(tokens, ends=is_final)
    return StreamOutput(
        stream=stream,
        samples_decoded=samples_decoded,
        # Lists: a tuple made from a generator costs twice as much.
        token_ids=tuple([token.token for token in tokens]),
        confidence_scores=tuple([token.confidence for token in tokens]),
        token_frames=tuple([token.frame for token in tokens]),
        text=transcript.text,
        last_state=None,
        turn_detection="running",
        is_final=is_final,
        is_turn_event=False,
        words=words,
        changed=bool(tokens) or is_final,
    )


def failed_output(
    stream: StreamId, transcript: Transcript, samples_decoded: int, error: EngineError
) -> StreamOutput:
    """The last of a stream that the engine had to end."""
    return StreamOutput(
        stream=stream,
        samples_decoded=samples_decoded,
        token_ids=(),
        confidence_scores=(),
        token_frames=(),
        text=transcript.text,
        last_state=None,
        turn_detection="running",
        is_final=False,
        is_turn_event=False,
        words=None,
        changed=True,
        failed=error,
    )
