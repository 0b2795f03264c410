"""What all tests share: in required mode a skipped test is a failed one.

CI sets ``AGENTOS_TESTS_REQUIRED=1``. A test that needs a feature of the kernel and does not find it may be skipped on a
person's laptop, but not where everything that the tests need is known to be there: a skip would only hide a fault.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

REQUIRED = os.environ.get("AGENTOS_TESTS_REQUIRED", "0") not in ("", "0")


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not REQUIRED or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"AGENTOS_TESTS_REQUIRED is set, so this may not be skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report
