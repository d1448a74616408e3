"""A worker process from its first line to its last: settings, log, signals, exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from common.errors import ParakeetError
from common.logging import configure
from common.settings import WorkerSettings, parse_or_exit
from gpu_worker.worker import EXIT_FAILED, Worker

logger = logging.getLogger(__name__)


def run(make: Callable[[WorkerSettings], Worker]) -> int:
    """Make the worker that the flags ask for, and let it serve until a signal; gives the exit status."""
    settings = parse_or_exit("worker")
    configure(
        settings.log_level, settings.log_format, settings.log_config, fields={"worker_id": settings.worker_id}
    )
    try:
        worker = make(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, worker.request_stop)
        return worker.run()
    except ParakeetError as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        logger.exception("the worker failed")
        return EXIT_FAILED


def leave(status: int) -> NoReturn:
    """End the process: daemon threads may be inside torch or a blocking read, and are not waited for."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
