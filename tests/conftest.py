"""Fixtures: `variant` runs a test once for every kernel of the module's OP that this machine can run, or of those that
the module lists in VARIANTS. With BITTORCH_CI=1 a skipped test fails the run, except those of tests/gpu and of
tests/peers, which want a device and other engines."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests import helpers


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    op = getattr(metafunc.module, "OP", None)
    if op and "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", getattr(metafunc.module, "VARIANTS", None) or helpers.variants(op))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def forced(request: pytest.FixtureRequest, variant: str) -> Iterator[str]:
    """Makes ``variant`` the automatic choice of the module's OP: for ops without a variant argument."""
    with helpers.forced(request.module.OP, variant):
        yield variant


_SKIPPED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SKIPPED] = []
    config.pluginmanager.register(_SkipsInCI(config), "skips-in-ci")


class _SkipsInCI:
    """Makes skips failures where nothing may be missing; with pytest-xdist in the process that gathers the reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        elsewhere = report.nodeid.startswith(("tests/gpu/", "tests/peers/"))
        if report.skipped and not elsewhere and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.config.stash[_SKIPPED].append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if os.environ.get("BITTORCH_CI") == "1" and self.config.stash[_SKIPPED] and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if os.environ.get("BITTORCH_CI") == "1" and self.config.stash[_SKIPPED]:
            terminalreporter.section("skipped, and BITTORCH_CI=1 allows no skip", red=True)
            for line in self.config.stash[_SKIPPED]:
                terminalreporter.line(line)
