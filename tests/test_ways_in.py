"""Parts from outside the package, as a hurried or hostile user writes them: what belongs to a run's identity is found, and
every mistake is told in words; tasks whose clips lack targets are scored and reported all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ser_hpc.config import extension_errors, extensions
from ser_hpc.config.heads import HeadSettings, PoolingSettings
from ser_hpc.config.load import load_settings
from ser_hpc.config.losses import ConcordanceSettings, CrossEntropySettings, LossSettings
from ser_hpc.config.protocols import ProtocolSettings
from ser_hpc.config.tasks import TaskSettings
from ser_hpc.config.trackers import TrackerSettings
from ser_hpc.core.errors import UserError
from ser_hpc.data.augmentation import check_augmentation
from ser_hpc.engine import objective
from ser_hpc.engine.trackers import Trackers
from ser_hpc.models.classifier import Classifier
from ser_hpc.models.frontend import PooledFeatureFrontend
from ser_hpc.models.heads.build import build_head, build_pooling
from ser_hpc.models.losses import build_loss
from ser_hpc.protocols import folds
from ser_hpc.protocols.clip_table import DEV, TEST, TRAIN, FoldDraft
from ser_hpc.results.task_scores import TaskScores, score_tasks
from ser_hpc.run.predictions import Prediction
from ser_hpc.run.run_dir import Trial
from ser_hpc.tasks.targets import ClassTarget, DistributionTarget, NumbersTarget, Target
from ser_hpc.tasks.task import Task, build_tasks, check_selection

HEAD = """
from ser_hpc.config.heads import HeadSettings, MlpSettings
class Mine(HeadSettings):
    def build(self, width, outputs): ...
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder, the working folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def sources(reference: str) -> list[str]:
    settings = load_settings(None, [f"model.head={{kind: '{reference}'}}"])
    return list(extensions.sources_of(settings.outsiders_in_results()))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"outs_a.py": "import outs_b\n" + HEAD, "outs_b.py": ""}, ["outs_a.py", "outs_b.py"]),
        # This package and Python's own are no part of it, even where a folder beside the file has their names.
        ({"outs_a.py": "import random\n" + HEAD, "ser_hpc/core/errors.py": "", "random.py": ""}, ["outs_a.py"]),
        (
            {"outs_a.py": "try:\n    import outs_b\nexcept SyntaxError: ...\n" + HEAD, "outs_b.py": "x = ("},
            ["outs_a.py", "outs_b.py"],
        ),
        ({"outs_a.py": b"# -*- coding: latin-1 -*-\n# \xe9\n" + HEAD.encode()}, ["outs_a.py"]),
        ({"outs_a.py": HEAD, **{f"many/{i}.py": "" for i in range(99)}}, ["outs_a.py"]),
    ],
)
def test_what_belongs_to_a_part_is_found_and_nothing_else(here: Path, files: dict[str, str | bytes], found: list[str]) -> None:
    write(here, files)
    assert sources("outs_a:Mine") == found


def test_a_link_is_what_it_points_to(here: Path) -> None:
    """By its own name, with what lies beside the link: else a run would be named by no code at all, and keep no copy."""
    write(here, {"store/version_2.py": "import outs_b\n" + HEAD, "outs_b.py": ""})
    (here / "outs_a.py").symlink_to(here / "store" / "version_2.py")
    assert sources("outs_a:Mine") == ["outs_a.py", "outs_b.py"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3"),
        (
            HEAD.replace("(HeadSettings)", "(MlpSettings)"),
            "derives from MlpSettings, a kind of the package's own: derive it from",
        ),
        (HEAD.replace("def build", "def bild"), "has no method 'build' of its own"),
    ],
)
def test_a_class_that_makes_no_part_is_refused_when_settings_are_read(here: Path, source: str, told: str) -> None:
    write(here, {"outs_a.py": source})
    with pytest.raises(UserError, match=told):
        sources("outs_a:Mine")


def test_a_run_imports_its_copy_later_too(here: Path) -> None:
    """Within functions, when the files that it was launched with have been edited, and lie in the working folder."""
    lazy = HEAD.replace("...", "\n        import outs_b\n        return outs_b.made")
    write(here, {"outs_a.py": lazy, "outs_b.py": "made = 'edited'"})
    write(here, {"run/code/extensions/outs_a.py": lazy, "run/code/extensions/outs_b.py": "made = 'as launched'"})
    write(here, {"run/settings.yaml": "schema: 3\nmodel: {head: {kind: 'outs_a:Mine'}}"})
    code = (
        "from pathlib import Path; from ser_hpc.config.load import load_run_settings\n"
        "print(load_run_settings(Path('run/settings.yaml')).model.head.build(1, 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # -c: looks here first
    assert done.stdout == "as launched\n", done.stderr


def test_two_runs_of_the_same_file_with_another_helper_are_told_apart(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, as where the runs of a folder are looked through."""
    seen = []
    for width in (1, 2):
        source = HEAD.replace("class Mine", "import outs_b\nclass Mine").replace("def", "width: int = outs_b.WIDTH\n    def")
        write(here, {f"{width}/outs_a.py": source, f"{width}/outs_b.py": f"WIDTH = {width}"})
        with extensions.import_from(here / str(width)):
            settings: Any = load_settings(None, ["model.head={kind: 'outs_a:Mine'}"])
        seen.append((settings.model.head.width, extensions.sources_of(settings.outsiders())["outs_b.py"]))
    assert seen == [(1, b"WIDTH = 1"), (2, b"WIDTH = 2")]


CLASSES = ClassTarget(("a", "b"))


@pytest.mark.parametrize("target", [CLASSES, DistributionTarget(("a", "b")), NumbersTarget(("x",), 1, 5)])
def test_a_part_without_targets_is_scored_as_undefined(target: Target) -> None:
    """A fold's test part may have no clip with a target of a task: its report is made all the same."""
    values, outputs = target.read([])
    assert len(values) == 0 and outputs.shape == (0, target.width)
    assert all(np.isnan(score) for score in target.scores(values, outputs).values())


@pytest.mark.parametrize(
    ("described", "prediction", "told"),
    [
        ({"kind": "class", "classes": ["a", "b"]}, {"a": 1.0}, "not what was planned.*'b'"),
        ({"kind": "class", "classes": ["a", "b"]}, {"a": 1.0, "b": float("nan")}, "no finite number"),
        ({"kind": "class", "classes": ["a", "b"], "more": 1}, {"a": 1.0, "b": 0.0}, "not as it was written"),
        ({"classes": ["a", "b"]}, {"a": 1.0, "b": 0.0}, "not as it was written"),
    ],
)
def test_edited_plans_and_predictions_of_tasks_are_told(described: Any, prediction: Any, told: str) -> None:
    plan = {"tasks": {"g": described | {"clips": {"test": [1]}}}}
    made = Prediction("c", "u", "s", "test", "x", "x", {"x": 1.0}, {"g": {"truth": "a", "prediction": prediction}})
    with pytest.raises(UserError, match=told):
        score_tasks(plan, {Trial(0, 0): [made]})


def test_chance_of_a_distribution_is_that_of_its_classes() -> None:
    of = {"num_clips": 0, "mean": {}, "std": {}, "pooled": {}}
    assert TaskScores("votes", DistributionTarget(("a", "b", "c", "d")), **of).chance == 0.25


@pytest.mark.parametrize("select_by", ["gender.uaar", "gender.ccc", "valence.rmse_x", "valence.uar"])
def test_a_score_that_cannot_choose_is_told_when_planned(select_by: str) -> None:
    gender = Task("gender", CLASSES, np.array([-1, 0, 1]), CrossEntropySettings())
    valence = Task("valence", NumbersTarget(("x",), 1, 5), np.full((3, 1), 0.5, np.float32), ConcordanceSettings())
    for fine in ("gender", "gender.wa", "valence", "valence.ccc_x"):
        check_selection([gender, valence], fine)
    with pytest.raises(UserError, match=f"train.select_by={select_by}: higher is better of these scores"):
        check_selection([gender, valence], select_by)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["model.kind=acrnn", "tasks.g={kind: classification, column: g, head: mlp}"],
            r"tasks\.g\.head: model\.kind=acrnn has",
        ),
        (["model.kind=acrnn", "tasks.emotion.head=mlp"], r"tasks\.emotion\.head: model\.kind=acrnn has"),
        (["model.adapter=bitfit", "model.freeze=encoder"], "its adapter included"),
        (["tasks.v={kind: numbers, columns: [x, x], range: [1, 5]}"], "one stands here twice"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_settings(None, words)


def test_torch_refusing_a_shape_is_a_mistake_and_memory_that_ran_out_is_none(here: Path) -> None:
    write(here, {"outs_a.py": HEAD.replace("...", "width[0] @ width[1]")})
    mine: Any = load_settings(None, ["model.head={kind: 'outs_a:Mine'}"]).model
    with pytest.raises(RuntimeError) as caught:
        mine.head.build((torch.ones(2, 3), torch.ones(2, 3)), 1)
    told = extension_errors.outsiders_mistake(caught.value, ["outs_a:Mine"])
    assert told is not None and "outs_a.py" in told
    for passing in ("CUDA error: out of memory", "cuFFT error: CUFFT_INTERNAL_ERROR", "NCCL communicator was aborted"):
        passing_error = RuntimeError(passing).with_traceback(caught.value.__traceback__)
        assert extension_errors.outsiders_mistake(passing_error, ["outs_a:Mine"]) is None


def test_the_order_of_tasks_means_nothing() -> None:
    """It is no part of a run's name, so it may not decide which weights the heads begin with."""
    one, other = (f"{name}: {{kind: classification, column: {name}}}" for name in ("gender", "speaker"))
    both = [list(load_settings(None, [f"tasks={{{', '.join(order)}}}"]).tasks) for order in ([one, other], [other, one])]
    assert both == [["emotion", "gender", "speaker"]] * 2


def part(base: type[Any], made: Any, **named: Any) -> Any:
    """Settings from outside whose `build` (or `divide`) returns this."""
    body = {"build": lambda *_: made, "divide": lambda *_: made, "__module__": __name__, **named}
    return type("Mine", (base,), body)(kind="outs:Mine")


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: build_head(part(HeadSettings, None), 4, 2), "returned None, and must return a torch module"),
        (lambda: build_pooling(part(PoolingSettings, nn.Linear(4, 4)), 4), "module whose `out_width`"),
        (lambda: build_loss(part(LossSettings, None)), "returned None, and must return a function of outputs, targets"),
        (lambda: build_loss(part(LossSettings, lambda o, t, w: o)), "a function of outputs, targets"),
    ],
)
def test_what_build_returns_is_held_against_what_is_wanted(build: Callable[[], Any], told: str) -> None:
    with pytest.raises(UserError, match=f"outs:Mine.build: it {told}|outs:Mine.build: it returned .* {told}"):
        build()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (None, "returned None, and must return a Task"),
        (Task("t", CLASSES, np.zeros(3, np.int64), CrossEntropySettings()), r"returned ndarray of shape \(3,\)"),
        (Task("t", CLASSES, np.zeros(6), CrossEntropySettings()), "float64, and must return int64"),
        (Task("t", CLASSES, np.full(6, 2), CrossEntropySettings()), "class indices below 2"),
        (Task("t", CLASSES, np.full(6, -1), CrossEntropySettings()), "no clip has a target"),
        (Task("other", CLASSES, np.zeros(6, np.int64), CrossEntropySettings()), "named 'other'"),
        (Task("t", NumbersTarget(("x",), 0, 1), np.zeros((6, 1)), ConcordanceSettings()), "must return float32"),
        (Task("t", NumbersTarget(("x",), 0, 1), np.zeros((6, 1), np.float32), CrossEntropySettings()), "does not learn from a"),
    ],
)
def test_a_task_from_outside_is_checked_when_planned(made: Any, told: str) -> None:
    columns: Any = SimpleNamespace(targets=np.zeros(6, np.int64))
    with pytest.raises(UserError, match=told):
        build_tasks({"t": part(TaskSettings, made)}, columns, "none")


SIDE = np.array([TRAIN, DEV, TEST, TRAIN], np.int8)
WORDS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (None, "returned None, and must return a list of one FoldDraft"),
        (([], []), "must return a list of one FoldDraft"),
        (([FoldDraft(SIDE, WORDS)], "a note"), "and a list of notes"),
        (([FoldDraft(SIDE[:2], WORDS)], []), "for each of 4 clips"),
        (([FoldDraft(SIDE + 9, WORDS)], []), "for each of 4 clips"),
        (([FoldDraft(np.zeros_like(SIDE), WORDS)], []), r"fold 0 has no clips in its \w+, \w+ part|no clips in its"),
    ],
)
def test_a_protocol_from_outside_is_checked_when_planned(made: Any, told: str) -> None:
    clips: Any = SimpleNamespace(target=np.zeros(4, np.int64))
    with pytest.raises(UserError, match=told):
        folds.divide(clips, part(ProtocolSettings, made), folds.ProtocolOptions(None))


@pytest.mark.parametrize("made", ["(s * 32767).astype('int16')", "s[None]", "s.tolist()", "None"])
def test_a_transform_that_returns_no_sound_is_told_when_planned(here: Path, made: str) -> None:
    """Integers would be taken for a sound 32768 times too loud."""
    source = "from ser_hpc.config.transforms import TransformSettings\nclass Mine(TransformSettings):\n"
    write(here, {"outs_x.py": f"{source}    def build(self):\n        return lambda s, rate: {made}"})
    settings = load_settings(None, ["data.augment=[{name: 'outs_x:Mine'}]"])
    with pytest.raises(UserError, match=r"outs_x:Mine: it returned .*, and must return an array"):
        check_augmentation(settings.data.augment)


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize(
    ("head", "loss", "told"),
    [
        (lambda x: x[:, :1], cross_entropy, r"head: it returned Tensor of shape \(4, 1\)"),
        (lambda x: x[:1], cross_entropy, r"head: it returned Tensor of shape \(1, 2\)"),
        (lambda x: (x,), cross_entropy, "head: it returned tuple"),
        (lambda x: x, nn.functional.cross_entropy, r"loss: it returned Tensor of shape \(\)"),
        (lambda x: x, lambda o, t: cross_entropy(o, t).mean()[None], r"loss: it returned Tensor of shape \(1,\)"),
        (lambda x: x, lambda o, t: cross_entropy(o.detach(), t), "no gradient by the outputs"),
    ],
)
def test_outputs_and_losses_of_another_shape_are_never_spread_over_clips(head: Any, loss: Any, told: str) -> None:
    task = Task("t", CLASSES, np.zeros(4, np.int64), part(LossSettings, loss))
    of_clips = objective.ClipTargets.of_tasks([task], np.arange(4))
    batch: Any = SimpleNamespace(
        targets={"t": torch.zeros(4, dtype=torch.int64)}, weights={"t": torch.ones(4)}, rows=np.arange(4)
    )
    outputs = {"t": head(torch.zeros(4, 2, requires_grad=True))}
    with pytest.raises(UserError, match=told):
        objective.Objective([task], of_clips).loss(outputs, batch, objective.StepTerms({"t": 4.0}, {}))


class Stub(nn.Module):
    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return frames


NAMES = ("type", "keys", "forward", "training", "x_")


def test_a_task_may_be_named_as_what_modules_have() -> None:
    model = Classifier(PooledFeatureFrontend(2), nn.Identity(), Stub(), {name: Stub() for name in NAMES})
    assert list(model(torch.zeros(1, 2), torch.tensor([0, 1]))) == ["emotion", *NAMES]


def test_two_trackers_of_one_kind_both_get_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And one that fails is left out alone."""
    seen: list[float] = []
    good, bad = SimpleNamespace(log=lambda _, numbers: seen.append(numbers["x"]), close=int), SimpleNamespace(close=int)
    with_one_bad = Trackers([part(TrackerSettings, each) for each in (good, bad, good)], tmp_path, "trial", 0)
    for number in (1.0, 2.0):
        with_one_bad.log(0, {"x": number})
    assert seen == [1.0, 1.0, 2.0, 2.0]
    assert capsys.readouterr().out.count("is left out from now on") == 1
