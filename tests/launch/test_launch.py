"""The launcher as its user meets it: plans, resumes, refuses in words, and leaves nothing running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import call
from small import packed_tones, pretrained_wav2vec2, wav2vec2

from ser_hpc.launch import main
from ser_hpc.shards.index import ShardIndex


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launch")


def command(root: Path, shards: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "ser_hpc.launch", "--cluster", "local", "--gpus-per-node", "1"),
        *(f"run.root={root}", f"data.shards={shards}", "model.weights=null", f"model.config={wav2vec2()}"),
        *("train.epochs=1", "train.global_batch=16", "folds.protocol=speaker_groups", *more),
    ]


def launch(root: Path, shards: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return call(main, command(root, shards, *more)[3:], OMP_NUM_THREADS="1", **environment)


def the_run(root: Path) -> Path:
    (run,) = root.iterdir()
    return run


def test_trains_reports_resumes_and_grows(base: Path) -> None:
    """The first command runs all; the second re-does nothing; another seed adds its trials alone to the same run."""
    root, shards = base / "whole", packed_tones(base)
    first = launch(root, shards, "--folds", "3")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Trials run on this machine" in first.stdout and "pooled" in first.stdout
    run = the_run(root)
    report = json.loads((run / "report.json").read_text())
    assert len(report["folds"]) == 3 and not report["missing"] and sum(map(sum, report["confusion"])) == 144
    written = {path: path.stat().st_mtime_ns for path in run.glob("seed_*/fold_*/*")}

    again = launch(root, shards, "--folds", "3")
    assert again.returncode == 0 and "3 of 3 trials are done already" in again.stdout
    more = launch(root, shards, "--folds", "3", "--seeds", "2")
    assert more.returncode == 0 and "3 of 6 trials are done already" in more.stdout
    assert the_run(root) == run
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(json.loads((run / "report.json").read_text())["folds"]) == 6
    fewer = launch(root, shards, "--folds", "3")
    assert fewer.returncode == 0 and len(json.loads((run / "report.json").read_text())["folds"]) == 6


def test_dry_run_starts_and_writes_nothing(base: Path) -> None:
    root = base / "dry"
    result = launch(root, packed_tones(base), "--folds", "3", "--dry-run", "seeds=2")
    assert result.returncode == 0 and "6 of 6 trials to run" in result.stdout and "Nothing was started" in result.stdout
    assert "speakers s1f" in result.stdout and "estimated, roughly" in result.stdout
    assert not root.exists()


def test_summary_shows_the_model_without_its_weights(base: Path) -> None:
    """Layer by layer, with the plan's own count, of weights that are named and never read; nothing starts or is written."""
    root, weights = base / "summary", pretrained_wav2vec2(base / "weights")
    (weights / "model.safetensors").write_bytes(b"no weights")  # shapes come from config.json
    more = [f"model.weights={weights}", "model.config=null", "model.layers=weighted", "model.freeze_layers=1"]
    result = launch(root, packed_tones(base), "--summary", *more)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {row[0]: row[1:] for line in result.stdout.splitlines() if len(row := line.rsplit(maxsplit=2)) == 3}
    every, trained = rows.pop(" all")
    assert rows[" encoder.encoder.layers.0"][1] == "0" != rows[" encoder.encoder.layers.1"][1]  # frozen, and not
    parts = [row for name, row in rows.items() if name.startswith((" encoder", " layer_sum", " head"))]
    assert [sum(int(row[i].replace(",", "")) for row in parts) for i in (0, 1)] == [
        int(word.replace(",", "")) for word in (every, trained)
    ]
    assert f"{every} parameters (encoder" in result.stdout and "before activations" in result.stdout
    assert "--summary" not in result.stdout and not root.exists()


def test_summary_counts_weights_in_four_bits(base: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'ser_hpc[qlora]'")
    result = launch(base / "packed", packed_tones(base), "--summary", "model.adapter.kind=qlora")
    assert result.returncode == 0, result.stdout + result.stderr
    every = next(line.split()[1] for line in result.stdout.splitlines() if line.startswith(" all "))
    assert f"{every} parameters" in result.stdout and "kept in four bits" in result.stdout


def test_interrupted_it_ends_everything_and_goes_on_later(base: Path) -> None:
    """Ctrl-C, twice: what it waits for is said, exit code 130, no process of it left; the same command completes the run."""
    root, shards = base / "interrupted", packed_tones(base)
    arguments = command(root, shards, "--folds", "3", "train.epochs=40")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(root.glob("*/seed_0/fold_*/attempt_*/checkpoints/step_*.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    run = the_run(root)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=90)[0].decode()
    assert process.returncode == 130 and "Stopping: asked to save and end: seed 0 fold" in said and "Traceback" not in said
    assert not running(run)
    trials = [json.loads(path.read_text())["state"] for path in run.glob("seed_0/fold_*/attempt_*/progress.json")]
    assert trials and set(trials) <= {"stopped", "starting", "done"}


def running(run: Path) -> list[str]:
    """Command lines of live processes that work on `run`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(run) in words:
            found.append(" ".join(words))
    return found


def test_a_damaged_shard_fails_its_trials_by_name(base: Path, tmp_path: Path) -> None:
    """One flipped byte in a clip: the trials that read it fail, saying which clip; the report counts none of them."""
    shards = tmp_path / "shards"
    subprocess.run(["cp", "-r", packed_tones(base), shards], check=True)
    index = ShardIndex.load(shards)
    path = shards / index.shards[index.shard[0]].path
    content = bytearray(path.read_bytes())
    content[int(index.offset[0] + index.size[0] // 2)] ^= 1
    path.write_bytes(content)
    result = launch(tmp_path / "runs", shards, "--folds", "3")
    assert result.returncode == 1
    report = json.loads((the_run(tmp_path / "runs") / "report.json").read_text())
    assert len(report["missing"]) == 3 and report["uar"]["mean"] is None
    assert all(index.metadata.utterance_id[0] in missing["reason"] for missing in report["missing"])


def test_a_reason_that_all_trials_share_ends_one_of_them(base: Path, tmp_path: Path) -> None:
    """Weights that are there, and cannot be read: the others are not started, which is said."""
    (tmp_path / "config.json").write_text(json.dumps(wav2vec2()))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    more = ("--folds", "3", "--seeds", "2", "cluster.max_parallel_trials=1", "model.config=null", f"model.weights={tmp_path}")
    result = launch(tmp_path / "runs", packed_tones(base), *more)
    assert result.returncode == 1 and "5 trials not started" in result.stdout
    run = the_run(tmp_path / "runs")
    assert [path.parent.name for path in run.glob("seed_*/fold_*/attempt_*")] == ["fold_0"]
    reasons = [missing["reason"] for missing in json.loads((run / "report.json").read_text())["missing"]]
    assert "cannot be loaded" in reasons[0] and reasons[1:] == ["not started"] * 5


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["model.config={model_type: wav2vec2, hiden_size: 8}"], ["hiden_size"]),
        (["model.config={model_type: bert}", "train.global_batch=4000", "--dry-run"], ["bert", "take", "at most"]),
        (["train.lrr=1", "folds.protocol=loso"], ["2 mistakes", "did you mean train.lr?", "leave_one_session_out"]),
        (["--folds", "40"], ["40 folds", "8 are known"]),
        (["data.labels=nowhere"], ["nowhere", "emodb_7"]),
        (["data.labels=emodb_7"], ["angry", "emodb_7"]),
        (["--config", "missing.yaml"], ["missing.yaml", "demo"]),
        (["data.shards=null"], ["data.shards=FOLDER", "build_shards"]),
        (["cluster.nodes=2"], ["one node"]),
    ],
)
def test_mistakes_are_told_in_words_before_anything_is_written(base: Path, more: list[str], words: list[str]) -> None:
    root = base / "mistakes"
    result = launch(root, packed_tones(base), *more)
    assert result.returncode == 2 and not result.stdout.count("Traceback") and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert not list(root.glob("*/seed_*"))


def test_shards_that_are_not_there(base: Path, tmp_path: Path) -> None:
    result = launch(tmp_path / "runs", tmp_path / "nowhere")
    assert result.returncode == 2
    assert str(tmp_path / "nowhere") in result.stderr
    shards = tmp_path / "shards"
    subprocess.run(["cp", "-r", packed_tones(base), shards], check=True)
    lost = next(shards.rglob("*.tar"))
    lost.unlink()
    result = launch(tmp_path / "runs", shards, "--folds", "3")
    assert result.returncode == 2 and lost.name in result.stderr
    assert not (tmp_path / "runs").exists()


def fake_slurm(folder: Path, scontrol: str) -> str:
    """A PATH whose Slurm says `scontrol`."""
    folder.mkdir()
    for name, script in (("sbatch", "exit 1"), ("srun", "exit 1"), ("scontrol", scontrol)):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_slurm_that_does_not_answer_is_an_error(base: Path, tmp_path: Path) -> None:
    """Folds must not train on a login node because the controller was away for a minute."""
    path = fake_slurm(tmp_path / "bin", "echo 'Slurmctld(primary) at head is DOWN'; exit 1")
    (tmp_path / "slurm.conf").write_text("ClusterName=x\n")
    auto = ["--folds", "3", "--cluster", "auto", "--dry-run"]
    result = launch(tmp_path / "runs", packed_tones(base), *auto, PATH=path, SLURM_CONF=str(tmp_path / "slurm.conf"))
    assert result.returncode == 2 and "does not answer" in result.stderr and "is DOWN" in result.stderr


def test_slurm_commands_without_a_configuration_are_no_cluster(base: Path, tmp_path: Path) -> None:
    if Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("this machine has a configured Slurm")
    path = fake_slurm(tmp_path / "bin", "echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1")
    result = launch(tmp_path / "runs", packed_tones(base), "--folds", "3", "--cluster", "auto", "--dry-run", PATH=path)
    assert result.returncode == 0 and "here: " in result.stdout


@pytest.mark.parametrize("commands", [True, False])
def test_a_profile_of_a_cluster_where_there_is_none(base: Path, tmp_path: Path, commands: bool) -> None:
    """It is not said that Slurm is configured here."""
    if Path("/etc/slurm/slurm.conf").exists():
        pytest.skip("this machine has a configured Slurm")
    (tmp_path / "none").mkdir()
    fatal = "echo 'scontrol: fatal: Could not establish a configuration source' >&2; exit 1"
    path = fake_slurm(tmp_path / "bin", fatal) if commands else str(tmp_path / "none")
    result = launch(tmp_path / "runs", packed_tones(base), "--cluster", "pace_ice", "--dry-run", PATH=path)
    assert result.returncode == 2 and "Slurm is asked for" in result.stderr and "is configured here" not in result.stderr
    assert ("no configuration on this machine" if commands else "not on this machine") in result.stderr


@pytest.mark.parametrize("place", ["file/runs", "closed/runs", "closed"])
@pytest.mark.parametrize("demo", [True, False])
def test_a_run_root_that_cannot_be_written(base: Path, tmp_path: Path, place: str, demo: bool) -> None:
    """In words, before anything is made there; also where nothing but the demo is to be made."""
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o555)
    without_power = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if without_power and not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and there is no setpriv to keep it from that")
    more = [f"run.root={tmp_path / place}"] if demo else command(tmp_path / place, packed_tones(base))[3:]
    words = [*without_power, sys.executable, "-m", "ser_hpc.launch", *more]
    for dry in ([], ["--dry-run"]):
        result = subprocess.run([*words, *dry], capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 2 and "choose another run.root" in result.stderr and "Traceback" not in result.stderr
