"""A worker process from its first line to its last: settings, log, signals, exit status."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn, Protocol, TypeVar

from common.errors import ParakeetError
from common.process.logging import configure_or_exit
from common.process.standard_streams import open_missing
from common.settings import PROGRAM, WorkerSettings, parse_or_exit
from gpu_worker.worker import EXIT_FAILED

logger = logging.getLogger(__name__)


class Service(Protocol):
    """What a process runs: a worker, or a group of lanes (gpu_worker/lanes)."""

    def run(self) -> int:
        """Serve until a signal or a failure; returns the exit status."""

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""

    def fail(self, error: BaseException) -> None:
        """End for an error in a thread."""


_Service = TypeVar("_Service", bound=Service)
_Watched = TypeVar("_Watched", bound=Service, contravariant=True)


class Monitor(Protocol[_Watched]):
    """What a process shows an operator, from before its model is loaded."""

    def watch(self, service: _Watched, /) -> None:
        """Show this service from now on."""

    def close(self) -> None:
        """Show nothing more."""


def run(
    make: Callable[[WorkerSettings], _Service], make_monitor: Callable[[WorkerSettings], Monitor[_Service]]
) -> int:
    """Make the worker that the flags ask for, and let it serve until a signal; returns the exit status.

    make_monitor: makes what shows it to an operator.
    """
    open_missing()
    settings = parse_or_exit("worker")
    configure_or_exit(settings, f"{PROGRAM} worker", worker_id=settings.worker_id)
    monitor = None
    try:
        monitor = make_monitor(settings)
        worker = make(settings)
        monitor.watch(worker)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, worker.request_stop)
        threading.excepthook = partial(_thread_failed, worker)
        return worker.run()
    except ParakeetError as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        logger.error("The worker cannot start: %s", error)
        return EXIT_FAILED
    except Exception:
        logger.exception("the worker failed")
        return EXIT_FAILED
    finally:
        if monitor is not None:
            monitor.close()


def _thread_failed(worker: Service, failed: threading.ExceptHookArgs) -> None:
    """End the worker because any of its threads ended with an error: some work is left undone."""
    name = failed.thread.name if failed.thread is not None else "?"
    error = failed.exc_value or failed.exc_type()
    logger.critical("the thread %s failed", name, exc_info=error)
    worker.fail(error)


def leave(status: int) -> NoReturn:
    """End the process: daemon threads may be inside torch or a blocking read, and are not waited for."""
    logging.shutdown()
    with contextlib.suppress(OSError):  # nobody reads the log any more
        sys.stdout.flush()
    os._exit(status)
