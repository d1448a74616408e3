"""Plugins and settings of the whole test run; fixtures are in tests/conftest.py."""

from hypothesis import settings

pytest_plugins = ["tests.skip_policy"]

# How long an example takes says how busy the machine is. Speed is measured in benchmarks/.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
