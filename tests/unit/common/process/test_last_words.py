"""A child's last error reaches the parent that started it, whatever configuration its log has."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from common.process.last_words import VARIABLE, LastWords, LastWordsHandler, inherited_handler
from common.process.logging import configure
from parakeet.serve.child import Child, Launch
from tests.service_process import ROOT

CHILD = """
import logging, sys
from common.process.logging import configure
configure("error", "json")
log = logging.getLogger("x")
log.error("first")
try:
    raise ValueError("why")
except ValueError:
    log.exception("second")
log.warning("third")
sys.exit(3)
"""


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = list(root.handlers)
    yield root
    root.handlers[:] = before


def test_the_last_error_of_a_child_is_read_after_its_end() -> None:
    launch = Launch("w-1", (sys.executable, "-c", CHILD), {"PYTHONPATH": str(ROOT)})
    child = Child("worker 0", lambda: launch)
    assert child.last_words == "."
    child.start()
    assert child.wait(30.0)
    assert child.exited() == 3
    assert child.last_words == ": second: ValueError: why"


def test_a_later_error_takes_the_place_of_a_longer_one_and_is_bounded(
    monkeypatch: pytest.MonkeyPatch, root_logger: logging.Logger
) -> None:
    words = LastWords()
    monkeypatch.setenv(VARIABLE, str(words.descriptor))
    for _ in range(2):  # configured again, it is not told twice
        configure("info", "text")
    assert sum(isinstance(handler, LastWordsHandler) for handler in root_logger.handlers) == 1
    root_logger.error("a longer sentence")
    root_logger.error("short")
    assert words.read() == "short"
    root_logger.error("x" * 10_000)
    assert words.read() == "x" * 2000


@pytest.mark.parametrize("value", ["", "x", "-1", "9999"])
def test_without_a_descriptor_there_is_no_handler(value: str) -> None:
    assert inherited_handler({VARIABLE: value}) is None
