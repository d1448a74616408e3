"""All measurements on a GPU host, in stages, which start only if they fit into the remaining time.

    python -m benchmarks.gpu_plan --list
    python -m benchmarks.gpu_plan --budget-s 560 --out results            # again and again, until all is done
    python -m benchmarks.gpu_plan --budget-s 560 --out results --copy-to /kept   # and kept there, too
    python -m benchmarks.gpu_plan --budget-s 560 --out results --gpus 2   # stages side by side, one a GPU
    python -m benchmarks.gpu_plan --only churn --budget-s 560 --out results
    python -m benchmarks.gpu_plan --rehearse --budget-s 240 --out /tmp/rehearsal

It is in stages because a GPU host is often rented by the minute and may be taken away: what was measured is
kept, and the next host goes on from there.

`--out` is a folder of few files: `stages.jsonl`, a line for each stage that was begun, with its outcome, its
last JSON line and the end of what it printed; `engine_trials.jsonl` and `service_trials.jsonl`, the trials
of the searches; traces to open.  A stage whose outcome is "done" is not begun again, one that ran out of
time goes on at the next call, one that failed or was stopped is left alone until `--only` names it.  Stages
run in the order of the list, those of a GPU of its own first; those that need the whole host follow, one
by one.  What has been written so far is copied to `--copy-to` after each stage: a call that is cut off loses
one stage at most.

`--rehearse` runs the commands that need no CUDA with a tiny model and short trials on a CPU, beside one stage
that fails and one that hangs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.command_line import command_line
from benchmarks.engine import UNFINISHED, read_results
from benchmarks.service_level import run_group
from benchmarks.trials.capacity import Budget
from parakeet.bench.report import commit

PYTHON: Final = sys.executable
# A stage that was stopped must still be recorded.
_CLOSING_S: Final = 5
_KEPT_CHARACTERS: Final = 12_000
# Of a trial of two minutes: start-up with kernels to compile, streams that arrive, the trial itself.
_PROOF_S: Final = 175
_PROOF_LIMIT_S: Final = 260


@dataclass(frozen=True, slots=True)
class Stage:
    """One measurement: a command, and its needs.

    need_s: it is not begun with less time left.  limit_s: it is stopped after so long; a stage that is
    told the time left (`{left}` in its command) stops by itself.  after: stages whose results it reads.
    alone: it wants the whole host.
    """

    name: str
    command: tuple[str, ...]
    need_s: float
    limit_s: float
    after: tuple[str, ...] = ()
    alone: bool = False


def stages(out: Path, *, churn_minutes: float) -> list[Stage]:
    """Return all stages, the most valuable first."""
    engine: tuple[str, ...] = (
        PYTHON,
        "-m",
        "benchmarks.engine",
        "--results",
        str(out / "engine_trials.jsonl"),
    )
    service: tuple[str, ...] = (PYTHON, "-m", "benchmarks.service_level")
    service += ("--results", str(out / "service_trials.jsonl"))
    # A plugin that may be installed there warns of -n, and warnings are errors.
    tests: tuple[str, ...] = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark")
    tests += ("--timeout", "300", "tests/gpu")
    starts = {"large-160": 11_000, "small-160": 12_000, "large-80": 7_000, "large-1120": 11_000}
    paths = (*tests[:-1], "-n", "0")
    made = [
        Stage(
            "tests:engine", (*paths, "tests/gpu/test_engine.py", "-k", "audio_brings or TestGraphs"), 90, 300
        ),
        Stage("tests:training", (*paths, "tests/gpu/test_training.py"), 60, 240),
        *_proofs(engine),
        *_files(out),
        *_phrases(engine),
        Stage("gpu-tests", (*tests, "-n", "4", "-k", "not word_error"), 120, 420),
        Stage("accuracy", (*tests, "-n", "0", "-s", "-k", "word_error"), 45, 150),
    ]
    for row, start in starts.items():
        search = ("--row", row, "--start", str(start), "--trials", "2", "--budget-s", "{left}")
        made.append(Stage(f"row:{row}", (*engine, *search), 65, 600))
    for row in starts:
        share = ("--row", row, "--at-share", "0.8", "--search-s", "20")
        made.append(Stage(f"share:{row}", (*engine, *share), 65, 120, after=(f"row:{row}",)))
    for row in starts:
        trace = ("--steps", "--row", row, "--profile", str(out / f"trace-{row}.json"))
        made.append(Stage(f"steps:{row}", (*engine, *trace), 60, 150))
    for row in ("large-160", "small-160", "large-80", "large-1120"):
        model, chunk_ms = row.split("-")
        nemo = (PYTHON, "-m", "benchmarks.nemo_step", "--model", model, "--chunk-ms", chunk_ms)
        made.append(Stage(f"nemo:{row}", nemo, 60, 180))
    minutes = ("--churn", f"{churn_minutes}", "--row", "small-160", "--streams", "4096")
    churn_s = 60 * churn_minutes
    made.append(Stage("churn", (*engine, *minutes), churn_s + 45, churn_s + 90))
    searched = ("--trials", "3", "--budget-s", "{left}")
    for model, streams in (("large", "1500"), ("small", "2000")):
        command: tuple[str, ...] = (*service, "--model", model, "--start", streams, "--num-ingress", "6")
        command += searched
        made.append(Stage(f"service:{model}-160", command, 150, 600, alone=True))
    null = ("--backend", "null", "--start", "4000", "--trials", "1", "--num-workers", "2")
    command = (*service, *null, "--num-ingress", "6", "--final-s", "60", "--budget-s", "{left}")
    made.append(Stage("service:null-4000", command, 150, 300, alone=True))
    return made


def _proofs(engine: tuple[str, ...]) -> list[Stage]:
    """List loads that are to pass with the defaults, thrice each; then other paces, loads and snapshots."""
    made = []
    for row, streams in (("large-160", "10000"), ("small-160", "14000")):
        proof = (
            *engine,
            "--one-trial",
            "--must-pass",
            "--row",
            row,
            "--streams",
            streams,
            "--seconds",
            "120",
        )
        name = f"proof:{row}-{streams}"
        made.append(Stage(f"{name}:1", proof, _PROOF_S, _PROOF_LIMIT_S))
        # A load that fails once is not tried again.
        made += [Stage(f"{name}:{n}", proof, _PROOF_S, _PROOF_LIMIT_S, (f"{name}:1",)) for n in (2, 3)]
    for name, switches in (
        ("small-160-14000-unpaced", ("--row", "small-160", "--streams", "14000", "--pace-ms", "0")),
        ("large-160-12000", ("--row", "large-160", "--streams", "12000")),
        ("large-160-10000-state", ("--row", "large-160", "--streams", "10000", "--snapshots", "state")),
    ):
        trial = (*engine, "--one-trial", *switches, "--seconds", "120")
        made.append(Stage(f"trial:{name}", trial, _PROOF_S, _PROOF_LIMIT_S))
    return made


def _files(out: Path) -> list[Stage]:
    """List uploads of recordings."""
    command = (PYTHON, "-m", "benchmarks.file_rate", "--models", str(out / "models"), "--must-pass")
    return [
        Stage(f"files:{model}", (*command, "--model", model, "--chunk-ms", chunks), need_s, 300)
        for model, chunks, need_s in (("large", "160,1120", 120), ("small", "160", 80))
    ]


def _phrases(engine: tuple[str, ...]) -> list[Stage]:
    """List what phrases cost a step, and lists that come and go: with none, a few and all streams boosted."""
    # So many lists are not made within the seconds that streams take to begin by default.
    trial = (*engine, "--one-trial", "--must-pass", "--row", "small-160", "--streams", "4096")
    trial += ("--seconds", "30", "--arrival-s", "20")
    return [
        Stage("phrases:steps", (PYTHON, "-m", "benchmarks.phrase_steps", "--must-pass"), 75, 200),
        *(
            Stage(
                f"phrases:{boosted}-{lists}", (*trial, "--boosted", boosted, "--phrase-lists", lists), 75, 180
            )
            for boosted, lists in (("0", "0"), ("0.01", "100"), ("1", "100"))
        ),
    ]


def rehearsal(out: Path) -> list[Stage]:
    """Return the same commands, small and short, on a CPU."""
    engine: tuple[str, ...] = (
        PYTHON,
        "-m",
        "benchmarks.engine",
        "--results",
        str(out / "engine_trials.jsonl"),
    )
    engine += ("--device", "cpu", "--row", "mini-160")
    service: tuple[str, ...] = (PYTHON, "-m", "benchmarks.service_level")
    service += ("--results", str(out / "service_trials.jsonl"))
    service += ("--models", str(out / "models"), "--search-s", "4", "--final-s", "6", "--trials", "1")
    service += ("--num-ingress", "1", "--bench-processes", "1", "--redis-mb", "500", "--budget-s", "{left}")
    files = (PYTHON, "-m", "benchmarks.file_rate", "--device", "cpu")
    short = ("--search-s", "2", "--final-s", "4", "--trials", "1", "--start", "4", "--budget-s", "{left}")
    return [
        Stage("gpu-tests", (PYTHON, "-c", "raise SystemExit('no GPU here: this stage fails')"), 5, 30),
        Stage("row:mini-160", (*engine, *short), 45, 200),
        Stage("share:mini-160", (*engine, "--at-share", "0.8", "--search-s", "2"), 30, 60, ("row:mini-160",)),
        Stage("churn", (*engine, "--churn", "0.1", "--streams", "8"), 20, 60),
        *(
            Stage(
                f"{name}:mini-160",
                (*engine, "--one-trial", "--streams", "4", "--seconds", "2", *more),
                30,
                90,
            )
            for name, more in (
                ("proof", ("--must-pass",)),
                ("unpaced", ("--pace-ms", "0")),
                ("state", ("--snapshots", "state")),
                ("phrases", ("--boosted", "1", "--phrase-lists", "2")),
            )
        ),
        Stage(
            "phrase-steps:mini-160",
            (
                *(PYTHON, "-m", "benchmarks.phrase_steps", "--device", "cpu", "--row", "mini-160"),
                *("--streams", "8", "--steps", "4", "--rounds", "2"),
            ),
            30,
            90,
        ),
        Stage("files:tiny-160", (*files, "--model", "tiny", "--minutes", "0.5", "--files", "1,2"), 60, 200),
        Stage("hangs", (PYTHON, "-c", "import time; time.sleep(3600)"), 3, 3),
        Stage(
            "service:mini-160",
            (*service, "--model", "mini", "--device", "cpu", "--start", "4"),
            90,
            300,
            alone=True,
        ),
        Stage("service:null", (*service, "--backend", "null", "--start", "20"), 90, 300, alone=True),
    ]


class Ledger:
    """The record of the stages, in one file; safe to use from several threads.

    Args:
        path: of the file.
        copy_to: gets a copy of the file, and of the trials beside it, whenever something was done.
    """

    def __init__(self, path: Path, copy_to: Path | None = None) -> None:
        self._path, self._copy_to = path, copy_to
        self._lock = threading.Lock()
        self._outcomes = {told["stage"]: told["outcome"] for told in read_results(path)}

    def outcome(self, stage: str) -> str | None:
        """Return the outcome of the last run of a stage; None if it never ran."""
        with self._lock:
            return self._outcomes.get(stage)

    def add(self, told: dict[str, Any]) -> None:
        """Record a stage."""
        with self._lock:
            self._outcomes[told["stage"]] = told["outcome"]
            with self._path.open("a") as file:
                file.write(json.dumps(told) + "\n")
            if self._copy_to is not None:
                self._copy_to.mkdir(parents=True, exist_ok=True)
                for written in self._path.parent.glob("*.jsonl"):
                    shutil.copy(written, self._copy_to)
        print(f"{told['stage']}: {told['outcome']} after {told['seconds']} s", flush=True)
        if told["outcome"] != "done":
            print(told["printed"][-1500:], flush=True)


def run_stage(stage: Stage, ledger: Ledger, budget: Budget, gpu: int | None) -> None:
    """Run a stage to its end, its limit or that of the time left, and record it."""
    limit_s = min(stage.limit_s, budget.left_s - _CLOSING_S)
    left = str(int(limit_s - _CLOSING_S))
    command = [part.replace("{left}", left) for part in stage.command]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    started = time.monotonic()
    status, printed = run_group(command, limit_s, env=environment)
    outcome = {0: "done", UNFINISHED: "unfinished", None: "stopped"}.get(status, "failed")
    ledger.add(
        {
            "stage": stage.name,
            "outcome": outcome,
            "status": status,
            "seconds": round(time.monotonic() - started, 1),
            "commit": commit(),
            "command": command,
            "result": _last_json(printed),
            "printed": printed[-_KEPT_CHARACTERS:],
        }
    )


def _last_json(printed: str) -> Any:
    for line in reversed(printed.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def run_all(waiting: Sequence[Stage], ledger: Ledger, budget: Budget, gpus: int) -> list[str]:
    """Run the stages that fit into the time; return the names of those that did not."""
    queue = [stage for stage in waiting if not stage.alone]
    lock, names = threading.Lock(), {stage.name for stage in waiting}

    def lacks(name: str) -> bool:
        """Return whether a stage that another one reads was begun, or waits, and is not done."""
        outcome = ledger.outcome(name)
        return outcome != "done" and (outcome is not None or name in names)

    def take() -> Stage | None:
        """Return the first stage that fits and has what it reads; None when there is none now."""
        with lock:
            for stage in queue:
                if budget.left_s < stage.need_s + _CLOSING_S:
                    continue
                if any(lacks(name) for name in stage.after):
                    continue
                queue.remove(stage)
                return stage
        return None

    def serve(gpu: int | None) -> None:
        while (stage := take()) is not None:
            run_stage(stage, ledger, budget, gpu)

    if gpus > 1:
        threads = [threading.Thread(target=serve, args=(gpu,), name=f"gpu-{gpu}") for gpu in range(gpus)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # What a stage reads may have come from another GPU after this one had run out of work.
    serve(None)
    left = [stage.name for stage in queue]
    for stage in waiting:
        if stage.alone:
            if budget.left_s < stage.need_s + _CLOSING_S:
                left.append(stage.name)
            else:
                run_stage(stage, ledger, budget, None)
    return left


def main() -> int:
    """Command line.  0 when every stage is done."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of results")
    parser.add_argument("--copy-to", type=Path, help="a folder that gets what was written, after each stage")
    parser.add_argument("--budget-s", type=float, default=540, help="time of this call")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to run stages on side by side")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="run these stages, done before or not")
    parser.add_argument("--skip", nargs="+", metavar="STAGE", default=(), help="leave these stages out")
    parser.add_argument("--churn-minutes", type=float, default=8, help="length of the stage `churn`")
    parser.add_argument("--rehearse", action="store_true", help="run short trials of a tiny model on a CPU")
    parser.add_argument("--list", action="store_true", help="name the stages and their outcomes, run nothing")
    given = parser.parse_args()
    budget = Budget.of(given.budget_s)
    given.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(given.out / "stages.jsonl", given.copy_to)
    known = rehearsal(given.out) if given.rehearse else stages(given.out, churn_minutes=given.churn_minutes)
    if given.list:
        for stage in known:
            print(f"{stage.name:22} {ledger.outcome(stage.name) or '-':11} needs {stage.need_s:.0f} s")
        return 0
    unknown = {*(given.only or ()), *given.skip} - {stage.name for stage in known}
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    if given.only:
        waiting = [stage for stage in known if stage.name in given.only]
    else:
        waiting = [
            stage
            for stage in known
            if stage.name not in given.skip and ledger.outcome(stage.name) in (None, "unfinished")
        ]
    left = run_all(waiting, ledger, budget, given.gpus)
    if left:
        print(f"no time for: {', '.join(left)}", flush=True)
    return 0 if all(ledger.outcome(stage.name) == "done" for stage in known) else 1


if __name__ == "__main__":
    sys.exit(main())
