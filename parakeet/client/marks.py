"""Messages of a client that have a place in its audio: `finalize` and `phrases`."""

from __future__ import annotations

from collections import deque

from common.messages import Finalize, Phrases

Mark = Finalize | Phrases


class Marks:
    """Marks to send, and marks that were sent and may have been lost with the connection.

    Positions are samples of the stream. A `finalize` may be lost until it is answered, `phrases` until audio
    after them is decoded.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Mark]] = deque()
        self._sent: deque[tuple[int, Mark]] = deque()

    def add(self, place: int, mark: Mark) -> None:
        """Take the next message."""
        self._waiting.append((place, mark))

    def due(self, written: int) -> Mark | None:
        """Return the next message, once the audio before it is written; else None."""
        if self._waiting and self._waiting[0][0] <= written:
            return self._waiting[0][1]
        return None

    def sent(self) -> None:
        """Note that the due message is written."""
        self._sent.append(self._waiting.popleft())

    def answered(self) -> None:
        """Note an answer to the first unanswered `finalize`."""
        for number, (_, mark) in enumerate(self._sent):
            if isinstance(mark, Finalize):
                del self._sent[number]
                return

    def decoded(self, samples: int) -> None:
        """Note how many samples the server has decoded."""
        while self._sent and isinstance(self._sent[0][1], Phrases) and self._sent[0][0] < samples:
            self._sent.popleft()

    def repeat(self) -> None:
        """Queue the marks again that the connection may have lost."""
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
