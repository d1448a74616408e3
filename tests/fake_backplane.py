"""A backplane in memory: connections without Redis.

`ScriptedBackplane` records what connections do with their streams; with `echo` it answers each append
with a partial result and a final mark with the final one, as a worker would.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from common.entries import LineKind, StreamId
from common.errors import ErrorCode, StreamError, Unavailable
from common.languages import UNKNOWN, Languages
from common.messages import Audio, Phrases, Result, Resume, Utterance, Word
from common.options import StreamOptions
from ingress.backplane import CLIENT_GONE, FINAL, NOBODY, Caller, Resumption, StreamListener


def some_result(
    seq: int,
    text: str = "",
    *,
    final: bool = False,
    turn: bool = False,
    tokens: tuple[int, ...] = (),
    acked: int = 0,
    first: int | None = None,
    words: tuple[Word, ...] | None = None,
    utterances: tuple[Utterance, ...] = (),
) -> Result:
    """A result as a worker would give it."""
    return Result(
        text=text,
        token_ids=tokens,
        confidence_scores=tuple(0.5 for _ in tokens),
        is_final=final,
        last_state="speech",
        turn_detection="end_of_utterance" if turn else "running",
        seq=seq,
        audio_ack_samples=acked,
        seq_first=first,
        words=words,
        utterances=utterances,
    )


@dataclass(eq=False)
class FakeLink:
    """One stream in memory; `log` says what its connection did, in order, and `code` why it ended."""

    stream: StreamId
    listener: StreamListener
    echo: bool
    resume_token: str = "secret"
    room: bool = True
    log: list[str] = field(default_factory=list)
    options: StreamOptions | None = None
    payload: bytearray = field(default_factory=bytearray)
    samples: int = 0
    seq: int = 0
    finals: int = 0
    broken: bool = False
    confirmed: int = 0
    code: str = ""

    def begin(self, options: StreamOptions) -> None:
        self.options = options
        self.log.append("begin")

    def append(self, audio: Audio) -> bool:
        if self.broken:
            raise AssertionError("a defect")
        self.samples += audio.num_samples
        self.payload += audio.payload
        self.log.append("final" if audio.final else "append")
        self.finals += audio.final
        if self.echo:
            self.seq += 1
            text = f"{self.samples} samples"
            kind = LineKind.FINAL if audio.final else LineKind.PARTIAL
            result = some_result(self.seq, text, final=audio.final, acked=self.samples)
            asyncio.get_running_loop().call_soon(self.listener.on_result, kind, result)
        return self.room

    def finalize(self) -> bool:
        self.log.append("finalize")
        return self.room

    def replace_phrases(self, change: Phrases) -> bool:
        self.log.append("phrases " + ", ".join(phrase.text for phrase in change.phrases))
        return self.room

    def confirm(self) -> None:
        self.confirmed += 1

    def abandon(self, *, keep: bool, code: str = CLIENT_GONE) -> None:
        self.log.append("keep" if keep else "abandon")
        self.code = "" if keep else code

    def release(self, *, code: str = FINAL) -> None:
        self.log.append("release")
        self.code = code


class ScriptedBackplane:
    """Admits streams, or raises `refusal`; resumes what `resumption` says, or raises it."""

    def __init__(self, *, echo: bool = False) -> None:
        self.echo = echo
        self.languages: Languages = UNKNOWN
        self.refusal: StreamError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_waiting = 0  # admissions that wait for the gate
        self.links: list[FakeLink] = []
        self.resume_requests: list[Resume] = []
        self.resumption: tuple[int, int, bool] | StreamError = (0, 0, False)
        self.num_marks = 0  # behind the audio of a resumed stream
        self.next_token = "secret"  # that a resumption brings
        self.forgotten: set[str] = set()  # tokens that are refused

    async def admit(self, listener: StreamListener, caller: Caller = NOBODY) -> FakeLink:
        await self._admitted()
        link = FakeLink(StreamId(len(self.links) + 1), listener, self.echo)
        self.links.append(link)
        return link

    async def readmit(
        self, listener: StreamListener, stream: StreamId, resume_token: str, caller: Caller = NOBODY
    ) -> FakeLink:
        await self._admitted()
        link = FakeLink(stream, listener, self.echo, resume_token)
        self.links.append(link)
        return link

    async def _admitted(self) -> None:
        self.num_waiting += 1
        await self.gate.wait()
        self.num_waiting -= 1
        if self.refusal is not None:
            raise self.refusal

    async def resume(self, listener: StreamListener, request: Resume, caller: Caller = NOBODY) -> Resumption:
        self.resume_requests.append(request)
        await asyncio.sleep(0)
        await self.gate.wait()
        if isinstance(self.resumption, StreamError):
            raise self.resumption
        if request.resume_token in self.forgotten:
            raise Unavailable(ErrorCode.RESUME_REFUSED, "Its secret differs.")
        next_sample, acked, finished = self.resumption
        stream = StreamId(request.stream_id)
        link = FakeLink(stream, listener, self.echo, self.next_token, samples=next_sample)
        self.links.append(link)
        options = StreamOptions(resume=True)
        return Resumption(link, next_sample, acked, finished, options, 16000, self.num_marks)

    @property
    def link(self) -> FakeLink:
        """The only stream so far, or the newest."""
        return self.links[-1]
