"""Any order of opening, feeding, stalling, snapshots, closing and stepping returns what offline returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.steps.factory import make_model_engine
from tests.oracle.models import JFK, random_model, speech
from tests.oracle.offline import OfflineOracle

SLOTS = 3


@cache
def expected_tokens(context: tuple[int, int], offset: int, length: int) -> tuple[int, ...]:
    oracle = OfflineOracle(random_model(2), context)
    return tuple(oracle.run(torch.tensor(speech(JFK)[offset : offset + length])).tokens) if length else ()


@dataclass
class Told:
    """A stream as its client knows it: where its audio begins, how much was fed, what came back."""

    offset: int
    fed: int = 0
    finished: bool = False
    outputs: list[StreamOutput] = field(default_factory=list)


class Streams(RuleBasedStateMachine):
    """Up to three streams over engines that are now and then replaced, as by a takeover."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[StreamId, Told] = {}
        self.opened = 0

    @initialize(
        context=st.sampled_from([(70, 13), (70, 6), (70, 1), (70, 0)]),
        page_frames=st.sampled_from([0, 3, 16]),
        rows=st.integers(1, 3),
        turns=st.booleans(),
    )
    def start(self, context: tuple[int, int], page_frames: int, rows: int, turns: bool) -> None:
        self.config = EngineConfig(
            num_slots=SLOTS,
            context=context,
            page_frames=page_frames,
            batch_sizes=BatchSizes(rows, rows, rows),
            turn_detection=turns,
        )
        self.engine = make_model_engine(random_model(2), self.config)

    @precondition(lambda self: len(self.streams) < SLOTS)
    @rule(offset=st.integers(0, 80_000))
    def open(self, offset: int) -> None:
        self.opened += 1
        self.engine.open(StreamId(self.opened), StreamOptions(words=self.opened % 2 == 0))
        self.streams[StreamId(self.opened)] = Told(offset)

    def pick(self, data: st.DataObject, *, unfinished: bool) -> StreamId | None:
        names = [name for name, told in self.streams.items() if not (unfinished and told.finished)]
        return data.draw(st.sampled_from(names)) if names else None

    @rule(data=st.data(), size=st.sampled_from([1, 159, 2_560, 9_000, 30_000]))
    def feed(self, data: st.DataObject, size: int) -> None:
        name = self.pick(data, unfinished=True)
        if name is not None:
            told = self.streams[name]
            begin = told.offset + told.fed
            samples = speech(JFK)[begin : begin + size]
            self.engine.feed(name, samples)
            told.fed += len(samples)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        name = self.pick(data, unfinished=True)
        if name is not None:
            self.engine.finish(name)
            self.streams[name].finished = True

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name = self.pick(data, unfinished=False)
        if name is not None:
            self.engine.close(name)
            self.check(self.streams.pop(name), whole=False)

    @rule(steps=st.integers(1, 5))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            had_work = self.engine.has_work()
            outputs = self.engine.step()
            assert had_work or not outputs
            for output in outputs:
                self.streams[output.stream].outputs.append(output)
                if output.is_final:
                    self.check(self.streams.pop(output.stream), whole=True)

    @rule()
    def take_over(self) -> None:
        """All streams move to a new engine, each into whatever slot; what was not decoded is fed again."""
        old, self.engine = self.engine, make_model_engine(random_model(2), self.config)
        for name in sorted(self.streams, reverse=True):
            told = self.streams[name]
            decoded = old.samples_decoded(name)
            self.engine.open(name, StreamOptions(words=name % 2 == 0), old.snapshot(name).to_bytes())
            self.engine.feed(name, speech(JFK)[told.offset + decoded : told.offset + told.fed])
            if told.finished:
                self.engine.finish(name)

    def check(self, told: Told, *, whole: bool) -> None:
        tokens = [token for output in told.outputs for token in output.token_ids]
        context = self.config.context
        assert context is not None
        positions = [output.samples_decoded for output in told.outputs]
        assert positions == sorted(positions)
        clock = self.engine.clock
        ends = {clock.samples_of_chunks(chunk + 1) for chunk in range(clock.whole_chunks(told.fed))}
        for output in told.outputs[: -1 if whole else None]:
            # The part of a chunk up to the start or the end of an utterance is the one that ends within it.
            assert output.samples_decoded in ends or output.is_turn_event
        if whole:
            assert told.outputs[-1].samples_decoded == told.fed
            assert tuple(tokens) == expected_tokens(context, told.offset, told.fed)

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()

    def teardown(self) -> None:
        for name, told in list(self.streams.items()):
            if not told.finished:
                self.engine.finish(name)
        while self.streams:
            self.step(1)
        if hasattr(self, "engine"):
            self.engine.check_integrity()
            assert self.engine.stats.open_streams == 0


Streams.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestStreams: Any = Streams.TestCase
