"""For all tests: signals are as a terminal would leave them, and what was not run is counted by its reason at the end."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

import ser_hpc  # noqa: F401  (before torch: gives a nameless user id the name that torch asks for)

# A shell that puts a command into the background has it ignore SIGINT, nohup SIGHUP, and whatever it starts does so too: tests
# send them.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

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
