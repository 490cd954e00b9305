"""A run directory as the launcher and its trials leave it, without any training: plan, predictions, markers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import replan, rewrite

from ser_hpc.config.load import dump_settings, load_settings
from ser_hpc.core.atomic_io import write_sealed, write_text
from ser_hpc.corpora import labels
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.run import identity
from ser_hpc.run.plan import PLAN_FORMAT
from ser_hpc.run.predictions import Prediction, clip_hashes, clips_digest
from ser_hpc.run.run_dir import RunDir, Trial

Clip = tuple[str, str, str]  # utterance id, speaker, class


def clips_of(speaker: str, classes: Sequence[str], each: int) -> list[Clip]:
    return [(f"{speaker}_{name}_{i}", speaker, name) for name in classes for i in range(each)]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    """`make_run(num_folds=5, seeds=(0,), accuracy=0.7, ...)`: two test speakers a fold, the next fold's speakers as dev."""

    def make(
        num_folds: int = 5,
        seeds: Sequence[int] = (0,),
        classes: Sequence[str] = ("angry", "happy", "neutral", "sad"),
        each: int = 6,
        accuracy: float = 0.7,
        absent: dict[str, str] | None = None,  # {speaker: class that this speaker never spoke}
        speakers_per_fold: int = 2,
        name: str = "emodb",
        **plan_keys: Any,
    ) -> RunDir:
        run = RunDir(tmp_path / name)
        spoken: list[list[Clip]] = []
        for fold in range(num_folds):
            speakers = [f"{fold * speakers_per_fold + i:02d}" for i in range(speakers_per_fold)]
            clips = [clip for speaker in speakers for clip in clips_of(speaker, classes, each)]
            spoken.append([clip for clip in clips if (absent or {}).get(clip[1]) != clip[2]])

        def part(folds: Sequence[int]) -> dict[str, Any]:
            clips = [clip for fold in folds for clip in spoken[fold]]
            speakers = sorted({speaker for _, speaker, _ in clips})
            counts = Counter(name for _, _, name in clips)
            seconds = 2.8 * len(clips)
            words = "speakers " + ", ".join(speakers)
            return {
                "description": words,
                "speakers": speakers,
                "sessions": [],
                "num_clips": len(clips),
                "seconds": seconds,
                "classes": counts,
                "digest": clips_digest(clip_hashes(["emodb"] * len(clips), *zip(*clips, strict=True))),
            }

        folds = []
        for fold in range(num_folds):
            dev = (fold + 1) % num_folds
            train = [other for other in range(num_folds) if other not in (fold, dev)]
            folds.append({"fold": fold, "train": part(train), "dev": part([dev]), "test": part([fold])})
        lines = [f"run.name={name}", f"seeds={list(seeds)}", "train.epochs=30"]
        label_set = LabelSet("emodb_7", tuple(classes), {})
        who = identity.identity_of(load_settings(None, lines), label_set, {"shards": "f" * 64})
        assert who is not None
        write_text(run.settings, dump_settings(load_settings(None, lines)))
        write_text(run.labels, labels.dump_label_set(label_set))
        plan = {
            "format": PLAN_FORMAT,
            "name": name,
            "demo": False,
            "classes": list(classes),
            "label_set": "emodb_7",
            "corpora": ["emodb"],
            "num_clips": sum(map(len, spoken)),
            "dropped": {},
            "protocol": f"{num_folds} groups of speakers, balanced; the next group is dev",
            "notes": [],
            "seeds": list(seeds),
            "folds": folds,
            "trials": [{"seed": seed, "fold": fold} for seed in seeds for fold in range(num_folds)],
            "fingerprint": "f" * 64,
        }
        replan(run, plan | plan_keys, who)
        rng = np.random.default_rng(7)
        for seed in seeds:
            for fold in range(num_folds):
                folder = run.trial(Trial(seed, fold))
                made = []
                for which, clips in (("dev", spoken[(fold + 1) % num_folds]), ("test", spoken[fold])):
                    for utterance_id, speaker, truth in clips:
                        guess = truth if rng.random() < accuracy else str(rng.choice(classes))
                        odds = {name: float(name == guess) for name in classes}
                        made.append(Prediction("emodb", utterance_id, speaker, which, truth, guess, odds))
                marker = {"attempt": 1, "best_epoch": 10 + fold, "epochs": 30, "steps": 900, "seconds": 61.5, "ranks": 2}
                folder.current.predictions.parent.mkdir(parents=True)
                whose = {"run": who.digest, "seed": seed, "fold": fold}
                write_sealed(folder.done, marker | whose)
                rewrite(run, folder.trial, lambda _, made=made: made)
        return run

    return make
