"""On a machine without redis-server its tests are left out and the summary says so; in CI they are wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest_plugins = ["pytester"]

TESTS = """
import pytest
from tests.servers import SERVER_KINDS

@pytest.mark.needs_program("redis-cli")
def test_typed(): pass

@pytest.mark.parametrize("kind", SERVER_KINDS)
def test_on_each_kind(kind): pass
"""


@pytest.mark.parametrize(
    ("ci", "installed", "passed", "left_out"), [("", False, 1, 1), ("", True, 3, 0), ("true", False, 3, 0)]
)
def test_what_is_missing_is_left_out_and_named_but_in_ci(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    ci: str,
    installed: bool,
    passed: int,
    left_out: int,
) -> None:
    monkeypatch.setenv("CI", ci)
    programs = pytester.mkdir("bin")
    for name in ("redis-server", "redis-cli") if installed else ():
        (programs / name).touch(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    # A process of its own: the kinds of servers are decided when tests.servers is imported.
    outcome = pytester.runpytest_subprocess("-p", "tests.optional_programs", "-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=passed, deselected=left_out)
    said = [line for line in outcome.outlines if line.startswith("Not tried, for want of")]
    assert len(said) == (1 if left_out else 0)
    if left_out:
        assert "redis-server and redis-cli" in said[0]
        assert said[0].endswith("apt-get install redis-server")
