"""What is in packed shards: `python -m ser_hpc.inspect SHARDS [SHARDS ...]`.

Without another option: counts by corpus, group, speaker, gender and class, a histogram of durations, and what packing found
wrong. All of it is read from the indices, and quick for a million clips; only --verify and --extract read sound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc import console
from ser_hpc.config.load import find
from ser_hpc.corpora import labels
from ser_hpc.corpora.folds import PROTOCOLS, FoldPlan, Part, plan
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.errors import UserError, listed
from ser_hpc.shards import contents, inspect
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.storage import place
from ser_hpc.shards.verify import verify

NO_CLASS = "(no class)"
PARTS = ("train", "dev", "test")


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    index = ShardIndex.load(*given.shards)
    label_set = labels.load(find(given.labels, "labels")) if given.labels else labels.as_annotated(index.metadata)
    told: dict[str, Any] = {}
    made: FoldPlan | None = None
    if not (given.clip or given.folds or given.verify):
        told["summary"] = _summary(index, label_set)
    if given.verify:
        told["damage"] = {str(root): verify(root) for root in index.roots if isinstance(root, Path)}
    if given.clip:
        position = inspect.find(index, given.clip)
        told["clip"] = inspect.describe(index, position)
        if given.extract:
            inspect.extract(index, position, given.extract)
            told["extracted"] = str(given.extract)
    if given.folds:
        made, told["folds"] = _folds(index, label_set, given)
    if given.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        out = console.screen()
        contents.show(told, out)
        if made:
            contents.show_folds(made, label_set, label_set.targets(index.metadata), out)
    return 1 if any(told.get("damage", {}).values()) or told.get("folds", {}).get("refused") else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ser_hpc.inspect",
        description=__doc__,
        epilog="Exit code 0: all is well; 1: shards are damaged, or the folds cannot be planned; 2: asked wrongly.",
        formatter_class=console.Help,
    )
    parser.add_argument("shards", metavar="SHARDS", type=place, nargs="+", help="folders that were packed into, or their URLs")
    parser.add_argument("--labels", metavar="SET", help="classes of a label set, a name or a file (default: as annotated)")
    parser.add_argument("--verify", action="store_true", help="read every byte, and name all that is not as it was packed")
    parser.add_argument("--clip", metavar="ID", help="show one clip, by its id or its key (corpus-id)")
    parser.add_argument("--extract", metavar="FILE.wav", type=Path, help="with --clip: write its sound")
    parser.add_argument("--folds", metavar="PROTOCOL", choices=PROTOCOLS, help=f"plan folds: {listed(PROTOCOLS)}")
    parser.add_argument("--count", metavar="K", type=int, help="with --folds: how many")
    parser.add_argument("--train-corpora", metavar="CORPUS", nargs="+", default=(), help="with --folds cross_corpus")
    parser.add_argument("--test-corpora", metavar="CORPUS", nargs="+", default=(), help="with --folds cross_corpus")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    given = parser.parse_args(argv)
    if given.extract and not given.clip:
        raise UserError("--extract writes the sound of one clip: name it with --clip ID")
    if given.verify and not all(isinstance(root, Path) for root in given.shards):
        raise UserError("--verify reads folders; copy the shards to a disk first (training checks what it reads from a URL)")
    if (given.count or given.train_corpora or given.test_corpora) and not given.folds:
        raise UserError("--count, --train-corpora and --test-corpora are for --folds PROTOCOL")
    return given


def _summary(index: ShardIndex, label_set: LabelSet) -> dict[str, Any]:
    """Everything that is shown without an option, ready for JSON."""
    metadata = index.metadata
    targets = label_set.targets(metadata)
    codes = np.where(targets < 0, len(label_set.classes), targets)
    names = [*label_set.classes, NO_CLASS] if (targets < 0).any() else label_set.classes
    columns = {name: inspect.counts(index, name) for name in ("gender", "language", "split", "speaker")}
    whole = {"corpus": inspect.counts(index, "corpus"), "class": inspect.tally(names, codes, metadata.seconds)}
    counted = whole | columns | {"group": inspect.groups(index)}
    return {
        "datasets": [
            {
                "root": str(root),
                "fingerprint": fingerprint,
                "shards": index.dataset.count(number),
                "bytes": sum(s.bytes for s, d in zip(index.shards, index.dataset, strict=True) if d == number),
                "packed": inspect.packed_with(root),
            }
            for number, (root, fingerprint) in enumerate(zip(index.roots, index.fingerprints, strict=True))
        ],
        "clips": len(metadata),
        "seconds": round(float(metadata.seconds.sum()), 3),
        "label_set": label_set.name,
        "counts": {name: {value: asdict(count) for value, count in values.items()} for name, values in counted.items()},
        "classes_by_corpus": inspect.by_corpus(index, names, codes),
        "durations": asdict(inspect.durations(index)),
    }


def _folds(index: ShardIndex, label_set: LabelSet, given: argparse.Namespace) -> tuple[FoldPlan | None, dict[str, Any]]:
    """A planned cross-validation and what everyone must know of it, for JSON; none, and why."""
    told: dict[str, Any] = {"protocol": given.folds, "label_set": label_set.name, "refused": "", "notes": [], "folds": []}
    try:
        made = plan(
            index.metadata,
            label_set,
            given.folds,
            given.count,
            train_corpora=given.train_corpora,
            test_corpora=given.test_corpora,
            distinct=index.distinct,
        )
    except UserError as error:
        return None, told | {"refused": str(error)}
    targets = label_set.targets(index.metadata)
    for fold in made.folds:
        sides = {name: _side(index, label_set, targets, getattr(fold, name)) for name in PARTS}
        told["folds"].append({"fold": fold.index} | sides)
    return made, told | {"notes": list(made.notes)}


def _side(index: ShardIndex, label_set: LabelSet, targets: np.ndarray, part: Part) -> dict[str, Any]:
    clips = np.bincount(targets[part.positions], minlength=len(label_set.classes)).tolist()
    return {
        "who": part.words,
        "speakers": len(part.speakers),
        "clips": len(part.positions),
        "seconds": round(float(index.metadata.seconds[part.positions].sum()), 3),
        "classes": dict(zip(label_set.classes, clips, strict=True)),
    }


if __name__ == "__main__":
    console.run(main)
