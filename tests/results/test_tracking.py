"""`python -m ser_hpc.track`: all of a run, each number once however often it is handed on, nothing of machine and people."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ser_hpc import track
from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError
from ser_hpc.report import write_report
from ser_hpc.results.report_json import to_json
from ser_hpc.results.tracking.record import Record, make_records, read_points
from ser_hpc.results.tracking.shown_settings import without_places
from ser_hpc.run.run_dir import RunDir, Trial

MakeRun = Callable[..., RunDir]
STEPS = 3  # an epoch
OWN = """
from ser_hpc.results.tracking.tracker import Tracker
kept = []
class Mine(Tracker):
    def keep(self, record):
        kept.append((self.project, record))
        return 1
    def close(self):
        return "nowhere"
"""


def train(run: RunDir, trial: Trial, epochs: int, more: int = 0) -> None:
    """The files of a trial's newest attempt after so many scored epochs and `more` steps, the last line being cut off."""
    attempt = run.trial(trial).current
    attempt.path.mkdir(parents=True, exist_ok=True)
    steps = [
        {
            "step": step,
            "epoch": step // STEPS,
            "loss": 1 / (step + trial.fold + 1),
            "lr": 1e-3,
            "grad_norm": None if step == 1 else 2.0,
        }
        for step in range(epochs * STEPS + more)
    ]
    scored = [
        {"epoch": e, "train_loss": 0.5, "dev_uar": 0.1 * e, "dev_loss": 0.25, "best": True, "dev": {"gender": {"uar": 0.5}}}
        for e in range(epochs)
    ]
    attempt.steps.write_text("".join(json.dumps(line) + "\n" for line in steps) + '{"step": 9')
    attempt.epochs.write_text("".join(json.dumps(line) + "\n" for line in scored))
    write_json(attempt.attempt, {"started": 1.7e9, "host": "a-secret-node", "nodes": "a-secret-node"})
    write_json(attempt.end, {"outcome": "done", "error": None, "host": "a-secret-node", "ended": 1.7e9 + 60})
    write_json(attempt.progress, {"model_audio_s_per_s": 30.0, "data_audio_s_per_s": None})


@pytest.fixture
def run(make_run: MakeRun) -> RunDir:
    """Two trials that are done."""
    made = make_run(num_folds=3)
    for trial in made.trials():
        train(made, trial, 4)
    return made


@pytest.fixture
def unfinished(run: RunDir) -> Callable[[], None]:
    """Makes of the run one whose second trial is in its third epoch, and third has not begun; call it to finish both."""
    aside = run.path.with_name("aside")
    shutil.copytree(run.path, aside)
    run.trial(Trial(0, 1)).done.unlink()
    run.trial(Trial(0, 1)).current.end.unlink()
    train(run, Trial(0, 1), 2, more=1)
    run.trial(Trial(0, 1)).current.end.unlink()
    shutil.rmtree(run.trial(Trial(0, 2)).path)
    return lambda: shutil.copytree(aside, run.path, dirs_exist_ok=True) and None


def numbers(record: Record) -> dict[tuple[str, int], float]:
    """Every number that a tracker has to hold of a record: by name and step."""
    curves = {(name, point.step): number for point in record.points for name, number in point.numbers.items()}
    return curves | {(name, record.step): score for name, score in record.scores.items()}


def records(run: RunDir) -> list[Record]:
    return list(make_records(run, write_report(run, panel=False), with_report=True))


def test_a_record_holds_what_the_files_and_the_report_say(run: RunDir) -> None:
    whole, *trials = records(run)
    content = to_json(write_report(run, panel=False))
    assert (whole.scores["test/uar_ci95_low"], whole.scores["test/uar_ci95_high"]) == tuple(content["uar"]["ci95"])
    assert whole.scores["test/uar_pooled"] == content["uar"]["pooled"] and whole.finished
    assert [each.scores["test/uar"] for each in trials] == [fold["uar"] for fold in content["folds"]]
    assert {each.parent for each in trials} == {whole.key} and len({each.key for each in trials}) == 3
    assert [point.step for point in trials[0].points] == [*range(1, 4 * STEPS + 1)]
    last = trials[1].points[-1].numbers
    assert last == {
        "train/loss": 1 / 13,
        "train/lr": 1e-3,
        "train/grad_norm": 2.0,
        "train/epoch_loss": 0.5,
        "dev/uar": pytest.approx(0.3),
        "dev/loss": 0.25,
        "dev/gender/uar": 0.5,
    }
    assert "train/grad_norm" not in trials[0].points[1].numbers, "what is not finite is left out"


def test_of_an_unfinished_trial_what_a_resume_cannot_change(run: RunDir, unfinished: Callable[[], None]) -> None:
    """Steps behind the last scored epoch may be made again: they come when theirs is scored."""
    whole, done, going = records(run)
    assert (whole.state, done.state, going.state) == ("1 of 3 trials finished", "finished", "not finished")
    assert whole.scores == {"trials/finished": 1, "trials/planned": 3} and not going.scores and not going.finished
    assert [point.step for point in going.points] == [*range(1, 2 * STEPS + 1)]
    unfinished()
    after = {each.key: numbers(each) for each in records(run)}
    assert numbers(going).items() <= after[going.key].items() and len(after) == 4


def test_a_probe_counts_by_epochs(run: RunDir) -> None:
    attempt = run.trial(Trial(0, 0)).current
    attempt.steps.write_text("")
    assert [point.step for point in read_points(attempt)] == [1, 2, 3, 4]


def test_nothing_leaves_of_machine_people_and_cluster(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = run.settings.read_text().replace(
        "shards: []", f"shards: [{tmp_path}/corpora/emodb, 's3://key:secret@b/esd?token=x']"
    )
    assert "?token" in settings
    run.settings.write_text(settings)
    write_json(
        run.trial(Trial(0, 1)).current.end, {"outcome": "failed", "error": f"no {tmp_path}/x/y.wav", "host": "", "ended": 0}
    )
    run.trial(Trial(0, 1)).done.unlink()
    (tmp_path / "my_tracker.py").write_text(OWN)
    assert track.main([str(run.path), "--to", "my_tracker:Mine", "--project", "p"]) == 0
    kept = sys.modules["my_tracker"].kept
    said = "\n".join(str(record) for _, record in kept)
    assert {project for project, _ in kept} == {"p"} and '"emodb", "esd"' in said and "no y.wav" in said
    for secret in (str(tmp_path), "secret", "token", "cluster", "run.root", "~/", socket.gethostname() + "/", "probabilities"):
        assert secret not in said, secret


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("read /data/emodb/wav/a.wav, then ~/b/c", "read a.wav, then c"),
        ("['/mnt/x/', \"/mnt/y\"] (/a/b)", "['x', \"y\"] (b)"),
        ("https://host:80/shards/esd?token=1#x and s3://k:s@bucket", "esd and bucket"),
        (
            "facebook/wav2vec2-base, 33/4, audio-s/s, WA / UAR, code/1a2b",
            "facebook/wav2vec2-base, 33/4, audio-s/s, WA / UAR, code/1a2b",
        ),
    ],
)
def test_of_places_the_last_name_is_left(text: str, left: str) -> None:
    assert without_places(text) == left


def test_mistakes_are_told_in_words(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*arguments: str) -> str:
        with pytest.raises(UserError) as error:
            track.main([*arguments])
        return str(error.value)

    assert "is not a run directory" in told(str(tmp_path / "none"), "--to", "tensorboard")
    assert "tensorboard, mlflow, wandb, trackio (or module:Class" in told(str(run.path), "--to", "aim")
    assert "there is no module 'nowhere'" in told(str(run.path), "--to", "nowhere:Mine")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "MLFLOW_TRACKING_URI" in told(str(run.path), "--to", "mlflow")
    assert "write http://HOST:5000" in told(str(run.path), "--to", "mlflow", "--url", "host:5000")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        began = time.monotonic()
        for tracker in ("mlflow", "wandb", "trackio"):
            assert f"no tracker answers at {nobody}" in told(str(run.path), "--to", tracker, "--url", nobody)
        assert time.monotonic() - began < 10
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "pip install 'ser-hpc[tensorboard]'" in told(str(run.path), "--to", "tensorboard", "--url", str(tmp_path / "tb"))


def test_a_dry_run_says_what_would_leave(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert track.main([str(run.path), "--to", "mlflow", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "train.epochs=30" in printed and "test/uar_ci95_low" in printed and "12 steps of curves" in printed


def test_tensorboard_reads_back_each_number(run: RunDir, unfinished: Callable[[], None], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    place = tmp_path / "tb"

    def hand_on() -> dict[Path, bytes]:
        assert track.main([str(run.path), "--to", "tensorboard", "--url", str(place)]) == 0
        return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    before = hand_on()
    assert hand_on() == before
    unfinished()
    assert hand_on().keys() > before.keys()
    whole, *trials = records(run)
    folders = {"": whole} | {f"seed_0_fold_{number}": trial for number, trial in enumerate(trials)}
    for name, record in folders.items():
        read = accumulator.EventAccumulator(str(place / run.path.name / name), size_guidance={"scalars": 0})
        read.Reload()
        found = {(tag, event.step): event.value for tag in read.Tags()["scalars"] for event in read.Scalars(tag)}
        assert found == pytest.approx(numbers(record), rel=1e-6)
        assert sum(len(read.Scalars(tag)) for tag in read.Tags()["scalars"]) == len(found)
        texts = {
            tag: event.tensor_proto.string_val[0].decode() for tag in read.Tags()["tensors"] for event in read.Tensors(tag)
        }
        assert texts["summary"] == record.summary and "train.epochs=30" in texts["settings"]


def wait_until_it_answers(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """It imports for seconds, on a busy machine for minutes."""
    end = time.monotonic() + 400
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.5)


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server of this test's own."""
    for needed in ("mlflow", "flask", "sqlalchemy"):  # without the last two it is the client alone
        pytest.importorskip(needed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--backend-store-uri", f"sqlite:///{tmp_path}/store.db", "--artifacts-destination", str(tmp_path / "files")]
    command = [sys.executable, "-m", "mlflow", "server", *place, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), os.environ["PATH"]]),
    }
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_until_it_answers(server, f"http://127.0.0.1:{port}/health", tmp_path / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)


def test_mlflow_keeps_each_number_once(run: RunDir, unfinished: Callable[[], None], mlflow_server: str) -> None:
    """Of an unfinished run, again, and of the finished one: on a real server, read back through its own client."""
    assert track.main([str(run.path), "--to", "mlflow", "--url", mlflow_server]) == 0
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=mlflow_server)
    experiment = client.get_experiment_by_name("emodb").experiment_id

    def kept() -> dict[str, Any]:
        return {each.data.tags["ser_hpc.key"]: each for each in client.search_runs([experiment])}

    before = kept()
    assert sorted(each.info.status for each in before.values()) == ["FINISHED", "RUNNING", "RUNNING"]
    assert any("not the score of the run" in each.data.tags["mlflow.note.content"] for each in before.values())
    unfinished()
    for _ in range(2):
        assert track.main([str(run.path), "--to", "mlflow", "--url", mlflow_server]) == 0
    runs = kept()
    assert {key: each.info.run_id for key, each in runs.items()}.items() >= {
        k: e.info.run_id for k, e in before.items()
    }.items()
    whole, *trials = records(run)
    assert runs.keys() == {whole.key, *(trial.key for trial in trials)}
    parent = runs[whole.key].info.run_id
    for record in (whole, *trials):
        one = runs[record.key]
        history = [point for name in one.data.metrics for point in client.get_metric_history(one.info.run_id, name)]
        found = {(point.key, point.step): point.value for point in history}
        assert len(found) == len(history), "twice"
        curves = {at: number for at, number in numbers(record).items() if at[0] not in record.scores}
        assert {at: number for at, number in found.items() if at[0] not in record.scores} == curves
        assert {name: number for name, number in one.data.metrics.items() if name in record.scores} == record.scores
        assert one.info.status == "FINISHED" and one.data.params["train.epochs"] == "30"
        assert one.data.tags.get("mlflow.parentRunId") == (parent if record.parent else None)
        assert not {"mlflow.user", "mlflow.source.name"} & one.data.tags.keys()
    assert {file.path for file in client.list_artifacts(parent)} == {"report.md", "report.json"}


def test_trackio_keeps_each_number_once(run: RunDir, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    command = [sys.executable, "-m", "ser_hpc.track", str(run.path), "--to", "trackio"]
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "kept"), "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert printed.count("; 0 new numbers") == 4, printed
    read = (
        "import sys, json; from trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps({name: S.get_logs('emodb', name) for name in S.get_runs('emodb')}))"
    )
    logs = json.loads(subprocess.check_output([sys.executable, "-c", read], env=environment, text=True).splitlines()[-1])
    for record in records(run)[1:]:
        found = [(name, log["step"], log[name]) for log in logs[record.name] for name in log if "/" in name]
        curves = [(name, step, number) for (name, step), number in numbers(record).items() if name not in record.scores]
        scores = [(name, record.step + 1, score) for name, score in record.scores.items()]
        assert sorted(found) == sorted([*curves, *scores])


def test_wandb_offline_writes_nothing_of_the_machine(run: RunDir, tmp_path: Path) -> None:
    """All that can be tried without W&B's servers."""
    pytest.importorskip("wandb")
    command = [sys.executable, "-m", "ser_hpc.track", str(run.path), "--to", "wandb"]
    environment = os.environ | {"WANDB_MODE": "offline"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert printed.count("new numbers") == 4
    (reports,) = (tmp_path / "wandb").glob("offline-run-*/files/report.md")
    assert reports.read_text().startswith("# emodb")
    written = b"".join(path.read_bytes() for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert b"test/uar_ci95_low" in written and b"train/loss" in written
    assert b"undisclosed" in written and f'"{socket.gethostname()}"'.encode() not in written
    assert str(run.path.parent).encode() not in written and b"a-secret-node" not in written
