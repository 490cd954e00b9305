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
from ser_hpc.core.atomic_io import json_digest
from ser_hpc.core.errors import ConfigError, UserError


def tree_of(*overrides: str) -> dict[str, Any]:
    found = schema.identity(load_settings(None, list(overrides)))
    assert found is not None
    return found


def test_settings_newer_than_the_schema_are_written_where_they_say_something() -> None:
    """A run that goes on with its own, older code of the same schema would refuse their names."""
    plain = yaml.safe_load(dump_settings(load_settings(None, ["tasks.who={kind: classification, column: speaker}"])))
    assert "crop" not in plain["data"] and "harmless_pairs" not in plain["folds"] and "reversal" not in plain["tasks"]["who"]
    told = ["data.crop=center", "data.max_seconds=8", "tasks.who={kind: classification, column: speaker, reversal: 0.1}"]
    written = yaml.safe_load(dump_settings(load_settings(None, told)))
    assert written["data"]["crop"] == "center" and written["tasks"]["who"]["reversal"] == 0.1


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
    monkeypatch.setattr(schema, "SCHEMA", 4)
    monkeypatch.setattr(schema, "DEFAULTS_BEFORE", {3: {"train.lr": 1e-5}})
    assert schema.identity(before, 3) == {}, "its name stays"
    assert schema.identity(before, 4) == {"train": {"lr": 1e-5}}, "what is launched now with the new default is another run"
    assert schema.identity(load_settings(None, []), 3) == {"train": {"lr": 3e-5}}
    tree: dict[str, Any] = {"train": {"epochs": 2}}
    schema.migrate(tree, 3)
    assert tree == {"train": {"epochs": 2, "lr": 1e-5}}
    schema.migrate(tree := {"train": {"lr": 7.0}}, 3)
    assert tree == {"train": {"lr": 7.0}}
    schema.migrate(tree := {}, 4)
    assert tree == {}


def test_a_renamed_setting_is_read_under_the_name_of_its_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(schema, "SCHEMA", 5)
    monkeypatch.setattr(
        schema,
        "RENAMED",
        {
            3: {"train.rounds": "train.passes", "model[acrnn].tones": "model.mels"},
            4: {"train.passes": "train.epochs", "data.gone": None},
        },
    )
    monkeypatch.setattr(
        schema, "RENAMED_VALUES", {3: {"train.decay": {"line": "lines"}}, 4: {"train.decay": {"lines": "linear"}}}
    )
    file = tmp_path / "old.yaml"
    old = {"train": {"rounds": 7, "decay": "line"}, "data": {"gone": 1}, "model": {"kind": "acrnn", "tones": 41}}
    file.write_text(yaml.safe_dump({"schema": 3} | old))
    settings = load_settings(file, [])
    assert settings.train.epochs == 7 and settings.train.decay == "linear"
    assert load_settings(file, ["train.epochs=8"]).train.epochs == 8, "the command line is above the file"
    assert schema.identity(settings, 5) == {"model": {"kind": "acrnn", "mels": 41}, "train": {"epochs": 7}}
    assert schema.identity(settings, 4) == {"model": {"kind": "acrnn", "mels": 41}, "train": {"passes": 7}}
    assert schema.identity(settings, 3) == {"model": {"kind": "acrnn", "tones": 41}, "train": {"rounds": 7}}
    file.write_text(yaml.safe_dump(old))
    assert load_run_settings(file).train.precision == "fp32", "the default of before there were schemas"
    with pytest.raises(ConfigError) as refused:
        load_settings(None, ["train.rounds=7", "data.gone=1", "train.decay=lines"])
    assert sorted(refused.value.problems) == [
        "data.gone: unknown key; it was removed: leave it out",
        "train.decay: 'lines' was renamed to 'linear'",
        "train.rounds: unknown key; renamed to train.epochs",
    ]


# Settings in the names of schema 2, and what they were renamed to after it.
AFTER_SCHEMA_2 = {
    ("data", "keep_gb", 2.0): ("data", "cache_gb", 2.0),
    ("data", "max_damaged", 0.1): ("data", "max_corrupt", 0.1),
    ("data", "read_ahead_mb", 8.0): ("data", "prefetch_mb", 8.0),
    ("train", "average", 0.5): ("train", "ema_decay", 0.5),
    ("model", "freeze", "stem"): ("model", "freeze", "feature_encoder"),
    ("folds", "same_speakers", "a/b"): ("folds", "speaker_aliases", "a/b"),
    ("cluster", "parallel", 4): ("cluster", "max_parallel_trials", 4),
}


@pytest.mark.parametrize("old", AFTER_SCHEMA_2, ids=lambda old: f"{old[0]}.{old[1]}")
def test_settings_of_schema_2_are_read_and_written_in_its_names(old: tuple[str, str, Any], tmp_path: Path) -> None:
    """A run's own, which its own code goes on to read; from a user an old name is refused, and the new one named."""
    (section, name, value), (_, new, wanted) = old, AFTER_SCHEMA_2[old]
    value, wanted = ({"c/d": each} if each == "a/b" else each for each in (value, wanted))
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"schema": 2, section: {name: value}}))
    settings = load_run_settings(file)
    assert settings.model_dump(mode="json")[section][new] == wanted
    written = yaml.safe_load(dump_settings(settings, 2))
    assert written["schema"] == 2 and written[section][name] == value and (new == name or new not in written[section])
    file.write_text(dump_settings(settings, 2))
    assert load_run_settings(file) == settings
    hint = f"{value!r} was renamed to {wanted!r}" if new == name else f"unknown key; renamed to {section}.{new}"
    with pytest.raises(ConfigError) as refused:
        load_settings(None, [f"{section}.{name}={json.dumps(value)}"])
    assert refused.value.problems == (f"{section}.{name}: {hint}",)


# By schema, the SHA-256 of the identity that the version before those new names made of the same settings in their old ones.
BEFORE_SCHEMA_3: dict[tuple[str, ...], dict[int, str]] = {
    ("train.ema_decay=0.99", "model.freeze=feature_encoder"): {
        1: "656ea6eeb02884f57aa5512fbfdcec963ea8e11fb23a54762744e665d323e22c",
        2: "a3aef854518c8824cbe37559c3fa89fd40b0f63e4b886383652d5908c3dfdbfe",
    },
    ("model.kind=acrnn", "train.ema_decay=0.985", "train.precision=fp32"): {
        1: "19450f7ac33dc613b1a9730fa907200e3d247ad87bb8f1303029e33ad4ae98ac",
        2: "b02bf0305b9e41105364abff67e92eade6fe9912f1a5f5f77ae2e61d77de3238",
    },
    (
        *("folds.speaker_aliases={savee/DC: esd/0011, savee/JE: null}", "data.cache_gb=2", "data.max_corrupt=0.1"),
        *("data.prefetch_mb=8", "cluster.max_parallel_trials=4", "train.precision=fp32", "train.ema_decay=0.5"),
    ): {2: "f375c3910a8d6cefcd5c815872edde8e43571d4e4703357a9782f8c8634f62ba"},
}


@pytest.mark.parametrize("overrides", BEFORE_SCHEMA_3)
def test_new_names_of_settings_change_no_older_identity(overrides: tuple[str, ...]) -> None:
    settings = load_settings(None, list(overrides))
    assert {number: json_digest(schema.identity(settings, number)) for number in BEFORE_SCHEMA_3[overrides]} == (
        BEFORE_SCHEMA_3[overrides]
    )


def test_settings_are_written_with_their_schema_and_those_of_a_later_version_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(dump_settings(load_settings(None, ["train.epochs=3"])))
    assert yaml.safe_load(file.read_text())["schema"] == schema.SCHEMA
    assert load_run_settings(file).train.epochs == 3
    file.write_text(f"schema: {schema.SCHEMA + 1}\n")
    with pytest.raises(UserError, match="use the version that wrote it"):
        load_run_settings(file)


# The SHA-256 of what the version without schemas made of these settings: it named runs by it.
SCHEMA_1: dict[tuple[str, ...], str] = {
    ("model.kind=acrnn", "model.norm=none", "train.epochs=5", "train.precision=fp32"): (
        "2f6c077cdec294a8e6816e7338578c3bc40457a651587904450db026d1cfe708"
    ),
    (
        *("data.augment=noise_pitch_stretch", "model.freeze=feature_encoder", "model.spec_augment.time_prob=0.05"),
        "train.precision=fp32",
    ): "dbf30087d7e3fb7da540432c6a47261e636a830ea705392b7ee08f41ceb6a5f4",
}


@pytest.mark.parametrize("overrides", SCHEMA_1)
def test_the_first_schema_is_written_as_it_was(overrides: tuple[str, ...]) -> None:
    """Whatever has been added since: the same settings give the same name."""
    full = schema.identity(load_settings(None, list(overrides)), 1)
    assert hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest() == SCHEMA_1[overrides]


def test_what_could_not_be_said_then_is_no_run_of_the_first_schema() -> None:
    assert schema.identity(load_settings(None, ["folds.speaker_aliases={a/b: a/c}"]), 1) is None
