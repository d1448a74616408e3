"""The memory that a lane shares with its group, and its layout.

Each word has one writer. The lane writes a flight and then counts it in LAUNCHED; the group counts it in
TAKEN before a step of the device begins with it, and in DONE when it has written the findings. A process that
sees a count sees the data that it counts. No lock ensures this, but the processor: x86-64 keeps the order of
stores, and others are refused (`--lanes`). Two flights can be under way, so there are two buffers, used in
turn; the third flight is launched after the first was read.

Shape suffixes as in `engine.steps`: F fields, B rows, M pages of a ring, K most symbols of a row, W windows.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.monitoring.families import STAGES
from gpu_worker.engine.interface import EngineStats, StageStats
from gpu_worker.engine.steps import SPARE_HOPS, Field, StepFindings, StepShape, max_windows

NUM_BUFFERS: Final = 2
_ALIGNMENT: Final = 64  # a cache line, so that two writers share none


class SharedMemory:
    """Anonymous shared memory (a memfd), which ends with the last process that has it.

    A name in /dev/shm could be left behind, and containers have little room there.
    """

    def __init__(self, fd: int, num_bytes: int) -> None:
        self.fd = fd
        self.num_bytes = num_bytes
        self._map = mmap.mmap(fd, num_bytes)

    @classmethod
    def create(cls, name: str, num_bytes: int) -> SharedMemory:
        """Create memory, all zeros; `name` is for /proc alone. Raises OSError."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, num_bytes)
        return cls(fd, num_bytes)

    def array(self, dtype: Any, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """Return a view of it."""
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape)

    def close_fd(self) -> None:
        """Close the descriptor; the memory stays as long as views of it do."""
        os.close(self.fd)


class _Count(IntEnum):
    """Words of an area's head."""

    LAUNCHED = 0
    DONE = 1
    TAKEN = 2


class _Word(IntEnum):
    """Words of a flight's head."""

    NUM_ROWS = 0
    NUM_RESETS = 1
    NUM_REQUESTS = 2
    MOST_SYMBOLS = 3
    NUM_WINDOWS = 4


@dataclass(frozen=True, slots=True)
class FlightSizes:
    """Bounds of a flight, from the shape of a lane's steps."""

    max_rows: int
    ring_pages: int
    num_slots: int
    most_symbols: int
    most_windows: int

    @classmethod
    def of(cls, shape: StepShape) -> FlightSizes:
        """Return the bounds of steps of this shape."""
        clock = shape.clock
        frames = shape.max_chunks * clock.chunk_frames
        windows = max_windows(frames * clock.frame_samples + SPARE_HOPS * clock.hop_samples)
        return cls(
            shape.max_rows,
            shape.pages.ring_pages,
            shape.num_slots,
            frames * shape.frame_symbols,
            windows if shape.hears else 0,
        )

    def _parts(self) -> tuple[tuple[Any, int], ...]:
        rows = self.max_rows
        return (
            (np.int64, len(_Word)),
            (np.float64, 2 * len(STAGES)),
            (np.int32, len(Field) * rows),
            (np.int32, self.ring_pages * rows),
            (np.int64, 2 * self.num_slots),
            (np.int32, rows),
            (np.int32, self.most_symbols * rows),
            (np.int32, self.most_symbols * rows),
            (np.float32, self.most_symbols * rows),
            (np.float32, self.most_windows * rows),
        )

    def offsets(self, first: int) -> list[int]:
        """Return the offset of each part of a flight, followed by the offset of its end."""
        offsets = [first]
        for dtype, count in self._parts():
            end = offsets[-1] + np.dtype(dtype).itemsize * count
            offsets.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        return offsets

    def views(self, memory: SharedMemory, first: int) -> list[NDArray[Any]]:
        """Return the parts of the flight that begins at `first`."""
        offsets = self.offsets(first)
        return [
            memory.array(dtype, (count,), offset)
            for (dtype, count), offset in zip(self._parts(), offsets, strict=False)
        ]


class FlightBuffer:
    """One flight: rows that the lane writes, findings that the group writes."""

    def __init__(self, sizes: FlightSizes, memory: SharedMemory, first: int) -> None:
        self._sizes = sizes
        (
            self._words,
            self._stages,
            self._rows,
            self._table,
            self._resets,
            self._num_symbols,
            self._symbols,
            self._frames,
            self._confidences,
            self._speech,
        ) = sizes.views(memory, first)

    # Written by the lane

    def write(
        self,
        rows_FB: NDArray[np.int32],
        table_BM: NDArray[np.int32],
        resets_R2: NDArray[np.int64],
        num_requests: int,
    ) -> None:
        """Write a flight.

        It has its rows, the slots that are reset before it with their prompts, and the number of the lane's
        requests that come before it.
        """
        num_rows = rows_FB.shape[1]
        self._rows[: rows_FB.size].reshape(rows_FB.shape)[:] = rows_FB
        self._table[: table_BM.size].reshape(table_BM.shape)[:] = table_BM
        self._resets[: resets_R2.size].reshape(resets_R2.shape)[:] = resets_R2
        self._words[_Word.NUM_ROWS] = num_rows
        self._words[_Word.NUM_RESETS] = len(resets_R2)
        self._words[_Word.NUM_REQUESTS] = num_requests

    @property
    def num_requests(self) -> int:
        """Number of requests that come before the flight."""
        return int(self._words[_Word.NUM_REQUESTS])

    @property
    def slots(self) -> set[int]:
        """Return the slots of its rows, for the lane itself."""
        num_rows = int(self._words[_Word.NUM_ROWS])
        return set(self._rows[Field.SLOT * num_rows : (Field.SLOT + 1) * num_rows].tolist())

    def read(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Return copies of the written flight: rows_FB, table_BM, resets_R2.

        The lane may go on writing, so each number is read once. Raises ValueError for impossible numbers.
        """
        num_rows, num_resets = int(self._words[_Word.NUM_ROWS]), int(self._words[_Word.NUM_RESETS])
        sizes = self._sizes
        if not 0 < num_rows <= sizes.max_rows or not 0 <= num_resets <= sizes.num_slots:
            raise ValueError(f"{num_rows} rows, {num_resets} slots that begin")
        width = sizes.ring_pages
        return (
            self._rows[: len(Field) * num_rows].reshape(len(Field), num_rows).copy(),
            self._table[: width * num_rows].reshape(num_rows, width).copy(),
            self._resets[: 2 * num_resets].reshape(num_resets, 2).copy(),
        )

    # Written by the group

    def answer(self, found: StepFindings, rows: slice, stages: NDArray[np.float64]) -> None:
        """Write the findings of the flight. rows: the flight's rows of the step."""
        num_rows, most = rows.stop - rows.start, found.symbols_BK.shape[1]
        windows = found.speech_BW.shape[1] if self._sizes.most_windows else 0
        self._words[_Word.MOST_SYMBOLS], self._words[_Word.NUM_WINDOWS] = most, windows
        self._stages[:] = stages
        self._num_symbols[:num_rows] = found.num_symbols_B[rows]
        for part, of_step in (
            (self._symbols, found.symbols_BK),
            (self._frames, found.frames_BK),
            (self._confidences, found.confidences_BK),
        ):
            part[: num_rows * most].reshape(num_rows, most)[:] = of_step[rows]
        self._speech[: num_rows * windows].reshape(num_rows, windows)[:] = found.speech_BW[rows, :windows]

    def findings(self, num_rows: int) -> StepFindings:
        """Return the findings, as views that the launch after the next one overwrites."""
        most, windows = int(self._words[_Word.MOST_SYMBOLS]), int(self._words[_Word.NUM_WINDOWS])
        count = num_rows * most
        return StepFindings(
            self._num_symbols[:num_rows],
            self._symbols[:count].reshape(num_rows, most),
            self._frames[:count].reshape(num_rows, most),
            self._confidences[:count].reshape(num_rows, most),
            self._speech[: num_rows * windows].reshape(num_rows, windows),
        )

    def count_stages(self, stats: EngineStats) -> None:
        """Add the calls and seconds of the flight's stages."""
        for name, calls, busy_s in zip(STAGES, self._stages[::2], self._stages[1::2], strict=True):
            stage: StageStats = getattr(stats, name)
            stage.calls += int(calls)
            stage.busy_s += float(busy_s)


def stage_counts(stats: EngineStats) -> NDArray[np.float64]:
    """Return calls and seconds of the stages so far, for the differences of `FlightBuffer.answer`."""
    stages = [getattr(stats, name) for name in STAGES]
    return np.array([value for stage in stages for value in (stage.calls, stage.busy_s)], dtype=np.float64)


class LaneArea:
    """The memory that a lane and its group share besides the rings."""

    def __init__(self, sizes: FlightSizes, memory: SharedMemory) -> None:
        self._counts = memory.array(np.int64, (len(_Count), _ALIGNMENT // 8))
        first, self.flights = len(_Count) * _ALIGNMENT, []
        for _ in range(NUM_BUFFERS):
            self.flights.append(FlightBuffer(sizes, memory, first))
            first = sizes.offsets(first)[-1]

    @staticmethod
    def num_bytes(sizes: FlightSizes) -> int:
        """Return the bytes of an area."""
        end = len(_Count) * _ALIGNMENT
        for _ in range(NUM_BUFFERS):
            end = sizes.offsets(end)[-1]
        return end

    @property
    def launched(self) -> int:
        """Number of flights that the lane has written."""
        return int(self._counts[_Count.LAUNCHED, 0])

    @launched.setter
    def launched(self, count: int) -> None:
        self._counts[_Count.LAUNCHED, 0] = count

    @property
    def taken(self) -> int:
        """Number of flights that the group has begun with: one of these may be the cause of its death."""
        return int(self._counts[_Count.TAKEN, 0])

    @taken.setter
    def taken(self, count: int) -> None:
        self._counts[_Count.TAKEN, 0] = count

    @property
    def done(self) -> int:
        """Number of flights that the group has answered."""
        return int(self._counts[_Count.DONE, 0])

    @done.setter
    def done(self, count: int) -> None:
        self._counts[_Count.DONE, 0] = count

    def flight(self, number: int) -> FlightBuffer:
        """Return the buffer of a flight, counted from 0."""
        return self.flights[number % NUM_BUFFERS]
