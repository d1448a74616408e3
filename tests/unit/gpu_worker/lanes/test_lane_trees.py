"""Trees of phrases of a lane: they stand in its part of the arena, and keep their place between steps."""

from __future__ import annotations

from dataclasses import replace

from gpu_worker.engine.phrases.tree_memory import NO_TREE
from tests.device.lane_recorder import SHAPE, launch, recorded_lanes, recorder, tree_of, turn_until
from tests.device.lane_stack import LaneStack


def test_trees_stand_in_the_lanes_part_of_the_arena_and_keep_their_place(stack: LaneStack) -> None:
    lane, tree = stack.lanes[1], tree_of(1, 2)
    assert lane.trees.num_words == 200
    first = launch(lane, [0])
    turn_until(stack, lambda: ("wait", [4]) in recorder(stack).told)
    lane.wait(first)
    lane.trees.put(100, lane.trees.prepare(tree))
    lane.trees.use(0, 100, tree.num_nodes, anew=True)
    launch(lane, [0])
    lane.trees.use(0, NO_TREE, 0, anew=True)
    lane.trees.drop(100)
    launch(lane, [0])
    turn_until(stack, lambda: len(recorder(stack).steps_told()) == 3)
    kinds = ("launch", "put", "use", "drop")
    assert [what for what in recorder(stack).told if what[0] in kinds] == [
        ("launch", [4]),
        ("put", (300, tree.words.tolist())),
        ("use", (4, 300, tree.num_nodes, True)),
        ("launch", [4]),
        ("use", (4, NO_TREE, 0, True)),
        ("drop", 300),
        ("launch", [4]),
    ]


def test_a_lane_may_change_the_phrases_of_all_its_streams_while_a_step_runs() -> None:
    num_slots = 3_000
    stack = recorded_lanes(replace(SHAPE, num_slots=2 * num_slots))
    lane = stack.lanes[0]
    for slot in range(num_slots):
        lane.trees.use(slot, NO_TREE, 0, anew=True)
        lane.trees.use(slot, NO_TREE, 0, anew=True)
    launch(lane, [0])
    turn_until(stack, lambda: recorder(stack).steps_told() == [[0]])
    assert sum(kind == "use" for kind, _ in recorder(stack).told) == 2 * num_slots
    for port in stack.ports:
        port.close()


def test_the_trees_of_a_lane_that_is_gone_are_let_go(stack: LaneStack) -> None:
    lane, tree = stack.lanes[1], tree_of(1, 2)
    lane.trees.put(0, lane.trees.prepare(tree))
    lane.trees.use(3, 0, tree.num_nodes, anew=True)
    turn_until(stack, lambda: ("use", (7, 200, tree.num_nodes, True)) in recorder(stack).told)
    stack.server.remove(stack.ports[1])
    turn_until(stack, lambda: ("drop", 200) in recorder(stack).told)
    assert ("use", (7, NO_TREE, 0, True)) in recorder(stack).told
