"""Settings: merged in one order, every mistake at once with its path, and what was resolved can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ser_hpc.config.load import dump_settings, find_config, load_settings
from ser_hpc.config.settings import EncoderModel
from ser_hpc.config.settings_help import settings_help
from ser_hpc.core.errors import ConfigError, UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_default_then_file_then_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {lr: 2e-4, epochs: 7}\nseeds: 2\n")
    settings = load_settings(file, ["train.epochs=9"])
    assert (settings.train.lr, settings.train.epochs, settings.seeds) == (2e-4, 9, (0, 1))
    assert settings.train.global_batch == load_settings(None, []).train.global_batch


def test_every_mistake_at_once_with_the_nearest_known_key() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(
            None, ["train.lrr=1", "train.epochs=none at all", "modle.kind=acrnn", "model.dropuot=0.1", "seeds=[1, 1]", "lonely"]
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 6
    for expected in ("did you mean train.lr?", "train.epochs:", "did you mean model?", "model.dropout?", "twice", "key=value"):
        assert expected in text


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("lr=1e-4", "did you mean train.lr?"),
        ("epoch=3", "did you mean train.epochs?"),
        ("train.dropout=0.1", "did you mean model.dropout or model.head.dropout?"),
        ("model.head.projektion=8", "did you mean model.head.projection?"),
        ("data.lables=x", "did you mean data.labels?"),
        ("train.makeup=0.2", "known: epochs, eval_steps, patience"),
        ("nonsense=1", "known: run, data, folds, model, tasks, train, seeds, trackers, cluster"),
        ("data.shards=[shards]/many", "stands in quotes"),
    ],
)
def test_a_hint_names_what_was_meant_or_nothing(override: str, hint: str) -> None:
    """The same name elsewhere counts, letters in common do not: `makeup` is no `warmup`."""
    with pytest.raises(ConfigError) as caught:
        load_settings(None, [override])
    assert hint in str(caught.value)


def test_a_tagged_section_names_its_own_keys() -> None:
    with pytest.raises(ConfigError, match=r"did you mean model\.mels\?"):
        load_settings(None, ["model.kind=acrnn", "model.mel=40"])
    with pytest.raises(ConfigError, match=r"model: there is no kind 'rnn'; did you mean acrnn\?"):
        load_settings(None, ["model.kind=rnn"])


def test_weights_or_config_but_not_both() -> None:
    with pytest.raises(ConfigError, match="either `weights`"):
        load_settings(None, ["model.weights=null"])
    with pytest.raises(ConfigError, match=r"config\.model_type is missing"):
        load_settings(None, ["model.weights=null", "model.config={hidden_size: 8}"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_settings(file, [])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_reads_back(tmp_path: Path, config: Path) -> None:
    settings = load_settings(config, [])
    (tmp_path / "resolved.yaml").write_text(dump_settings(settings))
    assert load_settings(tmp_path / "resolved.yaml", []) == settings


def test_names_are_looked_up_and_unknown_ones_listed() -> None:
    assert find_config("emodb_7", "labels").stem == "emodb_7"
    with pytest.raises(UserError, match="emodb_7"):
        find_config("emodb_8", "labels")


def test_every_setting_is_described() -> None:
    text = "\n".join(settings_help())
    for path in ("train.budget_seconds", "model.head.projection", "model.time_mask_s", "cluster.partition", "seeds"):
        assert f"  {path} = " in text


def test_another_kind_on_the_command_line_leaves_behind_what_only_the_files_kind_has(tmp_path: Path) -> None:
    file = tmp_path / "probe.yaml"
    file.write_text("model: {weights: x/y, freeze: encoder, head: {kind: probe, layers: all, l2: [0.1]}}\n")
    model = load_settings(file, ["model.head.hidden=[64]", "model.head.kind=mlp"]).model
    assert isinstance(model, EncoderModel) and model.weights == "x/y"
    assert model.head.model_dump(exclude_defaults=True) == {"hidden": (64,)}
    file.write_text("model: {weights: x/y, layers: weighted, dropout: null, head: {kind: mlp, norm: batch, dropout: 0.3}}\n")
    network = load_settings(file, ["model.kind=acrnn"]).model  # which has a number of `layers`, and no optional dropout
    assert network.model_dump(exclude_defaults=True) == {}
    assert load_settings(file, ["model.head.kind=mean_pool"]).heads["model.head"].model_dump(exclude_defaults=True) == {
        "dropout": 0.3  # which is the same thing there
    }
    with pytest.raises(ConfigError, match=r"model.head.layers: unknown key"):  # what is asked for stays, and is refused
        load_settings(file, ["model.head.layers=all", "model.head.kind=mlp"])
