"""What is in packed shards: `python tools/inspect_shards.py SHARDS [SHARDS ...]`.

Without another option: counts by corpus, group, speaker, gender and class, a histogram of durations, and what packing found
wrong. All of it is read from the indices, and quick for a million clips; only --verify and --extract read sound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ser_hpc import console
from ser_hpc.config.load import find
from ser_hpc.corpora import labels
from ser_hpc.corpora.folds import PROTOCOLS, Part, plan
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.errors import UserError, listed
from ser_hpc.shards import inspect
from ser_hpc.shards.index import REPORT, ShardIndex
from ser_hpc.shards.storage import place
from ser_hpc.shards.verify import verify

SHOWN = 16  # rows of a table, the largest; the rest is summed up in the last
NO_CLASS = "(no class)"
BAR = 30  # characters of the longest bar
PARTS = ("train", "dev", "test")


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    index = ShardIndex.load(*given.shards)
    label_set = labels.load(find(given.labels, "labels")) if given.labels else labels.as_annotated(index.metadata)
    told: dict[str, Any] = {}
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
        told["folds"] = _folds(index, label_set, given)
    if given.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _show(told, Console(highlight=False))
    return 1 if any(told.get("damage", {}).values()) or told.get("folds", {}).get("refused") else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tools/inspect_shards.py",
        description=__doc__,
        epilog="Exit code 0: all is well; 1: shards are damaged, or the folds cannot be planned; 2: asked wrongly.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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


def _folds(index: ShardIndex, label_set: LabelSet, given: argparse.Namespace) -> dict[str, Any]:
    """A planned cross-validation with what everyone must know of it, or why there is none."""
    told: dict[str, Any] = {"protocol": given.folds, "label_set": label_set.name, "refused": "", "notes": [], "folds": []}
    try:
        made = plan(
            index.metadata,
            label_set,
            given.folds,
            given.count,
            train_corpora=given.train_corpora,
            test_corpora=given.test_corpora,
        )
    except UserError as error:
        return told | {"refused": str(error)}
    targets = label_set.targets(index.metadata)
    for fold in made.folds:
        sides = {name: _side(index, label_set, targets, getattr(fold, name)) for name in PARTS}
        told["folds"].append({"fold": fold.index} | sides)
    return told | {"notes": list(made.notes)}


def _side(index: ShardIndex, label_set: LabelSet, targets: np.ndarray, part: Part) -> dict[str, Any]:
    clips = np.bincount(targets[part.positions], minlength=len(label_set.classes)).tolist()
    return {
        "who": part.words,
        "speakers": len(part.speakers),
        "clips": len(part.positions),
        "seconds": round(float(index.metadata.seconds[part.positions].sum()), 3),
        "classes": dict(zip(label_set.classes, clips, strict=True)),
    }


# On the screen


def _show(told: Mapping[str, Any], out: Console) -> None:
    if "summary" in told:
        _show_summary(told["summary"], out)
    for root, problems in told.get("damage", {}).items():
        for problem in problems:
            out.print(problem, markup=False, soft_wrap=True)
        state = f"{len(problems)} problems" if problems else "every byte is as it was packed"
        out.print(f"{root}: {state}", markup=False, soft_wrap=True)
    if "clip" in told:
        table = _table("", "")
        for name, value in told["clip"].items():
            table.add_row(name, Text(f"{value:g}" if isinstance(value, float) else str(value), overflow="fold"))
        out.print(table)
    if "extracted" in told:
        out.print(f"its sound is in {told['extracted']}", markup=False, soft_wrap=True)
    if "folds" in told:
        _show_folds(told["folds"], out)


def _show_summary(summary: Mapping[str, Any], out: Console) -> None:
    for dataset in summary["datasets"]:
        told = f"{dataset['bytes'] / 1e6:,.1f} MB in {dataset['shards']:,} shards, fingerprint {dataset['fingerprint'][:12]}"
        out.print(f"[bold]{escape(dataset['root'])}[/bold]  {told}", soft_wrap=True)
    counts = {name: values for name, values in summary["counts"].items() if _says_something(name, summary["counts"])}
    speakers = len(summary["counts"]["speaker"])
    out.print(f"{summary['clips']:,} clips, {_duration(summary['seconds'])}, {speakers:,} speakers\n")
    hours = summary["seconds"] > 36_000
    out.print(Columns([_counts(name, values, hours) for name, values in counts.items()], padding=(0, 4)))
    if len(summary["counts"]["corpus"]) > 1:
        _show_classes(summary, hours, out)
    _show_durations(summary["durations"], out)
    for dataset in summary["datasets"]:
        _show_packed(dataset, out)


def _says_something(name: str, counts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Not a column that nothing is annotated in, nor groups that are the speakers; classes of several corpora come apart."""
    if name in ("corpus", "class"):
        return (len(counts["corpus"]) > 1) == (name == "corpus")
    if name == "group":
        groups, speakers = ({value: count["clips"] for value, count in counts[kind].items()} for kind in (name, "speaker"))
        return groups != speakers
    return set(counts[name]) != {""}


def _counts(title: str, counts: Mapping[str, Mapping[str, Any]], hours: bool) -> Table:
    """One row a value, in order; of more than SHOWN the largest, and the sum of the rest."""
    table = _table(title, "clips", "hours" if hours else "min")
    by_size = sorted(counts, key=lambda value: -counts[value]["clips"])
    largest = set(by_size if len(counts) <= SHOWN else by_size[: SHOWN - 1])
    rows = [(value or "(none)", count["clips"], count["seconds"]) for value, count in counts.items() if value in largest]
    if rest := [count for value, count in counts.items() if value not in largest]:
        rows.append((f"{len(rest):,} more", sum(c["clips"] for c in rest), sum(c["seconds"] for c in rest)))
    for value, clips, seconds in rows:
        table.add_row(Text(value), f"{clips:,}", _time(seconds, hours))
    return table


def _show_classes(summary: Mapping[str, Any], hours: bool, out: Console) -> None:
    """Clips of each class, a column a corpus."""
    corpora, classes = summary["classes_by_corpus"], summary["counts"]["class"]
    table = _table("class", *corpora, "clips", "hours" if hours else "min")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count in classes.items():
        cells = [f"{clips[name]:,}" if clips[name] else "-" for clips in corpora.values()]
        table.add_row(Text(name), *cells, f"{count['clips']:,}", _time(count["seconds"], hours))
    out.print()
    out.print(table)


def _show_durations(told: Mapping[str, Any], out: Console) -> None:
    words = f"median {told['median']:.1f}, mean {told['mean']:.1f}, 95 % up to {told['percentile_95']:.1f}"
    out.print(f"\n[bold]seconds[/bold]  {told['shortest']:.2f} to {told['longest']:.2f}, {words}")
    most = max(clips for _, _, clips in told["bins"])
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for justify in ("right", "left", "right"):
        table.add_column(justify=justify)
    for low, high, clips in told["bins"]:
        edges = f"{low:g} to {high:g}"
        table.add_row(edges, "█" * round(BAR * clips / most) or ("▏" if clips else ""), f"{clips:,}")
    out.print(table)


def _show_packed(dataset: Mapping[str, Any], out: Console) -> None:
    """What packing found in a dataset, a line a kind."""
    packed = dataset["packed"]
    if packed is None:
        unknown = f"no {REPORT} came with these shards, so what packing found is not known"
        out.print(f"\n{dataset['root']}: {unknown}", markup=False, soft_wrap=True)
        return
    done = {"drop": "left out", "keep": "packed"}  # what is refused is never packed, and so not here
    found = {kind: told for kind, told in packed["findings"].items() if told["clips"]}
    if not found and not packed["left_out"]:
        out.print(f"\n{dataset['root']}: packing found nothing wrong", markup=False, soft_wrap=True)
        return
    out.print(f"\n[bold]found when packing[/bold]  (all by name: {escape(dataset['root'])}/{REPORT})", soft_wrap=True)
    table = _table("", "", "clips", "for instance")
    for kind, told in found.items():
        first = told["clips"][0]
        table.add_row(kind, done[told["policy"]], f"{len(told['clips']):,}", Text(f"{first['source']}: {first['detail']}"))
    if left_out := packed["left_out"]:
        first = left_out[0]
        table.add_row("no clip", "left out", f"{len(left_out):,}", Text(f"{first['source']}: {first['reason']}"))
    out.print(table)


def _show_folds(folds: Mapping[str, Any], out: Console) -> None:
    out.print(f"[bold]{folds['protocol']}[/bold], label set {escape(folds['label_set'])}")
    if folds["refused"]:
        out.print(f"[red]These folds are not sound:[/red] {escape(folds['refused'])}", soft_wrap=True)
        return
    classes = list(folds["folds"][0]["train"]["classes"])
    table = _table("fold", "part", "speakers", "clips", *classes)
    for column in [table.columns[0], *table.columns[2:]]:
        column.justify = "right"
    for fold in folds["folds"]:
        for name in PARTS:
            side = fold[name]
            counts = [f"{clips:,}" for clips in (side["speakers"], side["clips"], *side["classes"].values())]
            table.add_row(str(fold["fold"]) if name == PARTS[0] else "", name, *counts, end_section=name == PARTS[-1])
    out.print(table)
    for fold in folds["folds"]:
        who = "; ".join(f"{name}: {fold[name]['who']}" for name in ("test", "dev"))
        out.print(f"fold {fold['fold']}  {who}", markup=False, soft_wrap=True)
    for note in folds["notes"]:
        out.print(f"note: {note}", markup=False, soft_wrap=True)
    leaks = sum(note.startswith("LEAK") for note in folds["notes"])
    verdict = "[green]sound[/green]: no speaker and no identical sound is on two sides, and every class is trained"
    if leaks:
        verdict = f"[yellow]sound only by the protocol's own definition[/yellow]: {leaks} leaks, named above"
    out.print(verdict, soft_wrap=True)


def _table(*columns: str) -> Table:
    """Without lines; numbers to the right."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in ("clips", "min", "hours") else "left", overflow="fold")
    return table


def _time(seconds: float, hours: bool) -> str:
    return f"{seconds / (3600 if hours else 60):,.1f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h of sound" if seconds > 36_000 else f"{seconds / 60:,.1f} min of sound"


if __name__ == "__main__":
    console.run(main)
