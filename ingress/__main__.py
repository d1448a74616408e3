"""`python -m ingress`: one ingress process."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Final

from common.errors import RedisUnavailable, ServiceError, SettingsError
from common.process.garbage import collect_rarely
from common.process.logging import configure_or_exit
from common.process.standard_streams import run_command
from common.settings import PROGRAM, parse_or_exit
from ingress.server import serve

logger = logging.getLogger("ingress")

# Thresholds of the garbage collector: how many new objects start a collection, and how often a collection
# includes the older generations. They are higher than Python's defaults, since each stream makes hundreds of
# objects, and low enough that a collection takes no longer than 2 ms. Ended connections are reference cycles:
# 20,000 objects of refused connections kept all streams waiting for 8 ms.
_COLLECT_AFTER: Final = (4_000, 20, 10)
# Errors that one sentence tells. One of a client's stream should not get here: the log needs its traceback.
_EXPECTED: Final = (RedisUnavailable, ServiceError, OSError)


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's event loop where uvloop is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def main() -> int:
    """Run until stopped; return the exit status: 2 for wrong settings, 1 for a failure."""
    settings = parse_or_exit("ingress", sys.argv[1:])
    configure_or_exit(settings, f"{PROGRAM} ingress", ingress_id=settings.ingress_id)
    collect_rarely(*_COLLECT_AFTER)
    try:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(serve(settings))
    except SettingsError as error:
        logger.error("%s", error)
        return 2
    except _EXPECTED as error:
        logger.error("The ingress cannot start: %s", error)
        return 1
    except BaseExceptionGroup as failures:
        expected, others = failures.split(_EXPECTED)
        if others is not None:
            logger.error("The ingress failed", exc_info=others)
        elif expected is not None:
            logger.error("The ingress cannot start: %s", expected.exceptions[0])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(f"{PROGRAM} ingress", main))
