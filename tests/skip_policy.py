"""Which tests may be skipped: those that need a GPU, on a machine without one.

With ``CI=true`` a skip for any other reason is a failure, so that a missing program or package cannot
quietly take tests away. Tests marked `gpu` are skipped here, without their own check.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.optional_programs import in_ci

NO_GPU = "no GPU"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure where the rule above asks for it."""
    if not report.skipped or hasattr(report, "wasxfail") or not in_ci():
        return
    reason = _reason(report)
    if not reason.startswith(NO_GPU):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where only '{NO_GPU}' is a reason: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report
