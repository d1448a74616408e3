"""The page docs/clients.md: no block of code is there that no test runs."""

from __future__ import annotations

import re
from pathlib import Path

from tests.clients.examples import blocks


def test_every_block_has_a_name_and_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    run = set(re.findall(r'"([a-z-]+)", "([a-z-]+)"', tests))
    named = {(one.environment, one.name) for _, one in blocks()}
    assert ("", "") not in named, "a block of code without a mark: no test runs it"
    assert named <= run
