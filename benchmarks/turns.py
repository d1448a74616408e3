"""How soon the end of an utterance is reported, how often falsely, and how often not at all.

    python -m benchmarks.turns [--model-size tiny | --model PATH] [--usr FOLDER] [--out FILE.json]
    python -m benchmarks.turns --sources streams --defaults   (streams of benchmarks/corpora/turn_streams.py)

Plays sessions with known ends (benchmarks/corpora/turn_corpus.py) through model and speech detector once
(benchmarks/corpora/turn_trace.py) and through endpointing under many settings. Positions are of audio:

- latency: from the last sample of an utterance to the end of the chunk whose result reports its end;
  `decided` to the position at which it was decided, inside that chunk. A service adds its own time on
  top, and with smart-turn up to one call of it.
- false end: any reported end but the first one after each utterance. One up to 100 ms before the labelled
  end counts as right.
- missed: no end between an utterance and the start of the next (1.5 to 3.5 s), or the end of the stream.

Only sessions of odd number are counted unless --part says otherwise; settings are chosen on the others.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.command_line import command_line
from benchmarks.corpora.asterisk import RATE
from benchmarks.corpora.turn_corpus import Session, build, load, save
from benchmarks.corpora.turn_streams import SOURCE as STREAMS
from benchmarks.corpora.turn_streams import stream_sessions
from benchmarks.corpora.turn_trace import Trace, play, record
from benchmarks.results_file import ROOT, in_checkout, write_results
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.turn.outcome import Cause
from gpu_worker.turn.settings import Signal, TurnSettings
from gpu_worker.turn.smart_turn import SmartTurn

EARLY_SAMPLES = RATE // 10
THRESHOLD = 0.7

Ends = Callable[[Trace], Iterator[tuple[int, int]]]
"""Of a trace, (end of the chunk that reports it, position at which it was decided) of every end."""


@dataclass(frozen=True, slots=True)
class Score:
    """Figures of one system on one set of sessions; latencies in milliseconds."""

    system: str
    setting: str
    source: str
    utterances: int
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    decided_p50_ms: float | None
    decided_p95_ms: float | None
    false_ends_a_minute: float
    missed: int


def score(system: str, setting: str, source: str, traces: Sequence[Trace], ends_of: Ends) -> Score:
    """Compare the ends that a system reports with the labels."""
    reported: list[float] = []
    decided: list[float] = []
    num_utterances = num_false = num_missed = num_speech = 0
    for trace in traces:
        ends = list(ends_of(trace))
        utterances = trace.session.utterances
        limits = [utterance.start_sample for utterance in utterances[1:]] + [len(trace.session.samples)]
        num_hits = 0
        for utterance, limit in zip(utterances, limits, strict=True):
            num_utterances += 1
            num_speech += utterance.end_sample - utterance.start_sample
            hits = [end for end in ends if utterance.end_sample - EARLY_SAMPLES <= end[0] < limit]
            if not hits:
                num_missed += 1
                continue
            num_hits += 1
            reported.append((hits[0][0] - utterance.end_sample) * 1_000 / RATE)
            decided.append((hits[0][1] - utterance.end_sample) * 1_000 / RATE)
        num_false += len(ends) - num_hits
    return Score(
        system,
        setting,
        source,
        num_utterances,
        _percentile(reported, 50),
        _percentile(reported, 90),
        _percentile(reported, 95),
        _percentile(decided, 50),
        _percentile(decided, 95),
        round(num_false / (num_speech / RATE / 60), 2),
        num_missed,
    )


def endpointing(settings: TurnSettings, model: SmartTurn, threshold: float) -> Ends:
    """Return what the server reports, without the end that the end of the stream brings."""

    def ends(trace: Trace) -> Iterator[tuple[int, int]]:
        outcomes = play(trace, settings, model, threshold)
        for chunk, told in zip(trace.chunks, outcomes, strict=True):
            for outcome in told:
                if outcome.turn_detection == "end_of_utterance" and outcome.cause is not Cause.FINISHED:
                    assert outcome.decided_sample is not None
                    yield chunk.end_sample, outcome.decided_sample

    return ends


def tokens(trace: Trace) -> Iterator[tuple[int, int]]:
    """Yield the model's `<EOU>` tokens."""
    for chunk in trace.chunks:
        for sample in chunk.eou_samples:
            yield chunk.end_sample, sample


def servers(model: SmartTurn) -> Iterator[tuple[str, str, Ends]]:
    """Yield the server with its default settings, with smart-turn and without."""
    everything = TurnSettings(signals=frozenset(Signal))
    default = endpointing(everything, model, THRESHOLD)
    yield "fused", "defaults", default
    without = replace(everything, signals=frozenset({Signal.VAD, Signal.EOU}))
    yield "vad+eou", "defaults", endpointing(without, model, THRESHOLD)


def systems(model: SmartTurn) -> Iterator[tuple[str, str, Ends]]:
    """Yield every system with every setting of its sweep; the servers first."""
    yield from servers(model)
    everything = TurnSettings(signals=frozenset(Signal))
    without = replace(everything, signals=frozenset({Signal.VAD, Signal.EOU}))
    for silence_ms in (160, 224, 288, 320, 384, 448, 512, 640, 768, 832, 864, 900):
        settings = replace(without, eou_silence_ms=silence_ms)
        yield "vad+eou", f"<EOU> and {silence_ms} ms, else 1000 ms", endpointing(settings, model, THRESHOLD)
    for silence_ms in (96, 160, 320, 480, 640, 800, 864, 900, 1_000, 1_200):
        settings = replace(everything, signals=frozenset({Signal.VAD}), end_silence_ms=silence_ms)
        yield "silero-vad", f"silence {silence_ms} ms", endpointing(settings, model, THRESHOLD)
    yield "<EOU>", "token as it comes", tokens
    settings = replace(everything, signals=frozenset({Signal.EOU}))
    yield "<EOU>", f"in silence, else {settings.max_pause_ms} ms", endpointing(settings, model, THRESHOLD)
    for smart_ms in (96, 160, 192, 256):
        for threshold in (0.5, 0.7, 0.9):
            setting = f"at {smart_ms} ms from {threshold}"
            settings = replace(everything, signals=frozenset({Signal.SMART_TURN}), smart_silence_ms=smart_ms)
            yield (
                "smart-turn",
                f"{setting}, else {settings.max_pause_ms} ms",
                endpointing(settings, model, threshold),
            )
            for max_pause_ms in (640, 800, 1_000, 1_200, 1_500):
                settings = replace(
                    everything,
                    smart_silence_ms=smart_ms,
                    end_silence_ms=min(max_pause_ms, everything.end_silence_ms),
                    max_pause_ms=max_pause_ms,
                )
                yield (
                    "fused",
                    f"{setting}, else {max_pause_ms} ms",
                    endpointing(settings, model, threshold),
                )


def best_at(scores: Sequence[Score], false_ends_a_minute: float, percent: int) -> Score | None:
    """Return the setting with the least p50 or p95, with no more false ends and at most 2 % missed."""

    def latency(one: Score) -> float:
        value = one.p50_ms if percent == 50 else one.p95_ms
        return float("inf") if value is None else value

    allowed = [
        one
        for one in scores
        if one.false_ends_a_minute <= false_ends_a_minute and one.missed <= 0.02 * one.utterances
    ]
    return min(allowed, key=latency, default=None)


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 0) if values else None


def counted_sessions(arguments: argparse.Namespace) -> list[Session]:
    """Return the sessions of the part that is counted: those of odd number, of even number, or all."""
    if arguments.sessions:
        sessions = [one for one in load(arguments.sessions) if one.source in arguments.sources]
    else:
        sessions = build(
            [source for source in arguments.sources if source != STREAMS],
            recordings=ROOT / "parakeet" / "recordings",
            usr=arguments.usr,
            max_clips=arguments.max_clips,
        )
        if STREAMS in arguments.sources:
            sessions += stream_sessions(arguments.usr)
    wanted = {"test": {1}, "dev": {0}, "all": {0, 1}}[arguments.part]
    return [
        session
        for session in sessions
        # Recordings and streams are always counted, because settings are never chosen on them.
        if int(session.name.rpartition("-")[2]) % 2 in wanted or session.source in ("recordings", STREAMS)
    ]


def main() -> None:
    parser = command_line(__file__, __doc__)
    parser.add_argument("--model", help="folder, .nemo file or hub id; else --model-size")
    parser.add_argument("--model-size", default="tiny", help="model variant")
    parser.add_argument("--chunk-ms", type=int, nargs="+", default=[160, 80], help="audio of one model call")
    parser.add_argument(
        "--sources", nargs="+", default=["asterisk", "espeak", "recordings"], help="where utterances are from"
    )
    parser.add_argument(
        "--defaults", action="store_true", help="the server's defaults alone, without a sweep"
    )
    parser.add_argument(
        "--usr", type=Path, default=Path("/usr"), help="where Debian's packages are installed"
    )
    parser.add_argument("--max-clips", type=int, default=160, help="utterances of a source")
    parser.add_argument("--save", type=Path, help="write the sessions to this .npz and stop")
    parser.add_argument("--sessions", type=Path, help="sessions written by --save, instead of making them")
    parser.add_argument(
        "--part",
        choices=("test", "dev", "all"),
        default="test",
        help="sessions that are counted: those of odd number, of even number, all",
    )
    parser.add_argument("--out", type=Path, help="JSON; a table stands beside it as .md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sessions = counted_sessions(arguments)
    if arguments.save:
        save(sessions, arguments.save)
        return

    loaded = load_model(arguments.model, size=arguments.model_size)
    model = SmartTurn()
    lines: list[str] = []
    results: list[dict[str, object]] = []
    for chunk_ms in arguments.chunk_ms:
        traces = record(sessions, loaded, loaded.config.context_for_chunk(chunk_ms))
        for source in arguments.sources:
            mine = [trace for trace in traces if trace.session.source == source]
            chosen = servers(model) if arguments.defaults else systems(model)
            scores = [score(system, setting, source, mine, ends) for system, setting, ends in chosen]
            block = table(f"{source}, chunks of {chunk_ms} ms", scores)
            lines += block
            results += [{"chunk_ms": chunk_ms, **asdict(one)} for one in scores]
            print("\n".join(block), flush=True)
    if arguments.out:
        facts = {
            "model": in_checkout(loaded.source),
            "part": arguments.part,
            "speech_minutes": {source: speech_minutes(sessions, source) for source in arguments.sources},
        }
        write_results(arguments.out, "Ends of utterances", facts, lines, scores=results)


def speech_minutes(sessions: Sequence[Session], source: str) -> float:
    """Return the length of a source's utterances."""
    samples = sum(
        utterance.end_sample - utterance.start_sample
        for session in sessions
        if session.source == source
        for utterance in session.utterances
    )
    return round(samples / RATE / 60, 2)


def table(title: str, scores: Sequence[Score]) -> list[str]:
    """Markdown: what each system reaches, and of a sweep the best settings under limits of false ends."""
    head = [
        "",
        f"## {title}: {scores[0].utterances} utterances",
        "",
        "| system | setting | p50 | p90 | p95 ms | decided p50 | p95 ms | false a minute | missed |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    # The sweeps stand whole in the JSON; here what nothing else of its system beats.
    rows = [_row(one) for one in scores if one is scores[0] or not _is_beaten(one, scores)]
    if not any(one.system == "silero-vad" for one in scores):
        return [*head, *rows]
    tail = [
        "",
        "| no more false ends a minute than | silero-vad p50 | p95 | vad+eou p50 | p95 | fused p50 | p95 |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for limit in (0.5, 1.0, 2.0, 4.0, 8.0):
        cells = []
        for system in ("silero-vad", "vad+eou", "fused"):
            mine = [one for one in scores if one.system == system]
            for percent in (50, 95):
                best = best_at(mine, limit, percent)
                value = None if best is None else best.p50_ms if percent == 50 else best.p95_ms
                cells.append("-" if value is None else f"{value:.0f}")
        tail.append(f"| {limit} | " + " | ".join(cells) + " |")
    return [*head, *rows, *tail]


def _is_beaten(one: Score, scores: Sequence[Score]) -> bool:
    """Whether another setting of the system is no worse in any figure and better in one."""

    def figures(score_: Score) -> tuple[float, ...]:
        latencies = (score_.p50_ms, score_.p95_ms)
        shown = [float("inf") if value is None else value for value in latencies]
        return (*shown, score_.false_ends_a_minute, score_.missed)

    mine = figures(one)
    return any(
        theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))
        for theirs in (figures(other) for other in scores if other.system == one.system)
    )


def _row(one: Score) -> str:
    latencies = (one.p50_ms, one.p90_ms, one.p95_ms, one.decided_p50_ms, one.decided_p95_ms)
    shown = " | ".join("-" if value is None else f"{value:.0f}" for value in latencies)
    return f"| {one.system} | {one.setting} | {shown} | {one.false_ends_a_minute} | {one.missed} |"


if __name__ == "__main__":
    main()
