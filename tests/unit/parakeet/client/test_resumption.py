"""Streams of the Python client whose connection is lost, and that go on over another."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from common.entries import LineKind
from common.errors import ErrorCode, Unavailable
from common.messages import Resume
from ingress.backplane import NOBODY, Caller, Resumption, StreamListener
from parakeet.client import (
    ClientTimeouts,
    ConnectionLost,
    ServerError,
    Stream,
    connect,
)
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import serving, wait_until

_TIMEOUTS = ClientTimeouts(connect_s=60, silence_s=60, final_s=60, resume_s=60, send_s=60)
_HASTY = replace(_TIMEOUTS, resume_s=2)


async def test_a_lost_connection_is_resumed_with_the_audio_that_was_not_accepted() -> None:
    async with serving(ScriptedBackplane()) as harness:
        backplane = harness.backplane
        async with await connect(harness.tcp_url, timeouts=_TIMEOUTS) as stream:
            audio = bytes(range(200))
            await stream.send(audio)
            await wait_until(lambda: "append" in backplane.link.log)
            link = backplane.link
            assert link.options is not None
            assert link.options.resume
            link.listener.on_result(LineKind.PARTIAL, some_result(1, "one", acked=20))
            assert (await anext(stream.results())).text == "one"
            backplane.resumption = (70, 20, False)
            backplane.echo = True
            for connection in list(harness.connections):
                connection._peer.abort()
            await wait_until(partial(resumed, stream, 1))
            request = backplane.resume_requests[0]
            assert (request.stream_id, request.resume_token) == (1, "secret")
            assert (request.last_seq, request.audio_ack_samples) == (1, 20)
            # The echo numbers its results from 1: the first of them is one that the client has.
            backplane.link.seq = 1
            await stream.send(b"\0\0" * 10)
            await stream.finish()
            assert (await stream.final()).text == "110 samples"
            assert bytes(backplane.link.payload) == audio[140:] + b"\0\0" * 10
            assert stream.num_resumptions == 1


async def test_a_draining_server_is_left_for_another() -> None:
    async with serving(ScriptedBackplane()) as first, serving(ScriptedBackplane(echo=True)) as second:
        second.backplane.resumption = (10, 0, False)
        urls = (first.tcp_url, second.ws_url)
        async with await connect(urls, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            await wait_until(lambda: "append" in first.backplane.link.log)
            first.backplane.refusal = Unavailable(ErrorCode.DRAINING, "Elsewhere.")
            for connection in list(first.connections):
                connection.drain()
            await wait_until(lambda: bool(second.backplane.resume_requests))
            assert first.backplane.links[0].log[-1] == "keep"
            await stream.finish()
            assert (await stream.final()).text == "10 samples"


async def test_a_resumption_that_is_refused_is_a_typed_error() -> None:
    async with serving(ScriptedBackplane()) as harness:
        harness.backplane.resumption = Unavailable(ErrorCode.RESUME_REFUSED, "It is gone.")
        async with await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            await wait_until(lambda: "append" in harness.backplane.link.log)
            harness.backplane.link.listener.on_result(LineKind.PARTIAL, some_result(1, "one", acked=10))
            await anext(stream.results())
            for connection in list(harness.connections):
                connection._peer.abort()
            with pytest.raises(ServerError) as caught:
                await stream.final()
            assert caught.value.code == "resume_refused"


async def test_a_stream_that_never_began_begins_anew_with_all_its_audio() -> None:
    """A server that dies right after its hello has told Redis nothing, and the caller has heard nothing."""
    audio = bytes(range(200)) * 2
    async with serving(ScriptedBackplane()) as harness:
        harness.backplane.resumption = Unavailable(ErrorCode.RESUME_REFUSED, "It is gone.")
        async with await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(audio)
            await wait_until(lambda: "append" in harness.backplane.link.log)
            first = harness.backplane.link
            for connection in list(harness.connections):
                connection._peer.abort()
            await wait_until(
                lambda: harness.backplane.link is not first and bytes(harness.backplane.link.payload) == audio
            )
            await stream.finish()
            await wait_until(lambda: harness.backplane.link.finals == 1)


async def test_leaving_while_a_server_thinks_about_the_resumption_leaves_no_socket_open() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    class Thoughtful(ScriptedBackplane):
        async def resume(
            self, listener: StreamListener, request: Resume, caller: Caller = NOBODY
        ) -> Resumption:
            asked.set()
            await answer.wait()
            return await super().resume(listener, request, caller)

    async with serving(Thoughtful()) as harness:
        harness.backplane.resumption = (10, 0, False)
        stream = await connect(harness.ws_url, timeouts=_TIMEOUTS)
        await stream.send(b"\0\0" * 10)
        await wait_until(lambda: "append" in harness.backplane.link.log)
        for connection in list(harness.connections):
            connection._peer.abort()
        await asked.wait()
        await stream.close()
        answer.set()
        await wait_until(lambda: not harness.connections)


async def test_resumptions_that_bring_nothing_end_within_the_time_for_one() -> None:
    async with serving(ScriptedBackplane()) as harness:
        harness.backplane.resumption = (10, 0, False)
        async with await connect(harness.tcp_url, timeouts=_HASTY) as stream:
            await stream.send(b"\0\0" * 10)

            requests = harness.backplane.resume_requests
            seen = 0

            def another_request() -> bool:
                return len(requests) > seen

            async def lose_every_connection() -> None:
                nonlocal seen
                while True:
                    seen = len(requests)
                    for connection in list(harness.connections):
                        connection._peer.abort()
                    await wait_until(another_request)

            await wait_until(lambda: "append" in harness.backplane.link.log)
            fault = asyncio.create_task(lose_every_connection())
            with pytest.raises(ConnectionLost, match="not resumed within 2 s"):
                await stream.final()
            fault.cancel()
            await asyncio.gather(fault, return_exceptions=True)
            # A pause lies between two attempts.
            assert 1 < stream.num_resumptions <= 2 * _HASTY.resume_s / 0.2


async def test_without_resume_a_lost_connection_is_a_typed_error() -> None:
    async with (
        serving(ScriptedBackplane()) as harness,
        await connect(harness.ws_url, resume=False, timeouts=_TIMEOUTS) as stream,
    ):
        await stream.send(b"\0\0" * 10)
        await wait_until(lambda: "append" in harness.backplane.link.log)
        assert harness.backplane.link.options is not None
        assert not harness.backplane.link.options.resume
        for connection in list(harness.connections):
            connection._peer.abort()
        with pytest.raises(ConnectionLost):
            await stream.final()


async def test_a_finalize_that_was_not_answered_is_asked_again_after_a_lost_connection() -> None:
    async with serving(ScriptedBackplane()) as harness:
        backplane = harness.backplane
        backplane.resumption = (10, 0, False)
        async with await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            stream.finalize()
            await wait_until(lambda: "finalize" in backplane.link.log)
            backplane.link.listener.on_result(
                LineKind.FINALIZED, replace(some_result(1, "ten", acked=10), from_finalize=True)
            )
            assert (await anext(stream.results())).from_finalize
            stream.finalize()
            await wait_until(lambda: backplane.link.log.count("finalize") == 2)
            for connection in list(harness.connections):
                connection._peer.abort()
            await wait_until(lambda: len(backplane.links) > 1 and "finalize" in backplane.link.log)
            assert backplane.link.log == ["finalize"]


async def test_a_token_that_a_resumption_has_changed_is_shown_the_next_time() -> None:
    async with serving(ScriptedBackplane()) as harness:
        backplane = harness.backplane
        backplane.resumption = (0, 0, False)
        async with await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            await wait_until(lambda: "append" in backplane.link.log)
            for token in ("second", "third"):
                backplane.next_token = token
                asked = len(backplane.resume_requests)
                for connection in list(harness.connections):
                    connection._peer.abort()
                await wait_until(partial(resumed, stream, asked + 1))
        assert [request.resume_token for request in backplane.resume_requests] == ["secret", "second"]


async def test_where_the_newest_token_is_refused_the_one_before_is_shown() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        backplane = harness.backplane
        backplane.resumption = (10, 10, False)
        async with await connect(harness.ws_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 10)
            await anext(stream.results())
            backplane.next_token, backplane.forgotten = "forgotten", {"forgotten"}
            for times in (1, 2):
                for connection in list(harness.connections):
                    connection._peer.abort()
                await wait_until(partial(resumed, stream, times))
        shown = [request.resume_token for request in backplane.resume_requests]
        assert shown == ["secret", "forgotten", "secret"]


def resumed(stream: Stream, times: int) -> bool:
    return stream.num_resumptions == times


@pytest.mark.parametrize("finished_by_caller", [True, False])
async def test_a_stream_that_ended_before_its_audio_was_there_is_a_typed_error(
    finished_by_caller: bool,
) -> None:
    """The server finished it while its client was away; the final result is that of a part of the audio."""
    async with serving(ScriptedBackplane()) as harness:
        backplane = harness.backplane
        async with await connect(harness.tcp_url, timeouts=_TIMEOUTS) as stream:
            await stream.send(b"\0\0" * 30)
            if finished_by_caller:
                await stream.finish()
            await wait_until(lambda: "append" in backplane.link.log)
            first = backplane.link
            backplane.resumption = (10, 0, True)
            for connection in list(harness.connections):
                connection._peer.abort()
            await wait_until(partial(resumed, stream, 1))
            assert backplane.link is not first
            backplane.link.listener.on_result(LineKind.FINAL, some_result(1, "a part", final=True, acked=10))
            results = stream.results()
            part = await anext(results)
            assert (part.text, part.is_final) == ("a part", False)
            with pytest.raises(ConnectionLost, match="before the end of its audio"):
                await anext(results)
