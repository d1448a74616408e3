"""An ingress that waits for the log of a client ahead of it: ``python -m tests.altered.patient_ingress``.

It waits for a minute, so that a worker on a busy machine is in time.
"""

from __future__ import annotations

import sys

import ingress.streams.takeover
from common.process.standard_streams import run_command
from common.settings import PROGRAM
from ingress.__main__ import main

if __name__ == "__main__":
    vars(ingress.streams.takeover)["_AHEAD_S"] = 60.0
    sys.exit(run_command(f"{PROGRAM} ingress", main))
