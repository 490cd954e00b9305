"""Starting from a trained model: nobody who is tested has been heard, what fits is taken over, its weights name the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from inference.made import THREE_FOLDS, fine_tuned, pretrained, train
from safetensors.torch import load_file
from small import packed_tones, planned, wav2vec2
from transformers import AutoConfig, AutoModelForAudioClassification

import ser_hpc
from ser_hpc import export
from ser_hpc.config.load import load_settings
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.inference.trials import initial_weights
from ser_hpc.models.classifier import build_for_tasks
from ser_hpc.run.experiment import reopen_experiment
from ser_hpc.run.init_source import Heard, open_source, qualified
from ser_hpc.run.run_dir import RunDir, Trial

FIRST = Trial(0, 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("init")


@pytest.fixture(scope="module")
def source(base: Path) -> RunDir:
    """All folds of a run."""
    return train(planned(base / "source", packed_tones(base), *THREE_FOLDS, "train.epochs=1"))


def from_source(root: Path, base: Path, source: object, *more: str) -> RunDir:
    lines = (f"model.init_from={source}", "model.head.projection=16", *THREE_FOLDS, "train.epochs=1")
    return planned(root, packed_tones(base), *lines, *more, plain=True)


def test_each_fold_starts_from_the_trial_that_has_heard_nobody_of_it(base: Path, source: RunDir, tmp_path: Path) -> None:
    run = from_source(tmp_path, base, source.path)
    experiment = reopen_experiment(run)
    for trial in run.trials():
        start = initial_weights(run, experiment.settings, trial)
        assert start is not None and start.source.endswith(f"({Trial(0, trial.fold)})")
        model = build_for_tasks(experiment.settings.model, experiment.tasks, 3, initial=start)
        saved = load_file(source.trial(Trial(0, trial.fold)).weights)
        assert model.state_dict().keys() == saved.keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items()), "not a bit is changed"
        assert [line for line in start.told if "0 skipped, 0 new" not in line] == []
    train(run, FIRST)
    assert ser_hpc.load(run.path, fold=0).predict(torch.zeros(8000).numpy())


def test_it_is_refused_where_each_trial_has_heard_somebody(base: Path, source: RunDir, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"speakers that this run tests or chooses by: .*tones/s\d"):
        from_source(tmp_path, base, source.path, "folds.protocol=leave_one_speaker_out", "folds.count=null")
    with pytest.raises(UserError, match="tones/s"):  # one trial by name, which fits one of three folds alone
        from_source(tmp_path, base, source.path / "seed_0" / "fold_1")
    with pytest.raises(UserError, match="is not finished; wait"):
        from_source(tmp_path, base, fine_tuned(base).path)


def test_a_spelling_of_a_name_is_the_same_speaker() -> None:
    heard = Heard(frozenset({"emodb/03", "esd/0011"}), frozenset({"emodb/08"}))
    assert heard.conflicts((), ("Emo-DB/3", "emodb/09"), {}) == ["Emo-DB/3"]
    assert heard.conflicts(("emodb/08",), (), {}) == [], "whoever chose the epoch then may choose it again"
    assert heard.conflicts((), ("emodb/08",), {}) == ["emodb/08"]
    assert heard.conflicts((), ("savee/DC",), {"esd/0011": "savee/DC"}) == ["savee/DC"]


def test_speakers_of_a_plan_are_named_with_their_corpus() -> None:
    assert qualified(["03"], ["emodb"]) == ["emodb/03"]
    assert qualified(["emodb/03"], ["emodb", "esd"]) == ["emodb/03"]
    assert qualified(["03"], ["emodb", "esd"]) == ["emodb/03", "esd/03"], "one of them had no class"


def test_the_weights_name_the_run_and_their_place_does_not(base: Path, source: RunDir, tmp_path: Path) -> None:
    one = from_source(tmp_path, base, source.path)
    moved = tmp_path / "moved"
    shutil.copytree(source.path, moved)
    assert from_source(tmp_path, base, moved).path == one.path
    plain = planned(tmp_path, packed_tones(base), *THREE_FOLDS, "train.epochs=1")
    assert plain.path != one.path
    weights = moved / source.trial(FIRST).weights.relative_to(source.path)
    tensors = weights.read_bytes()
    weights.write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    assert from_source(tmp_path, base, moved).path != one.path


def test_a_frozen_base_is_that_of_the_source_again(base: Path, source: RunDir, tmp_path: Path) -> None:
    """LoRA over a trained encoder: checkpoints hold what is trained, and it predicts as it was evaluated."""
    pytest.importorskip("peft")
    adapter = "model.adapter={kind: lora, rank: 2}"
    run = train(from_source(tmp_path, base, source.path, adapter, "train.lr=1e-2"), FIRST)
    assert all(".lora_" in name for name in load_file(run.trial(FIRST).weights) if name.startswith("encoder."))
    lines = [json.loads(line) for line in run.trial(FIRST).current.predictions.read_text().splitlines()]
    wavs = next(base.glob("wav-*"))
    found = ser_hpc.load(run.path, fold=0, calibrated=False).predict(
        [wavs / f"{line['utterance_id']}.wav" for line in lines[:5]]
    )
    for line, each in zip(lines, found, strict=False):
        assert each.probabilities == pytest.approx(line["probabilities"], abs=1e-4)


def test_a_folder_and_a_checkpoint_of_transformers(base: Path, source: RunDir, tmp_path: Path) -> None:
    """Classes agree by name, in any order; where one is lacking, the classifier is new, and that is said."""
    out = tmp_path / "shipped"
    assert export.main([str(source.path), str(out), "--fold", "1"]) == 0
    assert open_source(str(out)).heard.keys() == {None}
    with pytest.raises(UserError, match=r"it has learnt from .*tones/s"):
        from_source(tmp_path, base, out)

    config = AutoConfig.for_model(**wav2vec2(), classifier_proj_size=16, num_labels=4)
    config.id2label = dict(enumerate(("sad", "Neutral", "angry", "bored")))
    torch.manual_seed(2)
    theirs = AutoModelForAudioClassification.from_config(config)
    theirs.save_pretrained(tmp_path / "theirs")
    run = from_source(tmp_path, base, tmp_path / "theirs")
    experiment = reopen_experiment(run)
    start = initial_weights(run, experiment.settings, FIRST)
    model = build_for_tasks(experiment.settings.model, experiment.tasks, 3, initial=start)
    assert torch.equal(model.head.classifier.weight, theirs.classifier.weight[[2, 1, 0]])  # type: ignore[union-attr,index]
    assert torch.equal(model.head.projector.weight, theirs.projector.weight)  # type: ignore[union-attr]

    theirs.config.id2label = dict(enumerate(("sad", "calm", "angry", "bored")))
    theirs.save_pretrained(tmp_path / "theirs")
    run = from_source(tmp_path, base, tmp_path / "theirs")
    start = initial_weights(run, experiment.settings, FIRST)
    assert start is not None
    build_for_tasks(experiment.settings.model, experiment.tasks, 3, initial=start)
    assert "its classifier is new, for the source has no class neutral" in start.told[-1]


def test_what_does_not_fit_is_refused_in_words(base: Path, source: RunDir, tmp_path: Path) -> None:
    wide = from_source(tmp_path, base, source.path, f"model.config={wav2vec2(hidden_size=64)}", "model.weights=null")
    experiment = reopen_experiment(wide)
    with pytest.raises(UserError, match="is of another encoder than model"):
        build_for_tasks(
            experiment.settings.model, experiment.tasks, 0, initial=initial_weights(wide, experiment.settings, FIRST)
        )
    with pytest.raises(UserError, match="neither a run nor a model folder"):
        from_source(tmp_path, base, tmp_path)
    with pytest.raises(UserError, match="there is no run, and no folder"):
        from_source(tmp_path, base, tmp_path / "slip")
    encoder = pretrained(base)
    bare = from_source(tmp_path, base, encoder)
    with pytest.raises(UserError, match="no checkpoint for audio classification"):
        initial_weights(bare, reopen_experiment(bare).settings, FIRST)
    with pytest.raises(ConfigError, match="for a probe"):
        load_settings(None, ["model.init_from=x", "model.freeze=encoder", "model.head=probe"])
