"""What a client reads of an utterance's final."""

import orjson

from common.entries import Line, LineKind, StreamId, decode_record, encode_record
from common.messages import Result, Utterance
from common.server_codec import decode_server_message
from gpu_worker.engine import interface
from ingress.dialects.native import encode_server_message


def output(*utterances: Utterance) -> interface.StreamOutput:
    return interface.StreamOutput(
        stream=StreamId(1),
        samples_decoded=16_000,
        token_ids=(),
        confidence_scores=(),
        token_frames=(),
        text="go forward",
        last_state="silence",
        turn_detection="pause",
        is_final=False,
        is_turn_event=bool(utterances),
        words=None,
        changed=True,
        utterances=utterances,
    )


def sent(said: interface.StreamOutput) -> bytes:
    """What a client is sent of an output, by way of Redis."""
    line = Line(LineKind.TURN, said.stream, 1, 7, 16_000, encode_record(said, 3))
    return encode_server_message(decode_record(line, said.text[:3]))


def test_utterances_reach_the_client_and_is_final_stays_for_the_end() -> None:
    data = sent(output(Utterance(2, "forward", 0.5, 0.96)))
    fields = orjson.loads(data)
    assert fields["utterances"] == [{"number": 2, "text": "forward", "start_s": 0.5, "end_s": 0.96}]
    assert fields["is_final"] is False
    decoded = decode_server_message(data)
    assert isinstance(decoded, Result)
    assert decoded.utterances == (Utterance(2, "forward", 0.5, 0.96),)


def test_a_result_without_them_has_no_such_field() -> None:
    assert "utterances" not in orjson.loads(sent(output()))
