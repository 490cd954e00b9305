"""Checkpoints that know a test corpus are found by any name that people have them under, and nothing else is suspected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ser_hpc.config.load import load_settings
from ser_hpc.corpora.public_checkpoints import CHECKPOINTS, contamination
from ser_hpc.corpora.registry import PARSERS
from ser_hpc.run.identity import local_folder

OTHERS = {"aesdd", "shemo", "cmu_mosei", "mead"}  # that no parser is here for


def folder(tmp_path: Path, name: str, **config: object) -> str:
    path = tmp_path / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_each_is_found_on_each_of_its_corpora_and_on_no_other(checkpoint: str) -> None:
    name = checkpoint.replace("*", "Anything")
    for corpus in CHECKPOINTS[checkpoint]:
        assert corpus in {*PARSERS, *OTHERS}, "as its parser calls it"
        told = contamination(name, ["kai_indian", corpus])
        assert told and f"{corpus} is tested here" in told and told.startswith(checkpoint.rstrip("*-"))
    assert contamination(name, ["kai_indian", "hindi"]) is None


@pytest.mark.parametrize("corpus", ["iemocap", "iemocap_4", "IEMOCAP-improvised"])
def test_by_the_names_that_people_have_them_under(corpus: str, tmp_path: Path) -> None:
    cache = folder(tmp_path, "hub/models--superb--wav2vec2-base-superb-er/snapshots/00ff", model_type="wav2vec2")
    copied = folder(tmp_path, "encoder", _name_or_path="superb/wav2vec2-base-superb-er")
    named = folder(tmp_path, "wav2vec2-base-superb-er")
    for weights in ("superb/wav2vec2-base-superb-er", "somebody/wav2vec2-base-superb-er", cache, copied, named, f"{named}/"):
        assert "was trained on iemocap" in (contamination(weights, [corpus]) or ""), weights


def test_a_name_that_says_the_corpus_and_labels_that_are_emotions_are_asked_about(tmp_path: Path) -> None:
    for weights in ("somebody/wavlm-finetuned-on-CREMA-D", folder(tmp_path, "my_crema_d_model")):
        assert "have they learnt from it?" in (contamination(weights, ["crema_d"]) or "")
    tuned = folder(tmp_path, "mine", id2label={"0": "angry", "1": "happy", "2": "neutral"})
    assert "were tuned for emotion before (angry, happy, neutral)" in (contamination(tuned, ["emodb"]) or "")


@pytest.mark.parametrize(
    "weights",
    [None, "facebook/wav2vec2-base", "microsoft/wavlm-large", "openai/whisper-large-v3", "facebook/hubert-base-ls960"],
)
def test_plain_encoders_are_not_suspected(weights: str | None, tmp_path: Path) -> None:
    assert contamination(weights, [*PARSERS, "base"]) is None
    plain = folder(tmp_path, "whisper", id2label={"0": "LABEL_0", "1": "LABEL_1"}, _name_or_path=weights)
    assert contamination(plain, [*PARSERS]) is None
    (Path(plain) / "config.json").write_text("[")
    assert contamination(plain, [*PARSERS]) is None


def test_a_home_that_nobody_has_is_a_name_like_any_other() -> None:
    assert contamination("~nobody.here/wavlm-on-emodb", ["emodb"]) is not None
    assert local_folder(load_settings(None, ["model.weights=~nobody.here/wavlm"])) is None
