"""A worker whose snapshots are of another layout (``python -m tests.altered.other_layout_worker``)."""

from __future__ import annotations

import gpu_worker.engine.snapshot
from gpu_worker.__main__ import main
from gpu_worker.process import leave

if __name__ == "__main__":
    vars(gpu_worker.engine.snapshot)["_MAGIC"] = b"PXS0"
    leave(main())
