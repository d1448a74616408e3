"""Plugins and settings of the whole test run; fixtures are in tests/conftest.py."""

import os
import signal

from hypothesis import settings

pytest_plugins = ["tests.optional_programs", "tests.skip_policy"]

# Each process of a parallel run has a core to itself; the threads of its PyTorch would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is. Speed is measured in benchmarks/.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A run in the background of a shell inherits that Ctrl-C is ignored, and would hand it on to the services
# that it starts, which keep to it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
