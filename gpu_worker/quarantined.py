"""``python -m gpu_worker.quarantined``: a worker that runs suspects (see quarantine.py and suspects.py).

Started by a worker, with its flags and a name under which the suspects' assignments are pending. A line on
stdin says that there are more. It ends when stdin closes, or without suspects for a while.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from common.errors import ParakeetError
from common.logging import configure
from common.settings import WorkerSettings, parse_or_exit
from gpu_worker.backend import Backend, make_backend
from gpu_worker.worker import EXIT_FAILED, Worker

logger = logging.getLogger("gpu_worker.quarantined")


def run(make: Callable[[WorkerSettings], Backend]) -> int:
    """Load the engine and serve suspects; gives the exit status."""
    settings = parse_or_exit("worker")
    configure(
        settings.log_level, settings.log_format, settings.log_config, fields={"worker_id": settings.worker_id}
    )
    try:
        worker = Worker(settings, make(settings), quarantined=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, worker.request_stop)
        watcher = threading.Thread(target=_follow_stdin, args=(worker,), name="stdin", daemon=True)
        watcher.start()
        return worker.run()
    except ParakeetError as error:
        logger.error("%s", error)
        return 2
    except Exception:
        logger.exception("the quarantined worker could not start")
        return EXIT_FAILED


def _follow_stdin(worker: Worker) -> None:
    while os.read(0, 512):
        worker.look_for_suspects()
    worker.request_stop(signal.SIGTERM, None)


def leave(status: int) -> None:
    """End the process; daemon threads may be inside torch."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(run(make_backend))
