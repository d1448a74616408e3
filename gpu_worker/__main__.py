"""``python -m gpu_worker``: one worker process."""

from __future__ import annotations

import logging
import os
import signal
import sys

from common.errors import ParakeetError
from common.logging import configure
from common.settings import parse_or_exit
from gpu_worker.backend import make_backend
from gpu_worker.worker import EXIT_FAILED, Worker

logger = logging.getLogger("gpu_worker")


def main() -> int:
    """Load the engine, then serve until a signal; gives the exit status."""
    settings = parse_or_exit("worker")
    configure(
        settings.log_level,
        settings.log_format,
        settings.log_config,
        fields={"worker_id": settings.worker_id},
    )
    try:
        worker = Worker(settings, make_backend(settings))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, worker.request_stop)
        return worker.run()
    except ParakeetError as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        logger.exception("the worker could not start")
        return EXIT_FAILED


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # Daemon threads may be inside torch or a blocking read: no orderly end of the interpreter waits for them.
    os._exit(status)
