"""A bell between two processes: the one that waits sleeps in the kernel until the other rings."""

from __future__ import annotations

import os
import select


class Bell:
    """An eventfd.  Rings while nobody waits are kept as one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    @classmethod
    def create(cls) -> Bell:
        """Return a new bell, which children inherit where they are given it."""
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def ring(self) -> None:
        """Wake the process that waits now, or the next one that waits."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:  # rung 2^64 times and never heard: it rings
            return

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until it was rung since the last wait; False where the time is over."""
        if not self._poll.poll(None if timeout_s is None else max(0, int(1000 * timeout_s))):
            return False
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:  # another thread has heard it
            return False
        return True

    def __del__(self) -> None:
        # Only when nobody is left who could ring it: its number may be another file's by the next moment.
        os.close(self.fd)
