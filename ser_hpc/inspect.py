"""Show what is in packed shards: `python -m ser_hpc.inspect SHARDS [SHARDS ...]`.

Without another option: counts by corpus, group, speaker, gender and class, a histogram of durations, and what packing found
wrong. All of it is read from the indices, and quick for a million clips; only --verify, --extract and --near-duplicates read
sound (the last where shards have no acoustic fingerprints yet, which it then makes).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ser_hpc.config.load import find_config
from ser_hpc.core import cli, cores
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora import labels
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.corpora.words import WordColumn
from ser_hpc.protocols.fold_tables import print_folds
from ser_hpc.protocols.folds import PROTOCOLS, FoldPlan, Part, plan_folds
from ser_hpc.shards import inspect_screen, pack_screen, stats
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.pair_file import find_near_duplicates, make_missing_fingerprints, num_pairs_kept
from ser_hpc.shards.storage import parse_location
from ser_hpc.shards.verify import verify

NO_CLASS = "(no class)"
PARTS = ("train", "dev", "test")


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    index = ShardIndex.load(*given.shards)
    label_set = (
        labels.load_label_set(find_config(given.labels, "labels"))
        if given.labels
        else labels.label_set_as_annotated(index.metadata)
    )
    contents: dict[str, Any] = {}
    made: FoldPlan | None = None
    if not (given.clip or given.folds or given.verify or given.near_duplicates):
        contents["summary"] = _summary(index, label_set)
    if given.verify:
        contents["damage"] = {str(root): verify(root) for root in index.roots if isinstance(root, Path)}
    if given.clip:
        position = stats.find_clip(index, given.clip)
        contents["clip"] = stats.describe_clip(index, position)
        if given.extract:
            stats.extract_wav(index, position, given.extract)
            contents["extracted"] = str(given.extract)
    if given.near_duplicates:
        contents["near_duplicates"] = _near_duplicates(index)
    if given.folds:
        made, contents["folds"] = _folds(index, label_set, given)
    if given.json:
        print(json.dumps(contents, indent=2, ensure_ascii=False))
    else:
        out = cli.make_console()
        inspect_screen.print_contents(contents, out)
        if made:
            print_folds(made, label_set, label_set.targets(index.metadata), out)
    return 1 if any(contents.get("damage", {}).values()) or contents.get("folds", {}).get("refused") else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ser_hpc.inspect",
        description=__doc__,
        epilog="Exit code 0: all is well; 1: shards are damaged, or the folds cannot be planned; 2: asked wrongly.",
        formatter_class=cli.Help,
    )
    parser.add_argument(
        "shards", metavar="SHARDS", type=parse_location, nargs="+", help="folders that were packed into, or their URLs"
    )
    parser.add_argument("--labels", metavar="SET", help="classes of a label set, a name or a file (default: as annotated)")
    parser.add_argument("--verify", action="store_true", help="read every byte, and name all that is not as it was packed")
    parser.add_argument(
        "--near-duplicates",
        action="store_true",
        help="name all pairs of clips that share sound, altered or not, within and between these shards",
    )
    parser.add_argument("--clip", metavar="ID", help="show one clip, by its id or its key (corpus-id)")
    parser.add_argument("--extract", metavar="FILE.wav", type=Path, help="with --clip: write its sound")
    parser.add_argument("--folds", metavar="PROTOCOL", choices=PROTOCOLS, help=f"plan folds: {listed(PROTOCOLS)}")
    parser.add_argument("--count", metavar="K", type=int, help="with --folds: how many")
    parser.add_argument("--train-corpora", metavar="CORPUS", nargs="+", default=(), help="with --folds cross_corpus")
    parser.add_argument("--test-corpora", metavar="CORPUS", nargs="+", default=(), help="with --folds cross_corpus")
    parser.add_argument(
        "--harmless",
        metavar="PAIR|FILE",
        nargs="+",
        default=(),
        help="with --folds: near-duplicates that may stay (folds.harmless_pairs)",
    )
    parser.add_argument("--json", action="store_true", help="the same for programs")
    given = parser.parse_args(argv)
    if given.extract and not given.clip:
        raise UserError("--extract writes the sound of one clip: name it with --clip ID")
    if given.near_duplicates and not all(isinstance(root, Path) for root in given.shards):
        raise UserError("--near-duplicates reads folders, and writes into them; give it the shards before they go to a store")
    if given.verify and not all(isinstance(root, Path) for root in given.shards):
        raise UserError("--verify reads folders; copy the shards to a disk first (training checks what it reads from a URL)")
    if (given.count or given.train_corpora or given.test_corpora or given.harmless) and not given.folds:
        raise UserError("--count, --train-corpora, --test-corpora and --harmless are for --folds PROTOCOL")
    return given


def _summary(index: ShardIndex, label_set: LabelSet) -> dict[str, Any]:
    """Collect everything that is shown without an option, ready for JSON."""
    metadata = index.metadata
    targets = label_set.targets(metadata)
    codes = np.where(targets < 0, len(label_set.classes), targets)
    names = [*label_set.classes, NO_CLASS] if (targets < 0).any() else label_set.classes
    columns = {name: stats.count_by_column(index, name) for name in ("gender", "language", "split", "speaker")}
    whole = {"corpus": stats.count_by_column(index, "corpus"), "class": stats.tally(names, codes, metadata.seconds)}
    in_dataset = np.bincount(np.array(index.dataset)[index.shard]).tolist()
    counted = whole | columns | {"group": stats.count_by_group(index)}
    return {
        "datasets": [
            {
                "root": str(root),
                "fingerprint": fingerprint,
                "shards": index.dataset.count(number),
                "bytes": sum(s.bytes for s, d in zip(index.shards, index.dataset, strict=True) if d == number),
                "packed": stats.read_pack_report(root),
                "near_duplicates": num_pairs_kept(root, fingerprint, clips),
            }
            for number, (root, fingerprint, clips) in enumerate(zip(index.roots, index.fingerprints, in_dataset, strict=True))
        ],
        "clips": len(metadata),
        "seconds": round(float(metadata.seconds.sum()), 3),
        "label_set": label_set.name,
        "counts": {name: {value: asdict(count) for value, count in values.items()} for name, values in counted.items()},
        "classes_by_corpus": stats.by_corpus(index, names, codes),
        "durations": asdict(stats.summarize_durations(index)),
    }


def _near_duplicates(index: ShardIndex) -> dict[str, Any]:
    """Make the fingerprints that are lacking, and describe every pair, for JSON."""
    with pack_screen.ProgressBars() as progress:
        make_missing_fingerprints(index, cores.process_share(os.environ).cores, progress)
    found, metadata = find_near_duplicates(index, most_clips=None), index.metadata

    def of_both(column: WordColumn, pair: Sequence[int]) -> list[str]:
        return [column[position] for position in pair]

    return {
        "pairs": [
            {
                "clips": [f"{metadata.corpus[position]}/{metadata.utterance_id[position]}" for position in pair],
                "speakers": of_both(metadata.speaker, pair),
                "emotions": of_both(metadata.emotion, pair),
                "seconds": round(seconds, 3),
                "alike": round(1 - error, 4),
            }
            for pair, seconds, error in zip(found.positions.tolist(), found.seconds.tolist(), found.error.tolist(), strict=True)
        ],
        "clips": len(metadata),
        "too_short": found.too_short,
        "not_looked_for": found.not_looked_for,
    }


def _folds(index: ShardIndex, label_set: LabelSet, given: argparse.Namespace) -> tuple[FoldPlan | None, dict[str, Any]]:
    """Plan a cross-validation; return it, or none where it is refused, and its description for JSON."""
    summary: dict[str, Any] = {"protocol": given.folds, "label_set": label_set.name, "refused": "", "notes": [], "folds": []}
    try:
        made = plan_folds(
            index.metadata,
            label_set,
            given.folds,
            given.count,
            train_corpora=given.train_corpora,
            test_corpora=given.test_corpora,
            distinct=index.distinct,
            near=find_near_duplicates(index),
            harmless_pairs=given.harmless,
        )
    except UserError as error:
        return None, summary | {"refused": str(error)}
    targets = label_set.targets(index.metadata)
    for fold in made.folds:
        sides = {name: _side(index, label_set, targets, getattr(fold, name)) for name in PARTS}
        summary["folds"].append({"fold": fold.index} | sides)
    return made, summary | {"notes": list(made.notes)}


def _side(index: ShardIndex, label_set: LabelSet, targets: np.ndarray, part: Part) -> dict[str, Any]:
    clips = np.bincount(targets[part.positions], minlength=len(label_set.classes)).tolist()
    return {
        "who": part.description,
        "speakers": len(part.speakers),
        "clips": len(part.positions),
        "seconds": round(float(index.metadata.seconds[part.positions].sum()), 3),
        "classes": dict(zip(label_set.classes, clips, strict=True)),
    }


if __name__ == "__main__":
    cli.run_main(main)
