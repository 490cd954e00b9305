"""An ensemble is the mean of what its members saved, clip by clip; it is a run of its own, and leaves them as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import rewrite

from ser_hpc import compare, predict, report
from ser_hpc.core.errors import UserError
from ser_hpc.results.cross_validation import cross_validate
from ser_hpc.results.ensembles import fit_mixture, make_ensemble
from ser_hpc.run.predictions import Prediction, read_predictions
from ser_hpc.run.run_dir import RunDir, Trial

MakeRun = Callable[..., RunDir]
CLASSES = ("angry", "happy", "neutral", "sad")


def unsure(run: RunDir, seed: int, towards_truth: float) -> RunDir:
    """The run with probabilities in place of certainties, in another order of clips."""
    rng = np.random.default_rng(seed)

    def change(found: list[Prediction]) -> list[Prediction]:
        changed = []
        for p in rng.permutation(np.array(found, dtype=object)):
            odds = rng.dirichlet(np.ones(4)) + towards_truth * (np.array(CLASSES) == p.truth)
            named = {name: round(float(x), 6) for name, x in zip(CLASSES, odds / odds.sum(), strict=True)}
            changed.append(replace(p, probabilities=named, predicted=max(named, key=named.__getitem__)))
        return changed

    for trial in run.trials():
        rewrite(run, trial, change)
    return run


@pytest.fixture
def members(make_run: MakeRun) -> list[RunDir]:
    return [unsure(make_run(name="one", seeds=(0, 1)), 1, 0.3), unsure(make_run(name="two"), 2, 0.35)]


def of_clip(run: RunDir, trial: Trial) -> dict[str, Prediction]:
    return {p.part + p.utterance_id: p for p in read_predictions(run.trial(trial).current.predictions)}


def contents(run: RunDir) -> dict[str, str]:
    files = (path for path in run.path.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_it_is_the_mean_over_runs_of_the_mean_over_their_seeds(members: list[RunDir]) -> None:
    before = [contents(run) for run in members]
    made = make_ensemble([run.path for run in members])
    assert made.path.parent == members[0].path.parent and [contents(run) for run in members] == before
    assert made.trials() == tuple(Trial(0, fold) for fold in range(5))
    for trial in made.trials():
        seeds = [of_clip(members[0], Trial(seed, trial.fold)) for seed in (0, 1)]
        other = of_clip(members[1], trial)
        for clip, p in of_clip(made, trial).items():
            for name in CLASSES:
                mine = np.mean([seed[clip].probabilities[name] for seed in seeds])
                expected = (mine + other[clip].probabilities[name]) / 2
                assert p.probabilities[name] == pytest.approx(expected, abs=1e-6)
            assert p.predicted == max(p.probabilities, key=p.probabilities.__getitem__)
    assert contents(make_ensemble([run.path for run in members])) == contents(made)  # and the same again


def test_it_is_reported_and_compared_as_a_run(members: list[RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(run.path) for run in members]
    assert report.main(["--ensemble", *paths, "--weighted", "--no-panel"]) == 0
    (made,) = members[0].path.parent.glob("ensemble-*")
    found = json.loads((made / "report.json").read_text())
    assert found["uar"]["ci95"] is not None and found["num_trials"] == 5
    assert "one (2 seeds, weight" in found["about"]["ensemble"] and "dev part" in found["about"]["ensemble"]
    assert all(
        sum(w) == pytest.approx(1, abs=1e-5) for w in json.loads((made / "ensemble.json").read_text())["weights"].values()
    )
    assert report.main([str(made), "--no-panel"]) == 0
    assert compare.main([str(made), paths[0]]) == 0
    better = [cross_validate(RunDir(Path(path))).scores for path in (made, *paths)]
    assert better[0] is not None and all(better[0].uar.pooled > each.uar.pooled for each in better[1:] if each)
    with pytest.raises(UserError, match="has no model: give one of those runs"):
        predict.main([str(made), str(made)])
    with pytest.raises(UserError, match="is an ensemble itself"):
        make_ensemble([made, members[0].path])
    capsys.readouterr()


def test_a_changed_ensemble_is_refused(members: list[RunDir]) -> None:
    made = make_ensemble([run.path for run in members])
    made.ensemble.write_text(made.ensemble.read_text().replace('"one"', '"won"'))
    with pytest.raises(UserError, match="was changed after it was written"):
        cross_validate(made)


def test_what_is_no_ensemble_is_refused(make_run: MakeRun, members: list[RunDir], tmp_path: Path) -> None:
    one, two = (run.path for run in members)
    with pytest.raises(UserError, match="have the same predictions"):
        make_ensemble([one, one])
    with pytest.raises(UserError, match="one run of one seed"):
        make_ensemble([two])
    with pytest.raises(UserError, match=r"one and .*other have other folds"):
        make_ensemble([one, make_run(name="other", each=5).path])
    with pytest.raises(UserError, match=r"tells .* apart"):
        make_ensemble([one, make_run(name="fewer", classes=CLASSES[:3]).path])
    with pytest.raises(UserError, match="is there already, and is not this ensemble"):
        make_ensemble([one, two], two)
    members[1].trial(Trial(0, 3)).done.unlink()
    with pytest.raises(UserError, match=r"two is not finished: seed 0 fold 3 of 5 trials"):
        make_ensemble([one, two])
    with pytest.raises(UserError, match="--weighted and --out are of --ensemble"):
        report.main([str(one), "--weighted"])
    with pytest.raises(UserError, match="give one run directory, or --ensemble"):
        report.main([])


@given(seed=st.integers(0, 1000), members=st.integers(2, 4), clips=st.integers(5, 60))
def test_fitted_weights_are_the_most_likely(seed: int, members: int, clips: int) -> None:
    """No other weights make dev more probable; the order of members does not matter."""
    rng = np.random.default_rng(seed)
    likelihoods = rng.beta(1, 2, (clips, members))
    weights = fit_mixture(likelihoods)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    best = np.log(likelihoods @ weights).mean()
    others = rng.dirichlet(np.ones(members), 200)
    assert np.log(likelihoods @ others.T).mean(0).max() <= best + 1e-5
    order = rng.permutation(members)
    assert np.log(likelihoods @ fit_mixture(likelihoods[:, order])[np.argsort(order)]).mean() == pytest.approx(best, abs=1e-6)
