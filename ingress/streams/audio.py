"""The audio of one stream between its connection and the audio log: held until the stream is in Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from common.entries import WorkerId
from common.errors import InternalFault, StreamError, Unavailable
from common.messages import Audio, Finalize, Phrases
from common.streams.appender import FINALIZE_BYTES, Appender, phrases_bytes
from common.streams.audio_log import AudioLog

logger = logging.getLogger(__name__)

# Audio that one stream may have on its way into Redis before its client is made to wait: eight
# seconds of pcm16 at 16 kHz. It is read again when a quarter is left.
MAX_PENDING_BYTES: Final = 256 * 1024
RESUME_READING_BYTES: Final = MAX_PENDING_BYTES // 4

_FINAL_MARK: Final = Audio(b"", final=True)
_FINALIZE: Final = Finalize()

StartTask = Callable[[Coroutine[Any, Any, None], str], object]


class StreamAudio:
    """Audio on its way into Redis.

    on_room: called when there is room again, after `append` has said that there is none.
    on_failure: called instead where there will be none, and nobody else tells of it.
    finished: whether a final mark was queued.
    """

    __slots__ = (
        "_appender",
        "_held",
        "_held_bytes",
        "_on_failure",
        "_on_room",
        "_settled",
        "_start_task",
        "finished",
    )

    def __init__(
        self, start_task: StartTask, on_room: Callable[[], None], on_failure: Callable[[StreamError], None]
    ) -> None:
        self._start_task = start_task
        self._on_failure = on_failure
        self._on_room: Callable[[], None] | None = on_room  # None while it is waited for
        self._appender: Appender | None = None
        self._held: list[Audio | Finalize | Phrases] = []
        self._held_bytes = 0
        self._settled = asyncio.Event()  # the stream was created, or could not be
        self.finished = False

    def append(self, audio: Audio) -> bool:
        """Append audio; False asks to stop reading until there is room."""
        if audio.final:
            self.finished = True
        elif not audio.payload:
            return True  # nothing, which would wait in any number and weigh nothing
        appender = self._appender
        if appender is not None and appender.failed is None:
            appender.append(audio)
            if appender.pending_bytes <= MAX_PENDING_BYTES:
                return True
            return self._is_full()
        return self._put(audio, len(audio.payload))

    def finalize(self) -> bool:
        """Ask for a result of all audio so far; False asks to stop reading until there is room."""
        return self.finished or self._put(_FINALIZE, FINALIZE_BYTES)

    def replace_phrases(self, change: Phrases) -> bool:
        """Replace the phrases behind all audio so far; False asks to stop reading until there is room."""
        return self.finished or self._put(change, phrases_bytes(change))

    def _put(self, item: Audio | Finalize | Phrases, size: int) -> bool:
        appender = self._appender
        if appender is None:
            if self._settled.is_set():
                return True  # it could not be created
            self._held.append(item)
            self._held_bytes += size
            pending = self._held_bytes
        elif appender.failed is not None:
            return True  # the failure is on its way
        else:
            _append(appender, item)
            pending = appender.pending_bytes
        return pending <= MAX_PENDING_BYTES or self._is_full()

    def _is_full(self) -> bool:
        """Tell of room once there is some; False, for it was asked for too much."""
        if self._on_room is not None:
            on_room, self._on_room = self._on_room, None
            self._start_task(self._wait_for_room(on_room), "room")
        return False

    def finish(self) -> None:
        """Append a final mark, unless there is one."""
        if not self.finished:
            self.append(_FINAL_MARK)

    def open(self, appender: Appender | None, *, finished: bool | None = None) -> None:
        """Append to a stream that is in Redis, first what was held; None where nothing can be appended.

        finished: whether its audio has ended, where another connection began it.
        """
        self._appender = appender
        if finished is not None:
            self.finished = finished
        held, self._held, self._held_bytes = self._held, [], 0
        for item in held:
            if appender is not None and appender.failed is None:
                _append(appender, item)
        self._settled.set()

    def set_owner(self, worker: WorkerId) -> None:
        """Note the worker whose ready set gets the stream when audio comes."""
        if self._appender is not None:
            self._appender.set_owner(worker)

    @property
    def pending_bytes(self) -> int:
        """Audio that Redis has not confirmed yet; for any thread."""
        appender = self._appender
        return self._held_bytes if appender is None else appender.pending_bytes

    @property
    def can_append(self) -> bool:
        """Whether audio, or a final mark, can be appended."""
        return self._appender is not None and self._appender.failed is None

    def begin_again(self) -> bool:
        """Give Redis, which has forgotten the stream, all of it anew; False where it is not all kept."""
        return self._appender is not None and self._appender.begin_again()

    def drop_kept(self) -> None:
        """Nothing of the stream will be needed again."""
        if self._appender is not None:
            self._appender.drop_kept()

    def drop_origin(self) -> None:
        """Note that the stream is not to be made anew from here."""
        if self._appender is not None:
            self._appender.drop_origin()

    def successor(self, log: AudioLog, on_failure: Callable[[Unavailable], None]) -> Appender | None:
        """Return a new appender behind the one that failed, for the final mark; None if there was none."""
        failed = self._appender
        if failed is None:
            return None
        return log.open(
            failed.keys,
            on_failure,
            connection=failed.connection,
            next_seq=failed.next_seq,
            first_sample=failed.first_sample,
        )

    async def _wait_for_room(self, on_room: Callable[[], None]) -> None:
        try:
            await self._settled.wait()
            if self._appender is None:
                return
            await self._appender.room(RESUME_READING_BYTES)
        except StreamError:
            return  # the failure is told
        except Exception:
            # The client would wait for ever: nobody else tells it to go on.
            logger.exception("a stream cannot go on")
            self._on_failure(InternalFault())
            return
        finally:
            self._on_room = on_room
        on_room()


def _append(appender: Appender, item: Audio | Finalize | Phrases) -> None:
    if isinstance(item, Audio):
        appender.append(item)
    elif isinstance(item, Phrases):
        appender.replace_phrases(item)
    else:
        appender.finalize()
