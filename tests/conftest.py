"""For all tests: signals are as a terminal would leave them, and what was not run is counted by its reason at the end."""

from __future__ import annotations

import functools
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

import ser_hpc  # noqa: F401  (before torch: gives a nameless user id the name that torch asks for)

# A shell that puts a command into the background has it ignore SIGINT, nohup SIGHUP, and whatever it starts does so too: tests
# send them.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

if "PYTEST_XDIST_WORKER" in os.environ:
    import torch

    torch.set_num_threads(1)  # for models of some thousand weights more threads only wait for each other

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
settings.load_profile("busy")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What this machine lacks is no failure, but is not passed over in silence either."""
    skipped = terminalreporter.getreports("skipped")
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section(f"not run here: {len(skipped)} tests", sep="-")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5}  {reason}")


# Tests of these take longest: dealt out first, they do not run alone at the end.
_FIRST = ("tests/launchers/", "tests/engine/", "tests/launch/", "tests/test_", "tests/results/", "tests/shards/", "tests/run/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first; a file's tests stay together and in order."""
    place = {name: number for number, name in enumerate(_FIRST)}
    items.sort(key=lambda item: min((n for name, n in place.items() if item.nodeid.startswith(name)), default=len(place)))


class ByFile(LoadScopeScheduling):
    """Deals out whole files to the processes of pytest-xdist, as a file's tests share what they train. Those that need the test
    Slurm count as one file: they share a cluster."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return "slurm" if _needs_slurm(path) else path


@functools.cache
def _needs_slurm(path: str) -> bool:
    return "slurm: Cluster" in (Path(__file__).parents[1] / path).read_text(encoding="utf-8")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    config.option.loadscopereorder = False  # the order is `pytest_collection_modifyitems`'
    return ByFile(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """One for each core that this process may use, four at most, and one more, as tests of Slurm and of signals mostly wait."""
    return min(len(os.sched_getaffinity(0)), 4) + 1
