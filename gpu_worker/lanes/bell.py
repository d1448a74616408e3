"""A bell between two processes: the waiting process sleeps in the kernel until the other rings."""

from __future__ import annotations

import os
import select


class Bell:
    """An eventfd. Rings without a waiter are kept as one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    @classmethod
    def create(cls) -> Bell:
        """Return a new bell, which children inherit if it is passed to them."""
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def ring(self) -> None:
        """Wake the waiting process, or the next one that waits."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:  # rung 2^64 times without a wait: it is rung
            return

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until it is rung, or was rung since the last wait; return False after the time-out."""
        if not self._poll.poll(None if timeout_s is None else max(0, int(1000 * timeout_s))):
            return False
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:  # another thread took the ring
            return False
        return True

    def __del__(self) -> None:
        # Only when no process is left to ring it: its number may be another file's at the next moment.
        os.close(self.fd)
