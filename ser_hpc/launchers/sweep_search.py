"""Ask what a sweep tries next, for each of the processes that work on it: nobody waits for another's configuration to end.

What was begun and is trained by nobody, as its process was killed, comes before anything new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ser_hpc.config.sweep import SweepSettings
from ser_hpc.results.sweep_table import format_value
from ser_hpc.run.sweep_dir import Configuration, SweepDir


@contextmanager
def next_configuration(sweep: SweepDir, asked: SweepSettings) -> Iterator[Configuration | None]:
    """Yield what this process is to train, and keep the others from it meanwhile; None: there is nothing left."""
    with ExitStack() as held:
        with sweep.lock():
            found = _next(sweep, asked, held)
        yield found


def _next(sweep: SweepDir, asked: SweepSettings, held: ExitStack) -> Configuration | None:
    known = sweep.configurations()
    for configuration in known:
        if sweep.end(configuration) is None and held.enter_context(sweep.training(configuration)):
            return configuration
    if len(known) >= asked.limit:
        return None
    number = known[-1].number + 1 if known else 0
    if asked.method == "optuna":
        from ser_hpc.launchers import sweep_optuna

        number, values = sweep_optuna.ask(sweep, asked)
    elif (point := asked.point(number)) is not None:
        values = dict(point)
    else:
        return None
    configuration = sweep.take(number, values)
    mine = held.enter_context(sweep.training(configuration))
    assert mine, "nobody else knows of it"
    return configuration


def tell(sweep: SweepDir, asked: SweepSettings) -> None:
    """Let the search learn from what has ended."""
    if asked.method == "optuna":
        from ser_hpc.launchers import sweep_optuna

        with sweep.lock():
            sweep_optuna.tell(sweep)


def describe_values(values: Mapping[str, Any]) -> str:
    """Format values for a line: `train.lr=0.003 model.head.hidden=[64]`."""
    return " ".join(f"{name}={format_value(value)}" for name, value in values.items())
