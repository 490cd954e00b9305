"""`as_webdataset`: the clips of a fold's part, each once, as they were packed, for training code that is not ours."""

from __future__ import annotations

import itertools
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from documents import ROOT, blocks
from small import packed_tones, planned
from torch.utils.data import DataLoader

from ser_hpc.config.settings import Settings
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.labels import label_set_as_annotated
from ser_hpc.protocols.folds import plan_folds
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.shards import as_webdataset, pad_batch
from ser_hpc.shards.fold_stream import AS_ANNOTATED, PROTOCOL, PlannedExperiment
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ShardReader
from ser_hpc.shards.write import pack

PARTS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_tones(tmp_path_factory.getbasetemp(), takes=2)


def keys(dataset: webdataset.WebDataset) -> list[str]:
    return [sample["__key__"] for sample in dataset]


def test_asking_for_it_imports_neither_webdataset_nor_torch() -> None:
    code = "import sys; from ser_hpc.shards import as_webdataset; assert not {'torch', 'webdataset'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_parts_are_the_folds_own_and_clips_are_as_packed(shards: Path) -> None:
    """Every clip of every part of every fold of a plan, with its sound, class and annotations; nothing of another part."""
    index = ShardIndex.load(shards)
    with ShardReader(index) as reader:
        packed = {index.key(i): (reader.read(i), index.metadata.take(np.array([i]))) for i in range(len(index.metadata))}
    dataset = as_webdataset(shards)
    plan = plan_folds(index.metadata, label_set_as_annotated(index.metadata), "leave_one_session_out", None)
    for fold, part in itertools.product(plan.folds[:2], PARTS):
        streamed = as_webdataset(str(shards), fold=fold.index, part=part)
        assert isinstance(streamed, webdataset.WebDataset) and streamed.classes == ("angry", "neutral", "sad")
        found = {sample["__key__"]: sample for sample in streamed}
        assert sorted(found) == sorted(index.key(i) for i in getattr(fold, part).positions)
        assert streamed.num_clips == len(found)
        for key, sample in found.items():
            samples, row = packed[key]
            assert sample["audio"].dtype == np.float32
            np.testing.assert_array_equal(sample["audio"] * 32768, samples)
            assert (sample["speaker"], sample["emotion"], sample["corpus"]) == (row.speaker[0], row.emotion[0], "tones")
            assert streamed.classes[sample["label"]] == sample["label_name"] == sample["emotion"]
            assert sample["num_samples"] == len(samples) and sample["extra"] == {} and np.isnan(sample["valence"])
    assert sorted(keys(dataset)) == sorted(packed)


def test_a_runs_folds_are_those_it_was_planned_with(shards: Path, tmp_path: Path) -> None:
    run = planned(tmp_path, shards, "folds.protocol=speaker_groups", "folds.count=3", "folds.max_per_class=5")
    experiment: PlannedExperiment = reopen_experiment(run)
    fold = experiment.folds.folds[2]
    streamed = as_webdataset(experiment, fold=2, part="train")
    assert sorted(keys(streamed)) == sorted(experiment.index.key(i) for i in fold.train.positions)
    with pytest.raises(UserError, match="an experiment has its own folds and labels"):
        as_webdataset(experiment, fold=0, part="train", protocol="speaker_groups")
    with pytest.raises(UserError, match="no fold 3: speaker_groups makes 3"):
        as_webdataset(experiment, fold=3, part="train")


@pytest.mark.parametrize("workers", [0, 2, 6])
@pytest.mark.parametrize("nodes", [1, 3])
def test_over_nodes_and_workers_each_clip_comes_once(
    shards: Path, monkeypatch: pytest.MonkeyPatch, workers: int, nodes: int
) -> None:
    """Also where workers are more than tars; shuffled or not."""
    whole = sorted(keys(as_webdataset(shards, fold=0, part="train")))
    found: list[str] = []
    for rank in range(nodes):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(nodes))
        dataset = as_webdataset(shards, fold=0, part="train", shuffle=5)
        found += [sample["__key__"] for sample in DataLoader(dataset, batch_size=None, num_workers=workers)]
    assert sorted(found) == whole


def test_without_a_word_it_is_what_a_launch_takes() -> None:
    assert (Settings().folds.protocol, Settings().data.labels) == (PROTOCOL, AS_ANNOTATED)


def test_shuffling_is_another_order_each_epoch_and_the_seeds_alone(shards: Path) -> None:
    first, again, other = (as_webdataset(shards, shuffle=True, seed=seed) for seed in (1, 1, 2))
    epochs = [keys(first), keys(first)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])
    assert [keys(again), keys(again)] == epochs != [keys(other), keys(other)]
    assert keys(as_webdataset(shards)) == sorted(epochs[0]), "in the order of the tars"


def test_webdatasets_own_stages_go_on_from_it(shards: Path) -> None:
    dataset = as_webdataset(shards, fold=0, part="dev")
    (whole,) = dataset.batched(1000, collation_fn=pad_batch)
    assert whole["audio"].shape == (dataset.num_clips, whole["num_samples"].max()) and whole["label"].dtype == np.int64
    for row, sample in zip(whole["audio"], dataset, strict=True):
        np.testing.assert_array_equal(row[: sample["num_samples"]], sample["audio"])
        assert not row[sample["num_samples"] :].any()
    pairs = list(dataset.shuffle(10, seed=0).to_tuple("audio", "label"))
    assert len(pairs) == dataset.num_clips and len(list(dataset.slice(3))) == 3
    batches = list(dataset.map(lambda sample: sample | {"audio": sample["audio"][:1000]}).batched(4))
    assert batches[0]["audio"].shape == (4, 1000) and sum(len(batch["__key__"]) for batch in batches) == dataset.num_clips


@pytest.fixture
def own_shards(tmp_path: Path, make_corpus: Callable) -> Path:
    pack(make_corpus(), tmp_path / "out", workers=1)
    return tmp_path / "out"


def test_a_damaged_clip_is_told_in_words_or_passed_over(own_shards: Path) -> None:
    index = ShardIndex.load(own_shards)
    tar = own_shards / index.shards[int(index.shard[5])].path
    content = bytearray(tar.read_bytes())
    content[index.offset[5] + 200] ^= 1
    tar.write_bytes(content)
    with pytest.raises(UserError, match=rf"clip {index.key(5)} in shard .* is damaged: its bytes are not those"):
        keys(as_webdataset(own_shards))
    with pytest.raises(Exception, match=f"clip {index.key(5)} in shard"):
        list(DataLoader(as_webdataset(own_shards), batch_size=None, num_workers=2))
    with pytest.warns(UserWarning, match=index.key(5)):
        found = keys(as_webdataset(own_shards, handler=webdataset.warn_and_continue))
    assert found == [index.key(i) for i in range(12) if i != 5]


@pytest.mark.parametrize("where", ["at a header", "in a clip", "all of it"])
def test_a_tar_that_lost_its_end_while_training_is_told(own_shards: Path, where: str) -> None:
    """Its size was right when the index was read; webdataset alone takes a tar cut at a header for a whole one."""
    dataset = as_webdataset(own_shards)
    passing = as_webdataset(own_shards, handler=webdataset.ignore_and_continue)
    index = ShardIndex.load(own_shards)
    size = {"at a header": int(index.offset[6]) - 512, "in a clip": int(index.offset[6]) + 100, "all of it": 0}[where]
    tar = own_shards / index.shards[int(index.shard[6])].path
    tar.write_bytes(tar.read_bytes()[:size])
    told = {"at a header": "ends before 2 clips of it", "in a clip": "unexpected end of data", "all of it": "empty file"}
    with pytest.raises(UserError, match=told[where]):
        keys(dataset)
    lost = range(4, 8) if where == "all of it" else (6, 7)
    assert keys(passing) == [index.key(i) for i in range(12) if i not in lost]


def test_wrong_questions_are_answered_in_words(shards: Path, tmp_path: Path) -> None:
    for options, answer in (
        ({"part": "train"}, "give fold=0 as well"),
        ({"fold": 0}, "parts train, dev and test"),
        ({"fold": 0, "part": "val"}, "parts train, dev and test"),
        ({"fold": 9, "part": "dev"}, "there is no fold 9: leave_one_session_out makes 4"),
        ({"fold": 0, "part": "dev", "protocol": "x"}, "there is no protocol 'x'"),
        ({"labels": "nothing"}, "neither a file nor one of the project's label sets"),
        ({"shuffle": -1}, "shuffle=-1"),
    ):
        with pytest.raises(UserError, match=answer):
            as_webdataset(shards, **options)
    with pytest.raises(UserError, match="holds no packed corpus"):
        as_webdataset(tmp_path)
    shutil.copytree(shards, tmp_path / "a#b")
    with pytest.raises(UserError, match="webdataset takes a path for a URL"):
        as_webdataset(tmp_path / "a#b")


def test_workers_may_be_started_by_any_method(shards: Path) -> None:
    """Spawned workers get the dataset pickled."""
    dataset = as_webdataset(shards, fold=1, part="test", shuffle=3)
    assert keys(pickle.loads(pickle.dumps(dataset))) == keys(as_webdataset(shards, fold=1, part="test", shuffle=3))


def test_the_pages_example_runs(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/data.md shows it, for one step of training."""
    (example,) = [block for block in blocks(ROOT / "docs" / "data.md", "python") if "as_webdataset" in block]
    run = planned(tmp_path / "runs", shards)
    example = example.replace("/scratch/shards/emodb", str(shards)).replace("runs/emodb_acrnn-XXXXXXXX", str(run.path))
    assert str(shards) in example and str(run.path) in example
    made: dict[str, Any] = {}
    exec(example.replace("workers=4", "workers=2"), made)
    assert made["batch"]["audio"].shape[0] == len(made["batch"]["label"]) > 0
    assert made["same"].classes == made["train"].classes
