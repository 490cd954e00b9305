"""docs/extending.md is so: its parts, each in a file outside the package, train from its YAML; killed and gone on with bit for
bit; alike on two ranks; mistakes in them are told with file and line; another code is another run."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT, blocks
from ranks import Started
from small import curve, tones

from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards.write import pack

PAGE = ROOT / "docs" / "extending.md"
TRIAL = Trial(0, 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the page's files, its YAML, and shards of speakers whose age is annotated."""
    folder = tmp_path_factory.mktemp("outside")
    for block in blocks(PAGE, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name, block
        (folder / name[1]).write_text(block)
    *_, everything = blocks(PAGE, "yaml")
    (folder / "mine.yaml").write_text(everything)
    clips = [
        dataclasses.replace(clip, extra={"age": str(25 + 7 * int(clip.session[1:]) + (clip.gender == "male"))})
        for clip in tones(folder / "wav", sessions=4, takes=3)
    ]
    pack(clips, folder / "shards", workers=1)
    return folder


def ser_hpc(place: Path, module: str, *words: str, cwd: Path | None = None) -> Started:
    done = Started(module, words, os.environ | {"COLUMNS": "300"}, cwd=cwd or place)
    done.wait()
    return done


def copy_of(place: Path, folder: Path) -> None:
    """The user's files in another folder."""
    for file in (*place.glob("my_*.py"), place / "mine.yaml"):
        shutil.copy(file, folder)
    (folder / "shards").symlink_to(place / "shards")


def planned(place: Path, root: str, *overrides: str) -> RunDir:
    done = ser_hpc(place, "ser_hpc.launch", "--config", "mine.yaml", "--prepare", f"run.root={root}", *overrides)
    assert done.returncode == 0, done.output()
    return RunDir(place / done.output().strip().splitlines()[-1])


def environment(run: RunDir, rank: int = 0, ranks: int = 1) -> dict[str, str]:
    of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return os.environ | of_rank | {"SER_HPC_START": run.path.name + str(ranks), "OMP_NUM_THREADS": "1"}


def train(run: RunDir, ranks: int = 1) -> list[Started]:
    """The ranks of the run's trial, in another folder than the user's."""
    words = ["--run-dir", str(run.path), "--fold", "0"]
    return [Started("ser_hpc.train", words, environment(run, rank, ranks), cwd=run.path) for rank in range(ranks)]


def test_one_of_each_kind_trains_and_is_reported(place: Path, tmp_path: Path) -> None:
    done = ser_hpc(place, "ser_hpc.launch", "--config", "mine.yaml", "--cluster", "local", "run.root=runs")
    assert done.returncode == 0, done.output()
    assert "age: UAR" in done.output()
    (run,) = (RunDir(path) for path in (place / "runs").glob("mine-*"))
    copies = {path.name for path in (run.path / "code" / "extensions").iterdir()}
    assert copies >= {path.name for path in place.glob("my_*.py")} - {"my_adapter.py"}
    numbers = (run.trial(TRIAL).current.path / "numbers.csv").read_text()
    assert "train/loss" in numbers and "dev/age/uar" in numbers
    # The report needs neither the user's folder nor the file as it was.
    source = (place / "my_head.py").read_text()
    (place / "my_head.py").write_text("this is no Python any more")
    try:
        again = ser_hpc(place, "ser_hpc.report", str(run.path), cwd=tmp_path)
        assert again.returncode == 0, again.output()
    finally:
        (place / "my_head.py").write_text(source)


def test_killed_it_goes_on_bit_for_bit_and_two_ranks_learn_alike(place: Path) -> None:
    often = "train.checkpoint_minutes=0.0001"
    whole, killed, two = (planned(place, root, often) for root in ("whole", "killed", "two"))
    assert [rank.wait() for rank in train(whole)] == [0]
    (rank,) = train(killed)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(killed.trial(TRIAL).path.glob("attempt_*/checkpoints/step_*3.json")):
        time.sleep(0.01)
    rank.send_signal(signal.SIGKILL)
    assert rank.wait() == -signal.SIGKILL
    assert [rank.wait() for rank in train(killed)] == [0]
    assert [rank.wait() for rank in train(two, ranks=2)] == [0, 0]
    one, other = whole.trial(TRIAL), killed.trial(TRIAL)
    assert len(other.attempts) == 2
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert one.current.predictions.read_bytes() == other.current.predictions.read_bytes()
    np.testing.assert_allclose(curve(two), curve(whole), rtol=2e-4)


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("my_loss.py", "reduction=", "reductoin=", r"my_loss\.py:\d+"),
        ("my_head.py", "nn.Linear(width, hidden)", "nn.Linear(width, hiden)", r"NameError.*my_head\.py:\d+"),
        ("my_task.py", "from ser_hpc.tasks.task import Columns, Task", "1 / 0", r"my_task.*ZeroDivisionError.*my_task\.py:\d+"),
        ("my_task.py", 'columns.numbers("age")', 'columns.numbers("aeg")', r"no column 'aeg'; they have .*age"),
        ("my_encoder.py", "channels: int = 32", "channles: int = 32", r"model\.channels: unknown key"),
    ],
)
def test_a_mistake_is_told_with_its_file_and_line(
    place: Path, tmp_path: Path, file: str, old: str, new: str, told: str
) -> None:
    copy_of(place, tmp_path)
    source = (place / file).read_text()
    assert source.count(old) == 1
    (tmp_path / file).write_text(source.replace(old, new))
    done = ser_hpc(tmp_path, "ser_hpc.launch", "--config", "mine.yaml", "--cluster", "local", "run.root=runs")
    assert done.returncode in (1, 2) and "Traceback" not in done.output()
    ends = [path.read_text() for path in tmp_path.glob("runs/mine-*/seed_0/fold_0/attempt_*/end.json")]
    assert len(ends) <= 1, "it is not started again"
    assert re.search(told, " ".join([done.output(), *ends]).replace("\\n", " "), re.S), done.output()


def test_another_code_is_another_run(place: Path, tmp_path: Path) -> None:
    """But not another tracker."""
    copy_of(place, tmp_path)
    names = {planned(tmp_path, "runs").path.name}
    for file in ("my_tracker.py", "my_loss.py"):
        (tmp_path / file).write_text((place / file).read_text() + "\n# edited\n")
        names.add(planned(tmp_path, "runs").path.name)
        assert len(names) == (1 if file == "my_tracker.py" else 2)


def test_an_adapter_from_outside_trains_what_it_says(place: Path) -> None:
    code = """
from ser_hpc.config.load import load_settings
from ser_hpc.models.classifier import build_classifier
config = {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 16, "conv_dim": [8], "conv_kernel": [10], "conv_stride": [5], "num_feat_extract_layers": 1,
          "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
adapter = "model.adapter={kind: my_adapter:TopLayers}"
model = load_settings(None, ["model.weights=null", f"model.config={config}", adapter]).model
encoder = build_classifier(model, 4, seed=0).encoder
trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
assert trained == {name for name, _ in encoder.named_parameters() if name.startswith("encoder.layers.1.")}, trained
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
