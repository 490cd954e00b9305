"""Label sets: what class, if any, an annotated emotion stands for. A YAML file, applied at training time; shards never change.

    name: iemocap_4
    classes: [angry, happy, neutral, sad]        # a class's index is its place in this list
    map: {ang: angry, hap: happy, exc: happy, neu: neutral, sad: sad, fru: null, xxx: null}   # null: dropped, and counted

Every emotion that occurs in the shards must be a key of `map` (an emotion with a class's own name may be left out), so that a
typo or a new code is never dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from ser_hpc.errors import UserError, listed

DROPPED = -1


@dataclass(frozen=True, slots=True)
class LabelSet:
    """`classes[i]` is the name of class i; `mapping` takes an annotated emotion to a class, or to None (dropped)."""

    name: str
    classes: tuple[str, ...]
    mapping: dict[str, str | None]

    def targets(self, emotions: np.ndarray) -> np.ndarray:
        """Class index of each annotated emotion, `DROPPED` (-1) where the set gives it no class. int64, same shape.

        Raises UserError naming every emotion that the set does not know, with its count.
        """
        index = {name: i for i, name in enumerate(self.classes)}
        known = {name: name for name in self.classes} | self.mapping
        counts = Counter(emotions.tolist())
        unknown = sorted(set(counts) - set(known))
        if unknown:
            found = listed([f"{name!r} ({counts[name]} clips)" for name in unknown])
            raise UserError(
                f"label set {self.name!r} does not know the emotion {found}; it knows {listed(sorted(known), 20)}. "
                "Give each a class under `map`, or null to leave it out."
            )
        code = {emotion: DROPPED if name is None else index[name] for emotion, name in known.items()}
        return np.array([code[emotion] for emotion in emotions.tolist()], dtype=np.int64)


def as_annotated(emotions: np.ndarray) -> LabelSet:
    """Every emotion that occurs is a class of its own, in alphabetical order."""
    return LabelSet("as_annotated", tuple(sorted(set(emotions.tolist()))), {})


def load(path: Path) -> LabelSet:
    """Read and check a label-set file. Raises UserError with every mistake in it."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"label set {path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"label set {path}: must be a mapping with the keys name, classes and map")
    classes, mapping = raw.get("classes"), raw.get("map") or {}
    problems = [f"unknown key {key!r}; allowed: name, classes, map" for key in raw if key not in ("name", "classes", "map")]
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(c, str) for c in classes):
        problems.append(f"classes must be a list of at least two names, but is {classes!r}")
        classes = []
    if len(set(classes)) != len(classes):
        problems.append(f"classes has a name twice: {classes}")
    if not isinstance(mapping, dict):
        problems.append(f"map must take emotions to classes, but is {mapping!r}")
        mapping = {}
    problems += [
        f"map.{emotion}: {name!r} is not one of the classes {classes}"
        for emotion, name in mapping.items()
        if name is not None and name not in classes
    ]
    if problems:
        raise UserError(f"label set {path}:\n" + "\n".join(f"  {problem}" for problem in problems))
    return LabelSet(str(raw.get("name", path.stem)), tuple(classes), {str(k): v for k, v in mapping.items()})
