"""The lane's end of the socket: sends requests to the group, and receives the answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from gpu_worker.engine.interface import DeviceLost
from gpu_worker.lanes.bell import Bell
from gpu_worker.lanes.wire import WireFault, hang_up, receive, send

_Answer = tuple[dict[str, Any], dict[str, memoryview]]


class GroupLost(DeviceLost):
    """The process with the device is gone, and all of its lanes with it."""


class GroupLink:
    """Sends requests to the group, and detects its end.

    link: the socket.
    bell: the lane's bell, on which a thread waits for a flight; rung when the group is gone.
    """

    def __init__(self, link: socket.socket, bell: Bell) -> None:
        self._link = link
        self._bell = bell
        self._lock = threading.Lock()
        # Held over a whole message: no other mixes with it, and the socket is not closed meanwhile.
        self._sending = threading.Lock()
        self._asked: dict[int, Future[_Answer]] = {}
        self.num_requests = 0
        self.lost = False

    def start(self, on_lost: Callable[[GroupLost], None]) -> None:
        """Begin to receive; `on_lost` is called once, in a thread of this object, when the group is gone."""
        threading.Thread(target=self._listen, args=(on_lost,), name="group-link", daemon=True).start()

    def ask(
        self, message: Mapping[str, Any], buffers: Mapping[str, memoryview] | None = None
    ) -> Future[_Answer]:
        """Send a request; its answer comes later.  Raises GroupLost."""
        future: Future[_Answer] = Future()
        self._send(message, buffers, future)
        return future

    def tell(self, message: Mapping[str, Any], buffers: Mapping[str, memoryview] | None = None) -> None:
        """Send a request that has no answer.  Raises GroupLost."""
        self._send(message, buffers, None)

    def _send(
        self,
        message: Mapping[str, Any],
        buffers: Mapping[str, memoryview] | None,
        future: Future[_Answer] | None,
    ) -> None:
        with self._sending:
            with self._lock:
                if self.lost:
                    raise _gone()
                number, self.num_requests = self.num_requests, self.num_requests + 1
                if future is not None:
                    self._asked[number] = future
            try:
                send(self._link, {"number": number, **message}, buffers or {})
            except OSError as error:
                raise _gone() from error

    def _listen(self, on_lost: Callable[[GroupLost], None]) -> None:
        lost = _gone()
        try:
            while (answer := receive(self._link)) is not None:
                with self._lock:
                    future = self._asked.pop(answer[0]["number"], None)
                if future is not None:
                    future.set_result(answer)
        except (WireFault, KeyError) as error:
            lost = GroupLost(f"The process with the device sends what cannot be read: {error}.")
        with self._lock:
            self.lost = True
            asked = list(self._asked.values())
            self._asked.clear()
        hang_up(self._link)
        for future in asked:
            future.set_exception(lost)
        self._bell.ring()
        on_lost(lost)
        with self._sending:  # a descriptor that is closed during a call may be another file's by then
            self._link.close()


def _gone() -> GroupLost:
    return GroupLost("The process with the device is gone.")
