"""The bytes of a stream's snapshot: a header of JSON, then the buffers that it names.

The steps that wrote the buffers know their content, see `Steps.export`. Keys and values are stored frame by
frame, oldest first, so that a snapshot does not depend on the size or the order of pages.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from common.errors import EntryError
from common.phrases import Phrase, decode_phrases
from gpu_worker.engine.interface import SnapshotMismatch

_MAGIC: Final = b"PXS3"
_LENGTH: Final = struct.Struct("<I")
PHRASES: Final = "phrases"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a stream between two steps. `host`: JSON values; `buffers`: all other state."""

    model: str
    host: Mapping[str, Any]
    buffers: Mapping[str, bytes | memoryview]

    def to_bytes(self) -> bytes:
        """Serialize; the buffers are copied once."""
        sizes = {name: len(buffer) for name, buffer in self.buffers.items()}
        header = json.dumps({"model": self.model, "host": self.host, "buffers": sizes}).encode()
        return b"".join([_MAGIC, _LENGTH.pack(len(header)), header, *self.buffers.values()])

    @classmethod
    def from_bytes(cls, data: bytes, model: str) -> Snapshot:
        """Read what `to_bytes` wrote.  Raises SnapshotMismatch for another model or layout."""
        try:
            header, at = _header(data)
            of_model, host, sizes = header["model"], header["host"], dict(header["buffers"])
            view = memoryview(data)
            buffers: dict[str, bytes | memoryview] = {}
            for name, size in sizes.items():
                buffers[name] = view[at : at + size]
                at += size
            if at != len(data) or any(size < 0 for size in sizes.values()):
                raise ValueError("its length is not what its header says")
        except (struct.error, KeyError, ValueError, TypeError) as error:
            raise SnapshotMismatch(f"The snapshot cannot be read: {error}.") from error
        if of_model != model:
            raise SnapshotMismatch("The snapshot was taken by another model, context or version.")
        return cls(of_model, host, buffers)


def _header(data: bytes) -> tuple[Any, int]:
    """Return the header's JSON, and the offset of the buffers. Raises ValueError, struct.error."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it begins with other bytes")
    at = len(_MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
    return json.loads(data[at : at + length]), at + length


def phrases_of(host: Mapping[str, Any]) -> tuple[Phrase, ...]:
    """Return the phrases in a snapshot's host state. Raises EntryError."""
    return decode_phrases(str(host.get(PHRASES, "[]")).encode())


def phrases_in(snapshot: bytes) -> tuple[Phrase, ...] | None:
    """Return the phrases in a snapshot of any model; None if it cannot be read."""
    try:
        return phrases_of(_header(snapshot)[0]["host"])
    except (struct.error, KeyError, ValueError, TypeError, AttributeError, EntryError):
        return None
