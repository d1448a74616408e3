"""docs/invariants.md names tests that exist, for every promise."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_promise_names_tests_that_exist() -> None:
    promises = re.split(r"^\d+\. ", (ROOT / "docs" / "invariants.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(promises) == 9
    for promise in promises:
        named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", promise)
        assert named, f"no test for: {promise[:60]}"
        for file, test in named:
            path = ROOT / file
            assert path.exists(), file
            assert re.search(rf"def {test}\(", path.read_text()), f"{file}::{test}"
