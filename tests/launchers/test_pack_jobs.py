"""Packing as an array of a real Slurm: the bytes of packing here, and nothing that the site would refuse is submitted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_here import Cluster, missing
from small import tones

from ser_hpc import pack
from ser_hpc.shards.index import DATASET

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two corpora, of 36 and 18 clips, as words of the command."""
    base, words = tmp_path_factory.mktemp("pack"), []
    for name, sessions in (("first", 2), ("second", 1)):
        rows = [f"{u.audio_path},{u.emotion},{u.speaker}" for u in tones(base / name, sessions, 3)]
        (base / f"{name}.csv").write_text("\n".join(["audio,emotion,speaker", *rows]) + "\n")
        words += ["csv", str(base / f"{name}.csv")]
    return words


def command(
    slurm: Cluster, *arguments: str | Path, path: Path = ROOT, here: Path | None = None, **caller: str
) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "ser_hpc.pack", *map(str, arguments), "--workers", "1"]
    environment = (
        slurm.env | caller | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)]), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    )
    return subprocess.run(line, cwd=here, env=environment, capture_output=True, text=True, timeout=200, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_array_packs_what_packing_here_packs(slurm: Cluster, tmp_path: Path, sources: list[str]) -> None:
    """Two corpora in three jobs, whatever variables the caller has; a second array is refused while the first one is there."""
    out, here = tmp_path / "out", tmp_path / "here"
    jobs = ("--partition", "cpu", "--jobs", "3", "--time", "5")
    before = slurm.states()
    shown = command(slurm, *sources, out, *jobs, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    for line in ("--array=0-2", "--partition=cpu", "--cpus-per-task=1", "--mem=2G", "--time=5", "Nothing was submitted"):
        assert line in shown.stdout
    assert slurm.states().keys() <= before.keys() and list(tmp_path.iterdir()) == []
    slurm.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    first = command(slurm, *sources, out, *jobs, SBATCH_ARRAY_INX="0", SBATCH_EXPORT="NONE", SLURM_MEM_PER_CPU="100")
    assert first.returncode == 0, first.stderr
    array = json.loads((tmp_path / "out.jobs" / "submitted.json").read_text())["array"]
    assert f"Submitted 3 jobs as array {array}" in first.stdout and f"squeue -j {array}" in first.stdout
    second = command(slurm, *sources, out, *jobs)
    assert second.returncode == 2 and f"array {array} packs into" in second.stderr
    slurm.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    assert set(slurm.wait([array]).values()) == {"COMPLETED"}
    pack.main([*sources, str(here), "--workers", "1"])
    assert contents(out) == contents(here)
    assert len(list((tmp_path / "out.jobs" / "code").glob("*/ser_hpc/pack.py"))) == 1


def test_jobs_find_a_parser_of_ones_own(slurm: Cluster, tmp_path: Path, sources: list[str]) -> None:
    """Its file lies in the folder where they are submitted, which is in no PYTHONPATH."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "my_slurm_corpus.py").write_text("from ser_hpc.corpora.formats.table import parse as read\n")
    what = ["my_slurm_corpus:read", sources[3]]
    submitted = command(slurm, *what, tmp_path / "out", "--partition", "cpu", "--jobs", "2", "--time", "5", here=home)
    assert submitted.returncode == 0, submitted.stderr
    array = json.loads((tmp_path / "out.jobs" / "submitted.json").read_text())["array"]
    assert set(slurm.wait([array], 200).values()) == {"COMPLETED"}
    pack.main([*sources[2:], str(tmp_path / "here"), "--workers", "1"])
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


def test_a_job_near_its_time_limit_is_queued_again_and_goes_on(slurm: Cluster, tmp_path: Path, sources: list[str]) -> None:
    """The signal comes while it packs its second shard; its next start keeps the first one."""
    (tmp_path / "sitecustomize.py").write_text(
        "import soundfile, time\n"
        "write = soundfile.SoundFile.write\n"
        "soundfile.SoundFile.write = lambda *a, **o: (time.sleep(0.2), write(*a, **o))[1]\n"
    )
    out = tmp_path / "out"
    submitted = command(slurm, *sources[2:], out, "--partition", "cpu", "--jobs", "1", "--time", "5", path=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    array = json.loads((tmp_path / "out.jobs" / "submitted.json").read_text())["array"]
    deadline = time.monotonic() + 60
    while not list(out.glob("*/*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    slurm.run("scancel", "--signal=USR2", array)
    assert set(slurm.wait([array], 200).values()) == {"COMPLETED"}
    pack.main([*sources[2:], str(tmp_path / "here"), "--workers", "1"])
    assert contents(out) == contents(tmp_path / "here")
    (log,) = (tmp_path / "out.jobs" / "logs").glob(f"{array}_*_log.out")
    assert "shards, 1 of them from before" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--partition", "fast"], ["fast: no such partition", "gpu, short, urgent"]),
        (["--partition", "short", "--time", "30"], ["time_min=30", "allows 1 minute"]),
        (["--partition", "cpu", "--jobs", "2000"], ["--jobs 2000", "MaxArraySize"]),
        (["--partition", "cpu", "--account", "nobody"], ["account"]),
        (["--partition", "cpu", "--jobs", "0"], ["--jobs 0"]),
        (["--partition", "cpu", "--on", "loud=keep"], ["--on loud"]),
    ],
)
def test_what_would_not_run_is_not_submitted(
    slurm: Cluster, tmp_path: Path, sources: list[str], arguments: list[str], words: list[str]
) -> None:
    before = slurm.states()
    result = command(slurm, *sources, tmp_path / "out", *arguments)
    said = " ".join(result.stderr.split())
    assert result.returncode == 2 and "Traceback" not in said, said
    for word in words:
        assert word in said
    assert slurm.states().keys() <= before.keys() and list(tmp_path.iterdir()) == []


def test_a_corpus_that_is_not_there_is_told_before_anything_is_submitted(slurm: Cluster, tmp_path: Path) -> None:
    before = slurm.states()
    result = command(slurm, "emodb", tmp_path / "nowhere", tmp_path / "out", "--partition", "cpu")
    assert result.returncode == 2 and "does not exist" in result.stderr
    assert slurm.states() == before


def test_where_there_is_no_slurm_it_packs_here(tmp_path: Path, sources: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main([*sources[:2], str(tmp_path / "out"), "--cluster", "local", "--workers", "1"]) == 0
    assert "packing on this machine" in capsys.readouterr().out
    assert (tmp_path / "out" / DATASET).exists()
