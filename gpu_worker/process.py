"""The frame of a worker process: settings, log, signals, exit status."""

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

from common.errors import ModelError, ParakeetError, SettingsError
from common.process.logging import configure_or_exit
from common.process.standard_streams import open_missing
from common.settings import PROGRAM, WorkerSettings, parse_or_exit
from gpu_worker.worker import EXIT_FAILED

logger = logging.getLogger(__name__)


class Service(Protocol):
    """The service of a process: a worker, or a group of lanes (gpu_worker/lanes)."""

    def run(self) -> int:
        """Serve until a signal or a failure; return the exit status."""

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal to stop."""

    def fail(self, error: BaseException) -> None:
        """End for an error in a thread."""


_Service = TypeVar("_Service", bound=Service)
_Watched = TypeVar("_Watched", bound=Service, contravariant=True)


class Monitor(Protocol[_Watched]):
    """Metrics and health of a process, from before its model is loaded."""

    def watch(self, service: _Watched, /) -> None:
        """Report on this service from now on."""

    def close(self) -> None:
        """Close the port."""


def run(
    make: Callable[[WorkerSettings], _Service], make_monitor: Callable[[WorkerSettings], Monitor[_Service]]
) -> int:
    """Make the worker that the flags ask for, and serve until a signal; return the exit status.

    make_monitor: makes the monitor of the process.
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
    except (SettingsError, ModelError) as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        return 130
    except (ParakeetError, OSError) as error:
        logger.error("The worker cannot start: %s", error)
        return EXIT_FAILED
    except Exception:
        logger.exception("the worker failed")
        return EXIT_FAILED
    finally:
        if monitor is not None:
            monitor.close()


def _thread_failed(worker: Service, failed: threading.ExceptHookArgs) -> None:
    """End the worker because one of its threads has ended with an error, and its work is undone."""
    name = failed.thread.name if failed.thread is not None else "?"
    error = failed.exc_value or failed.exc_type()
    logger.critical("the thread %s failed", name, exc_info=error)
    worker.fail(error)


def leave(status: int) -> NoReturn:
    """End the process at once: daemon threads may be inside torch or a blocking read, and are not joined."""
    logging.shutdown()
    with contextlib.suppress(OSError):  # the reader of the log may have gone
        sys.stdout.flush()
    os._exit(status)
