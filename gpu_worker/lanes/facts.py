"""The facts that a group sends to a lane: those of the model, and the lane's share of the device."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from common.presence.served_model import ServedModel
from common.settings import WorkerSettings
from gpu_worker.backend import Backend
from gpu_worker.capacity import Capacity
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import PageShape, StepShape
from gpu_worker.lanes.port import Share
from gpu_worker.model.config import PromptConfig
from gpu_worker.model.tokenizer import Tokenizer
from gpu_worker.steps.null import Letters, NullClock

_CLOCKS = {clock.__name__: clock for clock in (ChunkClock, NullClock)}


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """The facts that a lane's engine needs.

    shape: shape of the lane's steps.   first_slot: its first slot among those of the device.
    num_ring_slots, ring_samples: size of the whole device's rings.
    vocabulary: a serialized SentencePiece model; None for the null engine's letters.
    capacity: streams that it carries in real time; None where that was not measured.
    phrase_words: its part of the arena of boosting trees, in int32.
    """

    shape: StepShape
    first_slot: int
    num_ring_slots: int
    ring_samples: int
    vocabulary: bytes | None
    prompt: PromptConfig | None
    description: dict[str, str]
    served: ServedModel
    capacity: Capacity | None
    phrase_words: int

    @classmethod
    def of(cls, backend: Backend, share: Share, num_lanes: int) -> LaneFacts:
        """Return the facts of a backend's model, and of a share of its device."""
        rings = backend.engine.steps.rings
        return cls(
            share.shape,
            share.first_slot,
            len(rings.float32_SC),
            rings.num_samples,
            backend.vocabulary,
            backend.prompt,
            backend.description,
            backend.served,
            None if backend.capacity is None else backend.capacity.shared_by(num_lanes),
            share.num_words,
        )

    def to_message(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        message = asdict(self)
        message["clock"] = type(self.shape.clock).__name__
        message["vocabulary"] = None if self.vocabulary is None else b64encode(self.vocabulary).decode()
        return message

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> LaneFacts:
        """Return the facts in a message of `to_message`. Raises KeyError, TypeError, ValueError."""
        values = dict(message)
        clock = _CLOCKS[values.pop("clock")]
        shape = dict(values["shape"])
        given = {one.name: shape["clock"][one.name] for one in fields(clock) if one.init}
        shape |= {"clock": clock(**given), "pages": PageShape(**shape["pages"])}
        values["shape"] = StepShape(**shape)
        if values["vocabulary"] is not None:
            values["vocabulary"] = b64decode(values["vocabulary"])
        if (prompt := values["prompt"]) is not None:
            languages = tuple((name, index) for name, index in prompt["languages"])
            values["prompt"] = PromptConfig(prompt["num_prompts"], languages)
        values["served"] = ServedModel(**values["served"])
        if (capacity := values["capacity"]) is not None:
            values["capacity"] = Capacity(**capacity)
        return cls(**values)

    def make_vocabulary(self) -> Letters | Tokenizer:
        """Return the vocabulary of the model."""
        return Letters() if self.vocabulary is None else Tokenizer(self.vocabulary)


def lane_port(settings: WorkerSettings, lane: int) -> int:
    """Return the metrics port of a lane; 0 where there is none."""
    return settings.metrics_port + 1 + lane if settings.metrics_port else 0
