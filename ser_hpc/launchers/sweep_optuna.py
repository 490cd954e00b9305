"""Search by Optuna (pip install 'ser_hpc[search]'), by ask and tell on a journal in the sweep's folder.

Its journal is made for shared disks, where SQLite breaks. Only who holds the sweep's lock opens it, and it is told what the
sweep's own files say: a process that is killed between the two leaves nothing that the next one would not mend.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

from ser_hpc.config.sweep import Range, SweepSettings
from ser_hpc.core.errors import UserError
from ser_hpc.run.sweep_dir import SweepDir


def ask(sweep: SweepDir, asked: SweepSettings) -> tuple[int, dict[str, Any]]:
    """Return the number and the values of the next configuration. The caller holds the sweep's lock."""
    import optuna

    study, known = _study(sweep, asked.seed), {configuration.number for configuration in sweep.configurations()}
    _tell(study, sweep)
    trials = study.get_trials(deepcopy=False)
    begun = next((trial for trial in trials if not trial.state.is_finished() and trial.number not in known), None)
    distributions = {name: _distribution(each) for name, each in asked.settings.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = begun or study.ask(distributions)  # one that was asked for, and never taken
    if missing := distributions.keys() - trial.params.keys():
        raise UserError(f"{sweep.journal} asks for other settings than {sorted(missing)}: it is another sweep's, or damaged")
    return trial.number, {name: _value(asked.settings[name], trial.params[name]) for name in asked.settings}


def tell(sweep: SweepDir) -> None:
    """Write what has ended into the journal. The caller holds the sweep's lock."""
    _tell(_study(sweep, 0), sweep)


def _tell(study: Any, sweep: SweepDir) -> None:
    from optuna.trial import TrialState

    states = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    is_open = {trial.number for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()}
    for configuration in sweep.configurations():
        if configuration.number in is_open and (end := sweep.end(configuration)) is not None:
            if end.score is not None:
                study.tell(configuration.number, end.score)
            else:
                study.tell(configuration.number, state=states.get(end.state, TrialState.FAIL))


def _study(sweep: SweepDir, seed: int) -> Any:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError as error:
        raise UserError("method: optuna needs the package optuna: pip install 'ser_hpc[search]', or take random") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = str(sweep.journal)
    drawn = len(sweep.configurations())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
        # Of those that are trained now it is assumed that they end badly, so that no two processes try the same.
        sampler = optuna.samplers.TPESampler(seed=seed * 1_000_003 + drawn, constant_liar=True)
        name = os.path.basename(sweep.path)  # noqa: PTH119
        return optuna.create_study(storage=storage, sampler=sampler, study_name=name, direction="maximize", load_if_exists=True)


def _distribution(each: Range | tuple[Any, ...]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(each, Range):
        return CategoricalDistribution([json.dumps(value) for value in each])
    log = each.scale == "log"
    if each.is_whole:
        return IntDistribution(int(each.min), int(each.max), log=log, step=int(each.step or 1))
    return FloatDistribution(each.min, each.max, log=log, step=each.step)


def _value(each: Range | tuple[Any, ...], drawn: Any) -> Any:
    if isinstance(each, Range):
        return drawn if each.is_whole else float(f"{drawn:.6g}")
    return json.loads(drawn)
