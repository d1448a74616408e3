"""What an attack did to honest streams and to the service, as figures beside their bounds, and as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from parakeet.bench.report import surroundings
from parakeet.check.verdict import Figure, percentile
from tests.attack.honest import Heard
from tests.attack.watch import Watch

NUM_HONEST: Final = 10
MAX_LATENCY_RATIO: Final = 1.5
# Buffers of as many connections as one core of attackers holds, and their uploads.
MAX_GROWTH_BYTES: Final = 256 << 20
SPARE_FILES: Final = 3


@dataclass(slots=True)
class Outcome:
    """All that was seen. left: keys at the end.   files: open descriptors of each role, before and after."""

    alone: Heard
    beside: Heard
    attack: dict[str, Any]
    watch: Watch
    files: dict[str, tuple[int, int]]
    memory_before: dict[str, int]
    left: list[str]
    log_faults: list[str]


def figures_of(seen: Outcome) -> list[Figure]:
    """What decides, each beside its bound."""
    alone, beside = (sorted(1000 * seconds for seconds in one.latency_s) for one in (seen.alone, seen.beside))
    other_texts = sum(
        texts != seen.alone.texts.get(number) for number, texts in seen.beside.texts.items()
    ) + sum(len(texts) != 1 for texts in seen.alone.texts.values())
    bound_ms = MAX_LATENCY_RATIO * percentile(alone, 99)
    figures = [
        Figure("streams that failed", len(seen.alone.failures) + len(seen.beside.failures), 0),
        Figure("recordings with another text", other_texts, 0),
        Figure(
            "streams that ended well beside the attack", seen.beside.num_streams, NUM_HONEST, at_most=False
        ),
        Figure("latency of results, p99", percentile(beside, 99), bound_ms, "ms", 1),
        Figure("processes that were restarted", sum(len(pids) - 1 for pids in seen.watch.pids.values()), 0),
        Figure("keys of streams left", len(seen.left), 0),
        Figure("faults in the log", len(seen.log_faults), 0),
        Figure("strangers that were served", len(seen.attack["leaks"]), 0),
    ]
    for role, before in seen.memory_before.items():
        most = max(seen.watch.memory_bytes[role])
        figures.append(
            Figure(f"memory of the {role}, most", most / 1e6, (before + MAX_GROWTH_BYTES) / 1e6, "MB")
        )
        first, last = seen.files[role]
        figures.append(Figure(f"descriptors of the {role} at the end", last, first + SPARE_FILES))
    return figures


def report(seen: Outcome, figures: Sequence[Figure], command: str) -> str:
    """Return the table, in the form of benchmarks/results."""
    where, share = surroundings(), seen.attack["core_share"]
    lines = [
        f"# Ten honest streams beside an attack, {time.strftime('%Y-%m-%d')}",
        "",
        f"    {command}",
        "",
        f"{where['cores']} cores ({where['processor']}), Python {where['python']}, commit {where['commit']};",
        "the tiny model on CPU, one ingress, one worker. The attackers are bound to the last core, of which",
        f"they used {share:.2f}. Service and honest clients are bound to none, with and without the attack.",
        "While the streams are alone, an innocent process uses all of the attackers' core.",
        "",
        "| | measured | bound | |",
        "|---|---|---|---|",
    ]
    for figure in figures:
        word = "at most" if figure.at_most else "at least"
        value, bound = (
            f"{number:.{figure.decimals}f} {figure.unit}".strip() for number in (figure.value, figure.bound)
        )
        lines.append(f"| {figure.name} | {value} | {word} {bound} | {'ok' if figure.passed else 'FAILED'} |")
    lines += [
        "",
        "| honest streams | alone, the attackers' core kept busy | beside the attack |",
        "|---|---|---|",
    ]
    rows: list[tuple[str, ...]] = [("streams", str(seen.alone.num_streams), str(seen.beside.num_streams))]
    for name, values in (("results", "latency_s"), ("finals", "final_s")):
        cells = []
        for heard in (seen.alone, seen.beside):
            told = sorted(1000 * seconds for seconds in getattr(heard, values))
            cells.append(
                ", ".join(f"{percentile(told, at):.1f}" for at in (50, 95, 99)) + f", {max(told):.1f}"
            )
        rows.append((f"latency of {name}: p50, p95, p99, most, ms", *cells))
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += [
        "",
        "| role | memory before, most, at the end, MB | descriptors before, most, at the end |",
        "|---|---|---|",
    ]
    for role, before in seen.memory_before.items():
        memory, files = seen.watch.memory_bytes[role], seen.watch.files[role]
        lines.append(
            f"| {role} | {before / 1e6:.0f}, {max(memory) / 1e6:.0f}, {memory[-1] / 1e6:.0f} |"
            f" {seen.files[role][0]}, {max(files)}, {seen.files[role][1]} |"
        )
    actions = sorted(seen.attack["actions"].items())
    lines += ["", "| attack | times |", "|---|---|", *(f"| {kind} | {count} |" for kind, count in actions)]
    answers = ", ".join(f"{answer!r} {count}" for answer, count in seen.attack["answers"].items())
    lines += ["", f"How the answers began: {answers}.", ""]
    for title, found in (
        ("Failures", seen.alone.failures + seen.beside.failures),
        ("Faults in the log", seen.log_faults),
        ("Served strangers", seen.attack["leaks"]),
        ("Keys left", seen.left),
    ):
        if found:
            lines += [f"{title}:", "", *(f"    {one[:300]}" for one in found[:10]), ""]
    failed = "; ".join(figure.name for figure in figures if not figure.passed)
    return "\n".join([*lines, f"FAIL: {failed}" if failed else "PASS", ""])


def unfinished(command: str, doing: str, heard: Sequence[Heard], error: BaseException | None = None) -> str:
    """Return what is known of a run that is under way, or ended early by an error."""
    lines = [f"    {command}", ""]
    for name, one in zip(("alone", "beside the attack"), heard, strict=False):
        told = sorted(1000 * seconds for seconds in list(one.latency_s))
        p99 = f"{percentile(told, 99):.1f} ms" if told else "none yet"
        ended = f"{one.num_streams} streams ended well, {len(one.failures)} failed"
        lines.append(f"{name}: {ended}, p99 of results {p99}")
    if error is None:
        lines += ["", f"UNFINISHED: {doing}."]
    else:
        lines += ["", f"FAIL: ended early ({doing}): {type(error).__name__}: {error}"]
    return "\n".join([*lines, ""])
