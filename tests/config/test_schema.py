"""A run's identity outlives new settings: defaults are left out of it, and what changes in the settings is migrated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ser_hpc.config import schema
from ser_hpc.config.load import dump_settings, load_run_settings, load_settings
from ser_hpc.config.section import Section
from ser_hpc.core.errors import UserError


def tree_of(*overrides: str) -> dict[str, Any]:
    found = schema.identity(load_settings(None, list(overrides)))
    assert found is not None
    return found


def test_defaults_are_left_out_and_the_way_of_saying_them_does_not_matter() -> None:
    assert tree_of() == {}
    assert tree_of("train.lr=3e-5", "model.kind=encoder", "folds.count=null") == {}
    assert tree_of("model.kind=acrnn") == {"model": {"kind": "acrnn"}}
    assert tree_of("model.kind=acrnn", "model.norm=none", "train.epochs=60") == {
        "model": {"kind": "acrnn", "norm": "none"},
        "train": {"epochs": 60},
    }


def test_where_and_how_a_run_trains_has_no_part_in_it() -> None:
    """A machine, its ranks and memory; and which seeds, for more may come."""
    how = ["run.root=/x", "run.name=other", "seeds=5", "cluster.partition=gpu", "data.shards=/y", "data.workers=3"]
    how += ["train.strategy=zero2", "train.budget_seconds=7", "train.accumulation=2", "train.checkpoint_minutes=1"]
    assert tree_of(*how) == {}


class Train(Section):
    epochs: int = 30
    mixup: float = 0.0


class Grown(Section):
    train: Train = Train()
    novelty: int = 3


def test_every_other_setting_has() -> None:
    """A new setting renames no run while it is at its default, and is part of the identity else."""
    assert schema.identity(Grown()) == {}
    assert schema.identity(Grown(novelty=4, train=Train(mixup=0.2))) == {"novelty": 4, "train": {"mixup": 0.2}}


def test_a_changed_default_keeps_older_runs_as_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Under the next schema lr defaults to 3e-5 where it was 1e-5; runs of before are read, and named, with theirs."""
    before = load_settings(None, ["train.lr=1e-5"])  # as the default was then
    monkeypatch.setattr(schema, "SCHEMA", 3)
    monkeypatch.setattr(schema, "DEFAULTS_BEFORE", {2: {"train.lr": 1e-5}})
    assert schema.identity(before, 2) == {}, "its name stays"
    assert schema.identity(before, 3) == {"train": {"lr": 1e-5}}, "what is launched now with the new default is another run"
    assert schema.identity(load_settings(None, []), 2) == {"train": {"lr": 3e-5}}
    tree: dict[str, Any] = {"train": {"epochs": 2}}
    schema.migrate(tree, 2)
    assert tree == {"train": {"epochs": 2, "lr": 1e-5}}
    schema.migrate(tree := {"train": {"lr": 7.0}}, 2)
    assert tree == {"train": {"lr": 7.0}}
    schema.migrate(tree := {}, 3)
    assert tree == {}


def test_a_renamed_setting_is_read_under_both_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(schema, "SCHEMA", 4)
    monkeypatch.setattr(
        schema,
        "RENAMED",
        {
            2: {"train.rounds": "train.passes", "model[acrnn].tones": "model.mels"},
            3: {"train.passes": "train.epochs", "data.gone": None},
        },
    )
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump({"train": {"rounds": 7}, "data": {"gone": 1}, "model": {"kind": "acrnn", "tones": 41}}))
    settings = load_settings(file, [])
    assert settings.train.epochs == 7
    assert load_run_settings(file).train.precision == "fp32", "the default of before there were schemas"
    assert schema.identity(settings) == {"model": {"kind": "acrnn", "mels": 41}, "train": {"epochs": 7}}
    assert load_settings(None, ["train.passes=8"]).train.epochs == 8


def test_settings_are_written_with_their_schema_and_those_of_a_later_version_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(dump_settings(load_settings(None, ["train.epochs=3"])))
    assert yaml.safe_load(file.read_text())["schema"] == schema.SCHEMA
    assert load_run_settings(file).train.epochs == 3
    file.write_text(f"schema: {schema.SCHEMA + 1}\n")
    with pytest.raises(UserError, match="use the version that wrote it"):
        load_run_settings(file)


# The SHA-256 of what the version without schemas made of these settings: it named runs by it.
SCHEMA_1 = {
    ("model.kind=acrnn", "model.norm=none", "train.epochs=5", "train.precision=fp32"): (
        "2f6c077cdec294a8e6816e7338578c3bc40457a651587904450db026d1cfe708"
    ),
    (
        *("data.augment=noise_pitch_stretch", "model.freeze=stem", "model.spec_augment.time_prob=0.05"),
        "train.precision=fp32",
    ): "dbf30087d7e3fb7da540432c6a47261e636a830ea705392b7ee08f41ceb6a5f4",
}


@pytest.mark.parametrize("overrides", SCHEMA_1)
def test_the_first_schema_is_written_as_it_was(overrides: tuple[str, ...]) -> None:
    """Whatever has been added since: the same settings give the same name."""
    full = schema.identity(load_settings(None, list(overrides)), 1)
    assert hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest() == SCHEMA_1[overrides]


def test_what_could_not_be_said_then_is_no_run_of_the_first_schema() -> None:
    assert schema.identity(load_settings(None, ["folds.same_speakers={a/b: a/c}"]), 1) is None
