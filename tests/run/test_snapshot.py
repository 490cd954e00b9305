"""Jobs run the code that was there when they were submitted, and a run says so when its trials did not all run the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ser_hpc.core.atomic_io import read_json
from ser_hpc.core.errors import UserError
from ser_hpc.run import snapshot
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.run.snapshot import CodePolicy

ROOT = Path(__file__).parents[2]
FIRST, SECOND, THIRD = Trial(0, 0), Trial(0, 1), Trial(1, 0)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of package and configurations that a test may edit, taken for the present code."""
    folder = tmp_path / "checkout"
    for name in ("ser_hpc", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(snapshot, "PACKAGE", folder / "ser_hpc")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with three trials planned."""
    run = RunDir(tmp_path / "runs" / "small-12345678")
    run.path.mkdir(parents=True)
    run.plan.write_text(json.dumps({"trials": [{"seed": t.seed, "fold": t.fold} for t in (FIRST, SECOND, THIRD)]}))
    return run


def edit(checkout: Path, name: str = "engine/loop.py") -> None:
    path = checkout / "ser_hpc" / name
    path.write_text(path.read_text() + "\n# edited\n")


def attempted(run: RunDir, trial: Trial, digest: str | None, started: float, *, how: str | None = None, step: int = 0) -> None:
    """An attempt of a trial as it leaves its files; `how` None: it runs."""
    attempt = run.trial(trial).claim()
    attempt.attempt.write_text(json.dumps({"code": digest, "started": started}))
    attempt.progress.write_text(json.dumps({"step": step}))
    if how:
        attempt.end.write_text(json.dumps({"outcome": how, "error": None, "host": "n1"}))


def python(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False
    )


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not here (in Debian's package git)")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def sources(package: Path) -> dict[str, bytes]:
    return {str(path.relative_to(package)): path.read_bytes() for path in package.rglob("*.py")}


def test_jobs_run_the_snapshot_from_the_checkouts_own_folder(checkout: Path, run: RunDir) -> None:
    """The checkout is broken after the snapshot was taken: only who imports from the checkout notices."""
    environment = snapshot.snapshot_environment(snapshot.take_snapshot(run))
    (checkout / "ser_hpc" / "__init__.py").write_text("raise SystemExit('the edited checkout')")
    assert "the edited checkout" in python(checkout, {}, "-m", "ser_hpc.launch", "--help").stderr
    for folder in (checkout, Path("/")):
        assert python(folder, environment, "-m", "ser_hpc.launch", "--help").returncode == 0
        where = "import ser_hpc; from ser_hpc.config.load import find_config; print(ser_hpc.__file__, find_config('demo', ''))"
        module, configuration = python(folder, environment, "-c", where).stdout.split()
        assert Path(module).is_relative_to(run.code)
        assert Path(configuration).is_relative_to(run.code)  # a label set by name means what it meant then


def test_the_callers_own_import_path_stays_behind_the_snapshot(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a job that submits again does not pile snapshots up."""
    copy = snapshot.take_snapshot(run)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(copy.path), "/my/modules"]))
    assert snapshot.snapshot_environment(copy)["PYTHONPATH"] == os.pathsep.join([str(copy.path), "/my/modules"])
    with pytest.raises(UserError, match=r"choose another run\.root"):
        snapshot.snapshot_environment(snapshot.CodeSnapshot(Path("/runs/at:noon/code/abc")))


def test_the_same_code_is_copied_once_and_other_text_changes_nothing(checkout: Path, run: RunDir) -> None:
    copy = snapshot.take_snapshot(run)
    before = {path: path.stat().st_mtime_ns for path in run.code.rglob("*")}
    (checkout / "ser_hpc" / "notes.md").write_text("not code")
    (checkout / "README.md").write_text("not code")
    (checkout / "ser_hpc" / ".#loop.py").symlink_to("an editor's lock that points nowhere")
    assert snapshot.take_snapshot(run) == copy
    assert {path: path.stat().st_mtime_ns for path in run.code.rglob("*")} == before
    edit(checkout)
    assert snapshot.take_snapshot(run) != copy
    assert len(list(run.code.iterdir())) == 2  # and nothing half-made beside them


def test_a_snapshot_of_a_snapshot_is_itself(checkout: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report job, which runs the copy, and a launcher started from it, see the same code."""
    copy = snapshot.take_snapshot(run)
    monkeypatch.setattr(snapshot, "PACKAGE", copy.package)
    assert snapshot.present_digest() == copy.digest
    assert snapshot.take_snapshot(run) == copy
    other = RunDir(run.path.with_name("other"))
    assert sources(snapshot.take_snapshot(other).package) == sources(copy.package)


def test_an_edited_snapshot_is_refused(checkout: Path, run: RunDir) -> None:
    copy = snapshot.take_snapshot(run)
    (copy.package / "train.py").write_text("edited")
    with pytest.raises(UserError, match="has been edited"):
        snapshot.take_snapshot(run)


@needs_git
def test_commit_and_patch_give_the_snapshot_back(checkout: Path, run: RunDir, tmp_path: Path) -> None:
    """Whatever was edited, deleted, added and staged; the user's own git settings do not matter."""
    git(checkout, "init", "-q")
    git(checkout, "add", "ser_hpc")
    git(checkout, "commit", "-q", "-m", "first")
    git(checkout, "config", "diff.noprefix", "true")
    clean = read_json(snapshot.take_snapshot(run).path / "origin.json")
    assert clean["modified"] is False and not snapshot.is_modified(clean)
    assert snapshot.is_modified({"differs": True}) and not snapshot.is_modified({"differs": None}), "an earlier version's"
    assert clean["versions"]["numpy"]
    edit(checkout)
    (checkout / "ser_hpc" / "report.py").unlink()
    (checkout / "ser_hpc" / "staged.py").write_text("a = 1\n")
    git(checkout, "add", "ser_hpc/staged.py")
    (checkout / "ser_hpc" / "models" / "größer.py").write_text("b = 2")
    (checkout / ".gitignore").write_text("ignored.py\n")
    (checkout / "ser_hpc" / "ignored.py").write_text("c = 3\n")
    copy = snapshot.take_snapshot(run)
    origin = read_json(copy.path / "origin.json")
    assert origin["commit"] == clean["commit"]
    assert origin["modified"] is True
    git(tmp_path, "clone", "-q", str(checkout), "again")
    git(tmp_path / "again", "apply", str(copy.path / "difference.patch"))
    assert sources(tmp_path / "again" / "ser_hpc") == sources(copy.package)


@needs_git
def test_a_package_that_only_lies_inside_a_checkout_has_no_commit(checkout: Path, run: RunDir) -> None:
    """A virtual environment inside some project: that project's commit says nothing about the package."""
    git(checkout, "init", "-q")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "something else")
    origin = read_json(snapshot.take_snapshot(run).path / "origin.json")
    assert origin["commit"] is None
    assert origin["modified"] is None


def test_a_full_disk_leaves_nothing_half_copied(checkout: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "write_json", full)
    with pytest.raises(UserError, match="No space left"):
        snapshot.take_snapshot(run)
    assert list(run.code.iterdir()) == []


@pytest.mark.parametrize("policy", ["refuse", "saved", "mixed"])
def test_without_other_code_every_policy_takes_the_present_one(checkout: Path, run: RunDir, policy: CodePolicy) -> None:
    copy = snapshot.choose_code(run, policy)
    attempted(run, FIRST, copy.digest, 1.0, step=3)
    assert snapshot.choose_code(run, policy) == copy
    assert snapshot.mixture_note(run) is None


def test_other_code_is_refused_naming_trials_files_and_choices(checkout: Path, run: RunDir) -> None:
    old = snapshot.take_snapshot(run)
    attempted(run, FIRST, old.digest, 1.0, how="done", step=9)
    attempted(run, THIRD, old.digest, 2.0)
    edit(checkout)
    (checkout / "ser_hpc" / "new.py").touch()
    with pytest.raises(UserError) as caught:
        snapshot.choose_code(run, "refuse")
    for words in (
        f"{old.digest}: seed 0 fold 0, seed 1 fold 0; since then other: ser_hpc/engine/loop.py, ser_hpc/new.py\n",
        "--code saved",
        "--code mixed",
        "run.name",
    ):
        assert words in str(caught.value)
    assert list(run.code.iterdir()) == [old.path]  # refused means that nothing was done


@pytest.mark.parametrize("name", ["monitor/status_words.py", "status.py", "results/report_json.py", "launchers/plan_screen.py"])
def test_words_of_the_terminal_may_be_edited_while_jobs_wait(name: str, checkout: Path, run: RunDir) -> None:
    """What can change no result stops nothing, and the report speaks of one code."""
    attempted(run, FIRST, snapshot.choose_code(run, "refuse").digest, 1.0, step=3)
    (checkout / "ser_hpc" / name).touch()
    edit(checkout, name)
    new = snapshot.choose_code(run, "refuse", {snapshot.present_digest(): [THIRD]})
    attempted(run, SECOND, new.digest, 2.0, step=3)
    assert len(snapshot.digests_used(run)) == 2 and snapshot.mixture_note(run) is None


@pytest.mark.parametrize(
    "name", ["run/experiment.py", "tasks/metrics.py", "protocols/folds.py", "train.py", "new_room/file.py"]
)
def test_whatever_can_change_a_result_may_not(name: str, checkout: Path, run: RunDir) -> None:
    attempted(run, FIRST, snapshot.choose_code(run, "refuse").digest, 1.0, step=3)
    (checkout / "ser_hpc" / name).parent.mkdir(exist_ok=True)
    (checkout / "ser_hpc" / name).touch()
    edit(checkout, name)
    with pytest.raises(UserError, match=f"since then other: ser_hpc/{name}"):
        snapshot.choose_code(run, "refuse")


def test_saved_goes_on_with_the_code_that_was_started_last(checkout: Path, run: RunDir) -> None:
    first = snapshot.take_snapshot(run)
    edit(checkout)
    second = snapshot.take_snapshot(run)
    edit(checkout)
    attempted(run, FIRST, second.digest, 7.0, step=1)
    attempted(run, SECOND, first.digest, 3.0, step=1)
    assert snapshot.choose_code(run, "saved") == second
    attempted(run, FIRST, first.digest, 8.0, step=1)
    assert snapshot.choose_code(run, "saved") == first
    shutil.rmtree(first.path)
    with pytest.raises(UserError, match=r"not in .* any more"):
        snapshot.choose_code(run, "saved")


def test_mixed_takes_the_present_code_and_the_report_can_name_both(checkout: Path, run: RunDir) -> None:
    old = snapshot.take_snapshot(run)
    attempted(run, FIRST, old.digest, 1.0, how="stopped", step=4)
    edit(checkout)
    new = snapshot.choose_code(run, "mixed")
    assert new.digest == snapshot.present_digest() != old.digest
    attempted(run, FIRST, new.digest, 2.0, step=5)
    attempted(run, SECOND, new.digest, 3.0, step=1)
    assert snapshot.digests_used(run) == {new.digest: [FIRST, SECOND], old.digest: [FIRST]}
    sentence = snapshot.mixture_note(run)
    assert sentence is not None
    assert f"{old.digest} ran seed 0 fold 0" in sentence
    assert f"{new.digest} ran seed 0 fold 0, seed 0 fold 1" in sentence


def test_an_attempt_that_made_no_step_leaves_no_code_behind(checkout: Path, run: RunDir) -> None:
    """A mistake in the code, mended and submitted again, is one run of one code; so are attempts that nothing is known of."""
    attempted(run, FIRST, "0123456789ab", 1.0, how="failed", step=0)
    attempted(run, FIRST, None, 2.0, how="done", step=9)
    run.trial(SECOND).claim()
    assert snapshot.digests_used(run) == {}
    attempted(run, THIRD, "0123456789ab", 3.0)  # it runs, so there may soon be a step
    with pytest.raises(UserError, match="its code is not kept"):
        snapshot.choose_code(run, "refuse")


def test_snapshots_of_before_the_rooms_are_compared_by_their_own_places() -> None:
    words = ("cluster/show.py", "results/render.py", "console.py", "shards/show.py", "shards/inspect.py", "results/text.py")
    assert not [name for name in words if snapshot._can_change_results(name)]
    says = (
        "cluster/plan.py",
        "cluster/describe.py",
        "corpora/folds.py",
        "tasks/metrics.py",
        "engine/loop.py",
        "data/order.py",
    )
    assert all(snapshot._can_change_results(name) for name in says)


def test_what_is_said_to_change_no_result_takes_no_part_in_training() -> None:
    """But for what starts a process and names its code: what a trial imports may change it."""
    code = "import sys, ser_hpc.train, ser_hpc.engine.loop, ser_hpc.engine.probe\n"
    code += "print(*(each.__file__ for name, each in sys.modules.items() if name.startswith('ser_hpc')), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    names = {Path(path).relative_to(snapshot.PACKAGE).as_posix() for path in loaded if path.startswith(str(snapshot.PACKAGE))}
    assert "inference/initial.py" in names and "engine/loop.py" in names
    assert {name for name in names if not snapshot._can_change_results(name)} <= {"core/cli.py", "run/snapshot.py"}
