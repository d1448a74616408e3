"""Results of a client's stream that wait for the caller, and how the stream ended."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import Final

from common.messages import Result
from parakeet.client.errors import ClientError

# Each result carries the whole transcript, so this bounds the memory of a caller that reads nothing yet.
MAX_WAITING_RESULTS: Final = 1000


def merge_results(earlier: Result, later: Result) -> Result:
    """Merge two neighbouring partial results into one that covers both, as a server does."""
    return replace(
        later,
        token_ids=earlier.token_ids + later.token_ids,
        confidence_scores=earlier.confidence_scores + later.confidence_scores,
        words=None if later.words is None else (earlier.words or ()) + later.words,
        utterances=earlier.utterances + later.utterances,
        seq_first=earlier.seq_first or earlier.seq,
    )


class ResultBuffer:
    """Results in order, then the end: the final result or a failure. No call waits after the end.

    Putting never waits: a caller that has not begun to read would otherwise stop the socket, and with it the
    acknowledgements that let the caller send. Beyond `max_waiting`, neighbouring partial results are merged.
    """

    def __init__(self, max_waiting: int = MAX_WAITING_RESULTS) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[Result] = deque()
        self._news = asyncio.Event()
        self.final: Result | None = None
        self.failure: ClientError | None = None

    @property
    def ended(self) -> bool:
        """Whether the final result or a failure has come."""
        return self.final is not None or self.failure is not None

    def put(self, result: Result) -> None:
        """Take the next result."""
        if result.is_final:
            self.final = result
        elif len(self._waiting) >= self._max_waiting:
            result = merge_results(self._waiting.pop(), result)
        self._waiting.append(result)
        self._news.set()

    def fail(self, error: ClientError) -> None:
        """End with a failure, unless the end has come already."""
        if not self.ended:
            self.failure = error
            self._news.set()

    async def next(self) -> Result | None:
        """Return the next result, None after the final one. Raises the failure after the results before."""
        while not self._waiting:
            if self.failure is not None:
                raise self.failure
            if self.final is not None:
                return None
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()


class WholeText:
    """The transcript of a stream, with which each result for the caller has the whole text."""

    def __init__(self) -> None:
        self._text = ""

    def of(self, result: Result) -> Result:
        """Return the result with the whole text, also if the server sends only the new part."""
        self._text = self._text[: result.text_from] + result.text
        return replace(result, text=self._text)
