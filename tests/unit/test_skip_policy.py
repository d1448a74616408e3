"""In CI a skip is a failure unless there is no GPU."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.skip(reason="no GPU")
def test_allowed(): pass

@pytest.mark.skip(reason="redis-server is not installed")
def test_refused(): pass

def test_refused_inside():
    pytest.skip("no network")

@pytest.mark.xfail(reason="known", strict=True)
def test_expected():
    raise AssertionError
"""


# A mark is refused in the set-up, a call of pytest.skip() in the test.
@pytest.mark.parametrize(("ci", "refused", "skipped"), [("true", 1, 1), ("", 0, 3)])
def test_only_no_gpu_is_a_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, refused: int, skipped: int
) -> None:
    monkeypatch.setenv("CI", ci)
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    outcome = pytester.runpytest_inprocess("-p", "tests.skip_policy", "-p", "no:cacheprovider")
    outcome.assert_outcomes(errors=refused, failed=refused, skipped=skipped, xfailed=1)
    if ci:
        outcome.stdout.fnmatch_lines(["*only 'no GPU' is a reason: redis-server is not installed*"])


def test_a_module_that_skips_itself_fails_too(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile("import pytest\npytest.importorskip('no_such_package_at_all')\n")
    outcome = pytester.runpytest_inprocess("-p", "tests.skip_policy", "-p", "no:cacheprovider")
    outcome.assert_outcomes(errors=1)
