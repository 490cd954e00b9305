"""Encoders without a packed front, from the command line to a trial's predictions, on the demo's speech."""

from __future__ import annotations

from pathlib import Path

import pytest
from models.tiny import OTHERS
from ranks import Started

from ser_hpc.run import predictions
from ser_hpc.run.run_dir import RunDir, Trial

SHORT = {"conv_dim": [16] * 4, "conv_kernel": [20, 8, 4, 4], "conv_stride": [10, 8, 2, 2], "num_feat_extract_layers": 4}
CONFIGS = {"data2vec": OTHERS["data2vec"] | SHORT, "wav2vec2-bert": OTHERS["wav2vec2-bert"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's shards are made there once."""
    return tmp_path_factory.mktemp("others")


def python(*arguments: str) -> str:
    done = Started(arguments[0], arguments[1:])
    output, _ = done.communicate()
    assert done.returncode == 0, output
    return output


@pytest.mark.parametrize("name", CONFIGS)
def test_one_fold_of_the_demo(name: str, root: Path) -> None:
    settings = [
        *(f"run.root={root}", "data.shards=demo", "data.labels=demo_4", "data.max_seconds=0.4", "folds.max_per_class=10"),
        *("model.weights=null", f"model.config={CONFIGS[name]}", "train.epochs=1", "train.lr=1e-3", f"run.name={name}"),
    ]
    run = RunDir(Path(python("ser_hpc.launch", "--cluster", "local", "--prepare", *settings).splitlines()[-1]))
    python("ser_hpc.train", "--run-dir", str(run.path), "--fold", "0")
    place = run.trial(Trial(0, 0))
    found = predictions.read_predictions(place.current.predictions)
    assert place.is_done and sum(p.part == "test" for p in found) == 80
    assert len({tuple(p.probabilities.values()) for p in found}) > 100
