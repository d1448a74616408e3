"""One trial of lanes at engine level: processes with an engine each feed one device, without Redis.

Each lane is a process that runs a trial of its part of the streams over the steps of a lane; this process has
the device, and a thread that merges their rows, as a group has (gpu_worker/lanes).  A chunk is late if its
step ends more than a chunk's duration after its last sample was there. This rule is stricter than that of one
engine, because a lane does not know when the step began.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.trials.engine_trial import ARRIVAL_S, run_trial
from common.options import StreamOptions
from common.presence.served_model import ServedModel
from common.process.pace import Pace
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.steps import RingMemory
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.facts import LaneFacts
from gpu_worker.lanes.group import share_of
from gpu_worker.lanes.lane import join_group
from gpu_worker.lanes.port import LanePort, Share
from gpu_worker.lanes.segment import FlightSizes, LaneArea, SharedMemory
from gpu_worker.lanes.server import StepServer
from gpu_worker.turn.settings import TurnSettings

_START_S: Final = 120.0
_AROUND_S: Final = 60.0


@dataclass(slots=True)
class _Thread:
    """The thread that runs the device's steps, and its processor time."""

    server: StepServer
    cpu_s: float = 0.0

    def run(self) -> None:
        began_s = time.thread_time()
        self.server.run()
        self.cpu_s = time.thread_time() - began_s


@dataclass(slots=True)
class _Lane:
    process: subprocess.Popen[str]
    port: LanePort


def run_lanes(row: Any, given: Namespace, switches: Any) -> dict[str, Any]:
    """Build the device's engine, start lanes, and return their joint result."""
    from benchmarks.trials.engines import build, build_simulated, memory_bytes
    from benchmarks.trials.random_model import TOKENIZERS

    kept: list[SharedMemory] = []

    def rings(num_slots: int, num_samples: int) -> RingMemory:
        kept.append(SharedMemory.create("bench-rings", 4 * (num_slots + 1) * num_samples))
        return RingMemory(kept[-1].array("float32", (num_slots + 1, num_samples)))

    slots = -(-given.streams // given.lanes) * given.lanes
    if given.simulate:
        built = build_simulated(row, slots, given.simulated_ms, given.simulated_row_us, switches, rings=rings)
    else:
        built = build(row, slots, given.device, switches, rings)
    steps, tokenizer = built.engine.steps, TOKENIZERS[row.model]
    bell = Bell.create()
    thread = _Thread(StepServer(steps, bell))
    serving = threading.Thread(target=thread.run, name="steps", daemon=True)
    lanes = []
    for number in range(given.lanes):
        share = share_of(
            steps,
            number,
            given.lanes,
            words_taken=built.engine.book.end,
            num_tokens=tokenizer.vocab_size,
        )
        facts = LaneFacts(
            share.shape,
            share.first_slot,
            len(steps.rings.float32_SC),
            steps.rings.num_samples,
            tokenizer.model,
            None,
            {},
            ServedModel(row.model, "random", row.chunk_ms, "none", "none"),
            None,
            share.num_words,
        )
        streams = given.streams // given.lanes + (number < given.streams % given.lanes)
        lanes.append(
            _start(
                thread.server,
                bell,
                kept[0],
                share,
                facts,
                {
                    "streams": streams,
                    "seconds": given.seconds,
                    "replay_s": given.replay_seconds,
                    "pace_ms": given.pace_ms,
                    "arrival_s": getattr(given, "arrival_s", ARRIVAL_S),
                    "seed": number,
                },
            )
        )
    serving.start()
    try:
        for lane in lanes:
            assert lane.process.stdout is not None
            if lane.process.stdout.readline() != "ready\n":
                raise RuntimeError("a lane did not start")
        before = _busy_s(steps.stats)
        cpu_before, began = time.process_time(), time.monotonic()
        for lane in lanes:
            assert lane.process.stdin is not None
            lane.process.stdin.write("go\n")
            lane.process.stdin.flush()
        limit_s = given.seconds + ARRIVAL_S + _AROUND_S
        said = [json.loads(lane.process.communicate(timeout=limit_s)[0].splitlines()[-1]) for lane in lanes]
        wall_s = time.monotonic() - began
        process_s = time.process_time() - cpu_before
    finally:
        for lane in lanes:
            lane.process.kill()
            lane.process.wait()
            thread.server.remove(lane.port)
        thread.server.stop()
        serving.join(10)
    busy = (_busy_s(steps.stats) - before) / wall_s
    told = _together(said, thread, busy, process_s / wall_s, wall_s)
    return told | {
        "streams": given.streams,
        "seconds": given.seconds,
        "lanes": given.lanes,
        "device": built.device,
        "precision": built.precision,
        "capture_s": round(built.capture_s, 2),
        "stream_bytes": built.stream_bytes,
        "memory_bytes": memory_bytes(given.device),
        "rings_copied": bool(getattr(getattr(steps, "device_rings", None), "copies", False)),
        "level": "engine",
    }


def _together(
    said: list[dict[str, Any]], thread: _Thread, device_busy: float, group_cores: float, wall_s: float
) -> dict[str, Any]:
    """Return the joint result of all lanes, and the busiest part."""
    chunks = sum(one["chunks"] for one in said)
    rows = thread.server.step_rows
    shares = {
        "lane": max(one["thread_cores"] for one in said),
        "group's thread": thread.cpu_s / wall_s,
        "device": device_busy,
    }
    worst = {
        name: max(one[name] or 0.0 for one in said)
        for name in ("wait_p50_ms", "wait_p99_ms", "final_p50_ms", "final_p95_ms", "max_backlog_s")
    }
    return {
        "passed": all(one["passed"] for one in said),
        "chunks": chunks,
        "late_share": sum(one["late_share"] * one["chunks"] for one in said) / max(1, chunks),
        **worst,
        "finals": sum(one["finals"] for one in said),
        "steps": sum(rows.counts),
        "rows_per_step": rows.sum / max(1, sum(rows.counts)),
        "step_p50_ms": max(one["step_p50_ms"] for one in said),
        "step_p99_ms": max(one["step_p99_ms"] for one in said),
        "tokens_per_second": sum(one["tokens_per_second"] for one in said) / len(said),
        "snapshots": sum(one["snapshots"] for one in said),
        "lane_us_a_chunk": sum(one["host_us_a_chunk"] * one["chunks"] for one in said) / max(1, chunks),
        "group_us_a_chunk": 1e6 * thread.cpu_s / max(1, chunks),
        "group_cores": group_cores,
        "shares": {name: round(share, 3) for name, share in shares.items()},
        "full_first": max(shares, key=lambda name: shares[name]),
    }


def _busy_s(stats: EngineStats) -> float:
    return stats.pre_encode.busy_s + stats.encode.busy_s + stats.decode.busy_s


def _start(
    server: StepServer, bell: Bell, rings: SharedMemory, share: Share, facts: LaneFacts, load: dict[str, Any]
) -> _Lane:
    sizes = FlightSizes.of(share.shape)
    memory = SharedMemory.create("bench-lane", LaneArea.num_bytes(sizes))
    ours, theirs = socket.socketpair()
    own = Bell.create()
    fds = (theirs.fileno(), bell.fd, own.fd, rings.fd, memory.fd)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.trials.engine_lanes", ",".join(map(str, fds)), json.dumps(load)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=fds,
        text=True,
    )
    theirs.close()
    memory.close_fd()
    port = LanePort(share, LaneArea(sizes, memory), ours, own, bell.ring)
    port.tell(facts.to_message())
    server.add(port)
    return _Lane(process, port)


def main() -> None:
    """Run a lane's trial, and print its result as one line of JSON."""
    fds, load = tuple(map(int, sys.argv[1].split(","))), json.loads(sys.argv[2])
    facts, steps, group = join_group(fds)
    group.start(lambda _: None)
    turns = TurnSettings()
    engine = SpeechEngine(
        steps,
        facts.make_vocabulary(),
        pace=Pace(load["pace_ms"] / 1000),
        turns_of=lambda _: turns,
        prompt_of=_no_prompt,
    )
    print("ready", flush=True)
    sys.stdin.readline()
    began, began_s = time.monotonic(), time.thread_time()
    result = run_trial(
        engine,
        load["streams"],
        load["seconds"],
        arrival_s=load["arrival_s"],
        replay_s=load["replay_s"],
        seed=load["seed"],
        shared=True,
    )
    cores = (time.thread_time() - began_s) / (time.monotonic() - began)
    told = {name: None if value == float("inf") else value for name, value in result.as_dict().items()}
    print(json.dumps(told | {"thread_cores": cores}), flush=True)


def _no_prompt(_: StreamOptions) -> int:
    return 0


if __name__ == "__main__":
    main()
