"""A sweep looks at dev alone, and whatever ends its processes nothing is lost, doubled, or trained twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import warm_ranks
from small import packed_tones, pretrained_wav2vec2

from ser_hpc import sweep as command
from ser_hpc.config.sweep import SweepSettings
from ser_hpc.core.errors import UserError
from ser_hpc.launchers import sweep_worker
from ser_hpc.launchers.sweep_search import next_configuration, tell
from ser_hpc.results.sweep_table import make_table
from ser_hpc.run.run_dir import Trial
from ser_hpc.run.snapshot import CodeSnapshot
from ser_hpc.run.sweep_dir import End, SweepDir

Start = Callable[..., int]
LR = {"train.lr": [1e-3, 1e-1]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("sweeps")
    pretrained_wav2vec2(base / "weights")
    return base


@pytest.fixture
def start(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """`start(settings, *arguments)` gives the command for a grid of heads on a frozen encoder; the work is done here."""

    def work_here(sweep: SweepDir, code: CodeSnapshot) -> None:
        with warm_ranks():
            raise SystemExit(command.main(["--work", str(sweep.path)]))

    monkeypatch.setattr(command, "_become_worker", work_here)

    def start(settings: dict[str, Any], *arguments: str, **sweep: Any) -> int:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({"method": "grid", "settings": settings} | sweep))
        given = [
            f"run.root={tmp_path / 'runs'}", f"data.shards={packed_tones(base, 3)}", f"model.weights={base / 'weights'}",
            "model.freeze=encoder", "model.head.projection=8", "train.epochs=2", "train.global_batch=16",
        ]  # fmt: skip
        try:
            return command.main([str(path), "--folds", "3", "--cluster", "local", *given, *arguments])
        except SystemExit as end:
            return int(str(end.code))

    return start


def the_sweep(tmp_path: Path) -> SweepDir:
    (path,) = (tmp_path / "runs" / "sweeps").iterdir()
    return SweepDir(path)


def test_the_best_on_dev_is_reported_on_test_and_no_other(
    start: Start, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(LR) == 0
    sweep = the_sweep(tmp_path)
    table = json.loads(sweep.table_json.read_text())
    rows = table["configurations"]
    assert [row["state"] for row in rows] == ["done"] * 2 and table["looked_at"] == 2
    assert [row["dev_uar"] for row in rows] == sorted((row["dev_uar"] for row in rows), reverse=True)
    assert table["chosen"] == rows[0]["run"]
    runs = sweep.runs
    assert [run.parent.name for run in runs.glob("*/report.json")] == [table["chosen"]]
    assert len(list(packed_tones(base, 3).glob("scored/*/*.json"))) == 1  # test clips were scored for one configuration
    assert "out of 2 configurations" in (runs / table["chosen"] / "report.md").read_text()
    assert "looked at on dev (2 done)" in capsys.readouterr().out
    (cache,) = (runs / "features").iterdir()  # the encoder ran once for all of them
    made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}

    # With one more value: another sweep, in which nothing is trained twice.
    attempts = sorted(runs.glob("*/seed_*/fold_*/attempt_*"))
    assert start({"train.lr": [*LR["train.lr"], 2e-2]}) == 0
    assert len(sorted(runs.glob("*/seed_*/fold_*/attempt_*"))) == len(attempts) + 3
    assert made == {path: path.stat().st_mtime_ns for path in cache.iterdir()}


def test_a_configuration_that_fails_ends_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told with its reason, left at that, and tried again when asked."""
    real = sweep_worker.prepare_experiment

    def failing(settings: Any) -> Any:
        if settings.train.lr == 1e-3:
            raise UserError("the disk is on fire")
        return real(settings)

    monkeypatch.setattr(sweep_worker, "prepare_experiment", failing)
    assert start(LR) == 0
    table = make_table(the_sweep(tmp_path), 2)
    assert table.counts == {"done": 1, "failed": 1} and table.is_complete
    assert "failed: the disk is on fire" in capsys.readouterr().out
    monkeypatch.undo()


def ended(sweep: SweepDir, asked: SweepSettings, scores: dict[int, float]) -> None:
    """All that is asked for is trained, in no time."""
    while True:
        with next_configuration(sweep, asked) as configuration:
            if configuration is None:
                return
            uar = scores.get(configuration.number, 0.5)
            sweep.write_end(configuration, End("done", f"run-{configuration.number}", {Trial(0, 0): uar}))
        tell(sweep, asked)


def asked_of(method: str, many: int = 12, **more: Any) -> SweepSettings:
    lr = {"min": 1e-4, "max": 1e-1, "scale": "log"}
    tree = {"method": method, "configurations": many, "settings": {"train.lr": lr, "model.head": ["mean_pool", "mlp"]}}
    return SweepSettings.model_validate(tree | more)


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_whoever_is_killed_nothing_is_lost_or_doubled(method: str, tmp_path: Path) -> None:
    """Three ask at a time, two are killed: what these had begun is asked for first, and each number once."""
    if method == "optuna":
        pytest.importorskip("optuna")
    sweep, asked = SweepDir(tmp_path / "sweeps" / "one"), asked_of(method)
    killed, living = ExitStack(), ExitStack()
    begun = [killed.enter_context(next_configuration(sweep, asked)) for _ in range(2)]
    kept = living.enter_context(next_configuration(sweep, asked))
    assert kept is not None and [each.number for each in [*begun, kept] if each] == [0, 1, 2]
    killed.close()  # the kernel gives their locks back
    with next_configuration(sweep, asked) as taken_over:
        assert taken_over == begun[0]
    ended(sweep, asked, {})
    assert sweep.end(kept) is None and make_table(sweep, 12).counts == {"done": 11, "open": 1}
    sweep.write_end(kept, End("failed", None, {}, error="a reason"))
    living.close()
    ended(sweep, asked, {})
    configurations = sweep.configurations()
    assert [each.number for each in configurations] == list(range(12))
    assert len({str(each.values) for each in configurations}) == 12
    if method == "optuna":
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        tell(sweep, asked)
        study = optuna.load_study(study_name="one", storage=JournalStorage(JournalFileBackend(str(sweep.journal))))
        states = [trial.state.name for trial in study.trials]
        assert states == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * 9]
    assert make_table(sweep, 12).is_complete
    ended(sweep, asked_of(method, 14), {})  # more of them later
    assert [each.number for each in sweep.configurations()] == list(range(14))


def test_a_kill_between_the_journal_and_the_number_asks_for_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    sweep, asked = SweepDir(tmp_path / "sweeps" / "one"), asked_of("optuna")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SweepDir, "take", killed)
    with pytest.raises(KeyboardInterrupt), next_configuration(sweep, asked):
        pass
    monkeypatch.undo()
    ended(sweep, asked, {})
    assert [each.number for each in sweep.configurations()] == list(range(12))


def test_the_chosen_one_is_the_best_on_dev_and_what_is_open_keeps_the_choice_open(tmp_path: Path) -> None:
    sweep, asked = SweepDir(tmp_path / "sweeps" / "one"), asked_of("random", 5)
    ended(sweep, asked, {3: 0.9, 1: 0.9, 4: 0.7})
    table = make_table(sweep, asked.limit)
    assert [configuration.number for configuration, _ in table.rows] == [1, 3, 4, 0, 2]
    assert table.chosen is not None and table.chosen.run == "run-1" and table.is_complete
    assert not make_table(sweep, 6).is_complete


def test_a_hopeless_configuration_is_found_over_the_same_folds(tmp_path: Path) -> None:
    """Compared is with those that have come as far: pruned ones over the folds that they have, and none of fewer folds."""
    sweep, asked = SweepDir(tmp_path / "sweeps" / "one"), asked_of("random", 8, prune=True)
    worker = sweep_worker.SweepWorker(sweep, asked, CodeSnapshot(tmp_path), None)  # type: ignore[arg-type]
    for number in range(5):
        assert not worker._is_hopeless({Trial(0, 0): 0.1}, [0])
        with next_configuration(sweep, asked) as configuration:
            assert configuration is not None
            dev = {Trial(0, 0): 0.5 + number / 100} | ({Trial(0, 1): 0.2} if number < 4 else {})
            sweep.write_end(configuration, End("done" if number < 4 else "pruned", "run", dev))
    assert worker._is_hopeless({Trial(0, 0): 0.51}, [0]) and not worker._is_hopeless({Trial(0, 0): 0.52}, [0])
    assert not worker._is_hopeless({Trial(0, 0): 0.1, Trial(0, 1): 0.1}, [0, 1])  # four have come so far


def test_a_sweep_needs_neither_torch_nor_optuna_to_be_planned() -> None:
    code = "import sys, ser_hpc.sweep; assert not {'torch', 'optuna'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
