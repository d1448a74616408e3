"""An ingress that looks after no quiet stream (``python -m tests.altered.unwatchful_ingress``).

What it knows of a stream is published to it, or read for a reason of its own.
"""

from __future__ import annotations

import sys

import ingress.streams.watch
from common.process.standard_streams import run_command
from common.settings import PROGRAM
from ingress.__main__ import main

if __name__ == "__main__":
    vars(ingress.streams.watch)["QUIET_S"] = float("inf")
    sys.exit(run_command(f"{PROGRAM} ingress", main))
