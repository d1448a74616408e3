"""An ingress or a worker that says which files it enters: ``python -m tests.altered.traced FLAGS``.

It counts from SIGUSR1, which it answers with the line BEGUN, to SIGUSR2, which it answers with a line of the
files, each as a path of this checkout.
"""

from __future__ import annotations

import runpy
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
BEGUN: Final = "files are counted"
PASSED: Final = "files: "

_entered: set[str] | None = None


def _enter(frame: FrameType, event: str, _argument: Any) -> None:
    if event == "call" and _entered is not None:
        _entered.add(frame.f_code.co_filename)


def _begin(_number: int, _frame: FrameType | None) -> None:
    global _entered
    _entered = set()
    print(BEGUN, flush=True)


def _end(_number: int, _frame: FrameType | None) -> None:
    ours = [Path(file) for file in sorted(_entered or ()) if file.startswith(f"{ROOT}/")]
    print(PASSED + " ".join(str(file.relative_to(ROOT)) for file in ours), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _begin)
    signal.signal(signal.SIGUSR2, _end)
    threading.setprofile(_enter)
    sys.setprofile(_enter)
    is_worker = any(word.startswith("--worker-id") for word in sys.argv)
    runpy.run_module("gpu_worker" if is_worker else "ingress", run_name="__main__", alter_sys=True)
