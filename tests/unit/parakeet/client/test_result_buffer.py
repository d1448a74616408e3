"""Results that wait for the caller of the Python client, and the end, told as often as it is asked for."""

from __future__ import annotations

import asyncio

import pytest

from common.messages import Result, Utterance, Word
from parakeet.client.errors import ConnectionLost
from parakeet.client.result_buffer import ResultBuffer


def _result(seq: int, *, is_final: bool = False) -> Result:
    return Result(
        text=f"text {seq}",
        token_ids=(seq,),
        confidence_scores=(seq / 100,),
        is_final=is_final,
        last_state="speech",
        turn_detection="running",
        seq=seq,
        audio_ack_samples=seq * 10,
        words=(Word(f"word{seq}", seq, seq + 1, 0.5),),
        utterances=(Utterance(seq, "one", 0, 1),) if seq == 2 else (),
    )


async def test_results_come_in_order_and_then_the_end_again_and_again() -> None:
    buffer = ResultBuffer()
    buffer.put(_result(1))
    buffer.put(_result(2, is_final=True))
    assert [(await buffer.next()), (await buffer.next())] == [_result(1), _result(2, is_final=True)]
    assert [await buffer.next() for _ in range(3)] == [None] * 3
    assert buffer.final == _result(2, is_final=True)


async def test_a_failure_is_told_after_the_results_and_to_everybody_who_waits() -> None:
    buffer = ResultBuffer()
    readers = [asyncio.create_task(buffer.next()) for _ in range(2)]
    await asyncio.sleep(0)
    buffer.fail(ConnectionLost("gone"))
    for reader in readers:
        with pytest.raises(ConnectionLost, match="gone"):
            await reader
    buffer.fail(ConnectionLost("gone again"))
    with pytest.raises(ConnectionLost, match=r"^gone$"):
        await buffer.next()

    buffer = ResultBuffer()
    buffer.put(_result(1))
    buffer.fail(ConnectionLost("gone"))
    assert await buffer.next() == _result(1)
    with pytest.raises(ConnectionLost):
        await buffer.next()


async def test_a_failure_after_the_final_result_is_none() -> None:
    buffer = ResultBuffer()
    buffer.put(_result(1, is_final=True))
    buffer.fail(ConnectionLost("the server closed the connection"))
    assert await buffer.next() == _result(1, is_final=True)
    assert await buffer.next() is None


async def test_results_beyond_the_bound_become_one_that_says_all_they_said() -> None:
    buffer = ResultBuffer(max_waiting=2)
    for seq in range(1, 6):
        buffer.put(_result(seq))
    buffer.put(_result(6, is_final=True))
    first, merged, final = [await buffer.next() for _ in range(3)]
    assert first == _result(1)
    assert final == _result(6, is_final=True)
    assert merged is not None
    assert (merged.seq_first, merged.seq, merged.text) == (2, 5, "text 5")
    assert merged.token_ids == (2, 3, 4, 5)
    assert merged.confidence_scores == (0.02, 0.03, 0.04, 0.05)
    assert [word.word for word in merged.words or ()] == ["word2", "word3", "word4", "word5"]
    assert [utterance.number for utterance in merged.utterances] == [2]
    assert merged.audio_ack_samples == 50
