"""``python -m gpu_worker.lanes.lane FDS FLAGS``: one lane, a worker process whose device is its group's.

The group starts it with the descriptors of the socket, of the group's bell, of the lane's bell, of the rings
and of the memory that the two share, and sends the facts of the model over the socket.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from common.entries import StreamId
from common.errors import ServiceError
from common.options import StreamOptions
from common.process.orphans import wake_when_parent_ends
from common.process.pace import Pace
from common.settings import WorkerSettings
from gpu_worker.backend import Backend
from gpu_worker.boosting.spelling import tree_of
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import UnsupportedOption
from gpu_worker.engine.phrases.book import PhraseBook, no_trees
from gpu_worker.engine.steps import RingMemory
from gpu_worker.lanes import wire
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.facts import LaneFacts
from gpu_worker.lanes.link import GroupLink
from gpu_worker.lanes.segment import FlightSizes, LaneArea, SharedMemory
from gpu_worker.lanes.steps import LaneSteps
from gpu_worker.model.config import PromptConfig, prompt_index
from gpu_worker.model.errors import ModelConfigError
from gpu_worker.model.tokenizer import Tokenizer
from gpu_worker.monitor import WorkerMonitor
from gpu_worker.process import leave, run
from gpu_worker.turn.configuration import make_smart_turn, turn_settings, verdict_counts
from gpu_worker.worker import Worker


class NoGroup(ServiceError):  # noqa: N818 - it says what is missing
    """The group ended while the lane was starting."""


@dataclass(frozen=True, slots=True)
class _Group:
    """See `gpu_worker.backend.Elsewhere`."""

    engine: SpeechEngine
    steps: LaneSteps

    def in_hand(self) -> Collection[StreamId]:
        return self.engine.streams_in(self.steps.slots_under_way())

    def is_waited_for(self) -> bool:
        return self.steps.waits_for_group


def join_group(fds: tuple[int, ...]) -> tuple[LaneFacts, LaneSteps, GroupLink]:
    """Return the facts that a group sends to a lane, the lane's steps, and its end of the socket.

    Raises NoGroup.

    fds: descriptors of the socket, the group's bell, the lane's bell, the rings, and the shared memory.
    """
    link_fd, group_bell, bell_fd, ring_fd, area_fd = fds
    for fd in fds:  # children of this process have no use for them
        os.set_inheritable(fd, False)
    link = socket.socket(fileno=link_fd)
    received = wire.receive(link)
    if received is None:
        raise NoGroup("The process with the device is gone.")
    facts = LaneFacts.from_message(received[0])
    shape, bell = facts.shape, Bell(bell_fd)
    sizes, group = FlightSizes.of(shape), GroupLink(link, bell)
    area = LaneArea(sizes, SharedMemory(area_fd, LaneArea.num_bytes(sizes)))
    steps = LaneSteps(shape, _rings(facts, ring_fd), area, Bell(group_bell), bell, group, facts.phrase_words)
    return facts, steps, group


def make_lane(settings: WorkerSettings, fds: tuple[int, ...]) -> Worker:
    """Return the worker of a lane; it fails when the group ends. Raises NoGroup."""
    facts, steps, group = join_group(fds)
    judge, vocabulary = make_smart_turn(settings), facts.make_vocabulary()
    make_tree = no_trees
    if isinstance(vocabulary, Tokenizer) and facts.phrase_words:
        make_tree = partial(tree_of, vocabulary)
    book = PhraseBook(steps.trees, make_tree, beside=True)

    def wake_with(wake: Callable[[], None]) -> None:
        book.wake_with(wake)
        if judge is not None:
            judge.wake_with(wake)

    engine = SpeechEngine(
        steps,
        vocabulary,
        book=book,
        pace=Pace(settings.step_pace_ms / 1000),
        turns_of=turn_settings(settings),
        prompt_of=_prompt_of(facts.prompt),
        judge=judge,
    )
    backend = Backend(
        engine,
        facts.description,
        facts.served,
        wake_with,
        facts.capacity,
        _Group(engine, steps),
        verdict_counts(judge),
    )
    worker = Worker(settings, backend)
    group.start(worker.fail)
    return worker


def _rings(facts: LaneFacts, fd: int) -> RingMemory:
    shape = (facts.num_ring_slots, facts.ring_samples)
    rings = SharedMemory(fd, 4 * shape[0] * shape[1]).array("float32", shape)
    return RingMemory(rings[facts.first_slot : facts.first_slot + facts.shape.num_slots])


def _prompt_of(prompt: PromptConfig | None) -> Callable[[StreamOptions], int]:
    def of_stream(options: StreamOptions) -> int:
        try:
            return prompt_index(prompt, options.language)
        except ModelConfigError as error:
            raise UnsupportedOption(str(error)) from error

    return of_stream


def main() -> int:
    """Serve until a signal, or until the group ends; return the exit status."""
    wake_when_parent_ends()
    fds = tuple(map(int, sys.argv.pop(1).split(",")))
    return run(lambda settings: make_lane(settings, fds), WorkerMonitor)


if __name__ == "__main__":
    leave(main())
