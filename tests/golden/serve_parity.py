"""Tokens of the running service beside NeMo's offline ones.

`python -m tests.golden.serve_parity small tiny` starts `parakeet-server serve --model NAME.nemo` on what
`make golden` made, streams the clips over WebSocket connections side by side in messages of random sizes,
and prints how many tokens differ; the exit status is 0 when none does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.messages import Encoding
from parakeet.client import connect
from tests.e2e.serve_process import ServeProcess
from tests.golden.cache import CACHE, CONTEXTS, clips, decoding, reference, reference_names

START_TIMEOUT_S = 180.0
STREAM_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
MAX_MESSAGE_SAMPLES = 16_000
PARALLEL_STREAMS = 8


@dataclass(frozen=True, slots=True)
class Tally:
    """Tokens of the reference, and how many of them the service gave otherwise."""

    tokens: int
    differing: int


@contextlib.contextmanager
def serving(name: str, chunk_ms: int) -> Iterator[str]:
    """The service with a checkpoint under one context; yields its WebSocket address."""
    flags = ("--chunk-ms", str(chunk_ms), "--eou-reset", "off")
    with ServeProcess("--backend", "native", "--model", str(CACHE / name / f"{name}.nemo"), *flags) as serve:
        serve.wait_until_ready(START_TIMEOUT_S)
        yield serve.ws_url
        serve.stop(timeout_s=STOP_TIMEOUT_S)


async def stream_tokens(url: str, clip: str, seed: int) -> list[int]:
    """All token ids of one clip, in order."""
    random = np.random.default_rng(seed)
    samples = clips()[clip].samples
    tokens: list[int] = []

    async def send() -> None:
        position = 0
        while position < len(samples):
            size = int(random.integers(1, MAX_MESSAGE_SAMPLES))
            await stream.send(samples[position : position + size].tobytes(), Encoding.F32)
            position += size
        await stream.finish()

    async with asyncio.timeout(STREAM_TIMEOUT_S), await connect(url) as stream, asyncio.TaskGroup() as tasks:
        tasks.create_task(send(), name=f"send {clip}")
        async for result in stream.results():
            tokens += result.token_ids
    return tokens


def differences(found: list[int], expected: list[int]) -> int:
    """Positions where two sequences differ, what one has more among them."""
    unequal = sum(one != other for one, other in zip(found, expected, strict=False))
    return unequal + abs(len(found) - len(expected))


async def stream_all(url: str, name: str, context: tuple[int, int]) -> Tally:
    """Stream every clip with a reference, several at a time."""
    names = reference_names(name, context)
    limit = asyncio.Semaphore(PARALLEL_STREAMS)

    async def one(number: int, clip: str) -> Tally:
        async with limit:
            found = await stream_tokens(url, clip, number)
        expected = decoding(reference(name, context, clip), reset=False).tokens
        return Tally(len(expected), differences(found, expected))

    tallies = await asyncio.gather(*(one(number, clip) for number, clip in enumerate(names)))
    return Tally(sum(tally.tokens for tally in tallies), sum(tally.differing for tally in tallies))


def compare(name: str) -> Tally:
    """Compare one checkpoint at each of its contexts, and print a line for each."""
    tokens = differing = 0
    for context in CONTEXTS[name]:
        chunk_ms = 80 * (context[1] + 1)
        with serving(name, chunk_ms) as url:
            tally = asyncio.run(stream_all(url, name, context))
        print(f"{name} at {chunk_ms} ms: {tally.differing} differing tokens among {tally.tokens}", flush=True)
        tokens += tally.tokens
        differing += tally.differing
    return Tally(tokens, differing)


def main() -> int:
    """Compare the named checkpoints; 0 when no token differs among at least 1,000."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", default=["small", "tiny"], choices=sorted(CONTEXTS))
    tallies = {name: compare(name) for name in parser.parse_args().names}
    for name, tally in tallies.items():
        print(f"{name}: {tally.differing} differing tokens among {tally.tokens}")
    return int(any(tally.differing or tally.tokens < 1000 for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
