"""The command `check`: starts a stack, streams the recordings, prints a table, returns an exit status."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import ServiceError
from common.process.standard_streams import complain
from common.settings import CheckSettings, SettingsError, serve_argv
from parakeet.check.clips import clips
from parakeet.check.local_stack import LocalStack, StackFailed, running
from parakeet.check.trial import Reading, read_all, real_time_factor
from parakeet.check.verdict import Figure, judged, word_error_bound

_WORKER = re.compile(
    r"carries (?:(?P<least>at least )?(?P<streams>\d+) streams|.*?).*"
    r"model (?P<model>.+), device (?P<device>\S+), dtype (?P<dtype>\S+), chunk_ms (?P<chunk_ms>\d+)"
)


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """The facts in the worker's ready line.

    num_streams: streams that it carries in real time; None where it did not measure.
    """

    model: str
    device: str
    dtype: str
    chunk_ms: int
    num_streams: int | None

    @classmethod
    def read(cls, line: str) -> WorkerFacts:
        """Parse the worker's line of the log. Raises ServiceError."""
        found = _WORKER.search(line)
        if found is None:
            raise ServiceError(f"The worker's line cannot be read: {line}")
        streams = found["streams"]
        return cls(
            found["model"],
            found["device"],
            found["dtype"],
            int(found["chunk_ms"]),
            None if streams is None else int(streams),
        )


def run_check(settings: CheckSettings) -> int:
    """Check the model; return 0 if text and speed are within their bounds.

    Raises SettingsError for a backend that recognises nothing, ServiceError where the stack does not run.
    """
    if settings.backend == "null":
        raise SettingsError("--backend null reads nothing, so there is nothing to check.")
    stack = LocalStack(
        [*serve_argv(settings), "--num-workers", "1", "--log-format", "text"], settings.start_timeout_s
    )
    try:
        with running(stack):
            if not settings.json:
                sys.stdout.write("starting; a model that has to be fetched takes its time\n")
                sys.stdout.flush()
            stack.wait_until_ready()
            worker = WorkerFacts.read(stack.worker_line)
            url = f"ws://127.0.0.1:{stack.ws_port}"
            readings, factor = asyncio.run(_measured(url))
    except StackFailed as error:
        complain(f"The last lines of the stack:\n{error.log}")
        raise
    num_words = sum(one.words for one in readings)
    figures = judged(
        readings,
        most_errors=word_error_bound(settings.model_size, settings.model, worker.chunk_ms, num_words),
        real_time_factor=factor,
        chunk_ms=worker.chunk_ms,
        num_streams=worker.num_streams,
    )
    passed = all(figure.passed for figure in figures)
    if settings.json:
        sys.stdout.write(json.dumps(as_json(worker, readings, figures)) + "\n")
    else:
        sys.stdout.write(table(worker, readings, figures))
    return 0 if passed else 1


async def _measured(url: str) -> tuple[list[Reading], float]:
    return await read_all(url, clips()), await real_time_factor(url, clips())


def as_json(worker: WorkerFacts, readings: Sequence[Reading], figures: Sequence[Figure]) -> dict[str, Any]:
    """Return the result as JSON, for programs."""
    return {
        "passed": all(figure.passed for figure in figures),
        **{name: value for name, value in asdict(worker).items() if name != "num_streams"},
        "figures": [asdict(figure) | {"passed": figure.passed} for figure in figures],
        "recordings": [
            {
                "file": one.clip.path.name,
                "seconds": round(one.seconds, 2),
                "words": one.words,
                "errors": one.errors,
                "text": one.text,
                "spoken": one.clip.text,
            }
            for one in readings
        ],
    }


def table(worker: WorkerFacts, readings: Sequence[Reading], figures: Sequence[Figure]) -> str:
    """Return the result as a table, for people."""
    lines = [f"{worker.model} on {worker.device}, {worker.dtype}, chunks of {worker.chunk_ms} ms", ""]
    for one in readings:
        lines += [
            f"{one.clip.path.name}: {one.errors} of {one.words} words wrong",
            f"  read    {one.text}",
            f"  spoken  {one.clip.text}",
        ]
    width = max(len(figure.name) for figure in figures)
    lines.append("")
    for figure in figures:
        word = "at most" if figure.at_most else "at least"
        value, bound = (_number(figure, number) for number in (figure.value, figure.bound))
        verdict = "ok" if figure.passed else "FAILED"
        lines.append(f"{figure.name:<{width}}  {value:>9}  {word:<8} {bound:<9}  {verdict}")
    passed = all(figure.passed for figure in figures)
    return "\n".join([*lines, "", f"check {'passed' if passed else 'FAILED'}", ""])


def _number(figure: Figure, number: float) -> str:
    return f"{number:.{figure.decimals}f} {figure.unit}".rstrip()
