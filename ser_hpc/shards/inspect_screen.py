"""Print what lies in packed shards: tables of counts, durations, what packing found, and folds. For `ser_hpc.inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ser_hpc.core.errors import counted
from ser_hpc.shards.index import REPORT
from ser_hpc.shards.pack_screen import PAGE

SHOWN = 16  # rows of a table, the largest; the rest is summed up in the last
BAR = 30  # characters of the longest bar


def print_contents(contents: Mapping[str, Any], out: Console) -> None:
    """Print what `ser_hpc.inspect` gathered: a summary, damage, one clip, folds, as far as each is there."""
    if "summary" in contents:
        _show_summary(contents["summary"], out)
    for root, problems in contents.get("damage", {}).items():
        for problem in problems:
            out.print(problem, soft_wrap=True)
        state = counted(len(problems), "problem") if problems else "every byte is as it was packed"
        out.print(f"{root}: {state}", soft_wrap=True)
    if "near_duplicates" in contents:
        _show_near_duplicates(contents["near_duplicates"], out)
    if "clip" in contents:
        table = _table("", "")
        for name, value in contents["clip"].items():
            table.add_row(name, Text(f"{value:g}" if isinstance(value, float) else str(value), overflow="fold"))
        out.print(table)
    if "extracted" in contents:
        out.print(f"its sound is in {contents['extracted']}", soft_wrap=True)
    if "folds" in contents:
        out.print(Text.assemble((contents["folds"]["protocol"], "bold"), f", label set {contents['folds']['label_set']}"))
        if refused := contents["folds"]["refused"]:
            out.print(Text.assemble(("These folds are not sound: ", "red"), refused))


def _show_summary(summary: Mapping[str, Any], out: Console) -> None:
    for dataset in summary["datasets"]:
        size = f"{dataset['bytes'] / 1e6:,.1f} MB in {counted(dataset['shards'], 'shard')}"
        details = f"{size}, fingerprint {dataset['fingerprint'][:12]}"
        out.print(Text.assemble((dataset["root"], "bold"), f"  {details}"), soft_wrap=True)
    counts = {name: values for name, values in summary["counts"].items() if _is_informative(name, summary["counts"])}
    speakers = len(summary["counts"]["speaker"])
    out.print(f"{counted(summary['clips'], 'clip')}, {_duration(summary['seconds'])}, {counted(speakers, 'speaker')}\n")
    hours = summary["seconds"] > 36_000
    tables = [_counts(name, values, hours) for name, values in counts.items()]
    out.print(Columns(tables, padding=(0, 4)), width=min(out.width, PAGE))
    if len(summary["counts"]["corpus"]) > 1:
        _show_classes(summary, hours, out)
    _show_durations(summary["durations"], out)
    for dataset in summary["datasets"]:
        _show_packed(dataset, out)
        if dataset["near_duplicates"] is None:
            command = f"python -m ser_hpc.inspect {dataset['root']} --near-duplicates"
            out.print(f"near-duplicates were not looked for; {command} does it", soft_wrap=True)


def _show_near_duplicates(found: Mapping[str, Any], out: Console) -> None:
    """Print a file for `folds.harmless_pairs`: a line a pair, and behind a # all else that there is to tell."""
    for pair in found["pairs"]:
        who = " and ".join(
            f"{emotion} by {speaker}" for emotion, speaker in zip(pair["emotions"], pair["speakers"], strict=True)
        )
        out.print(
            Text(f"{'='.join(pair['clips'])}  # {pair['seconds']:.1f} s, {pair['alike']:.0%} alike: {who}"), soft_wrap=True
        )
    if found["not_looked_for"]:
        out.print(f"# {found['not_looked_for']}", soft_wrap=True)
    too_short = f"; too short to be compared: {found['too_short']:,}" if found["too_short"] else ""
    pairs, clips = counted(len(found["pairs"]), "pair"), counted(found["clips"], "clip")
    out.print(f"# {pairs} of near-duplicates among {clips}{too_short}", soft_wrap=True)


def _is_informative(name: str, counts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether to show a column: not one without annotations, nor groups that are the speakers, nor classes twice."""
    if name in ("corpus", "class"):
        return (len(counts["corpus"]) > 1) == (name == "corpus")
    if name == "group":
        groups, speakers = ({value: count["clips"] for value, count in counts[kind].items()} for kind in (name, "speaker"))
        return groups != speakers
    return set(counts[name]) != {""}


def _counts(title: str, counts: Mapping[str, Mapping[str, Any]], hours: bool) -> Table:
    """Make a table of one row a value, in order; of more than SHOWN the largest, and the sum of the rest."""
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
    """Print the clips of each class, a column a corpus."""
    corpora, classes = summary["classes_by_corpus"], summary["counts"]["class"]
    table = _table("class", *corpora, "clips", "hours" if hours else "min")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, total in classes.items():
        cells = [f"{clips[name]:,}" if clips[name] else "-" for clips in corpora.values()]
        table.add_row(Text(name), *cells, f"{total['clips']:,}", _time(total["seconds"], hours))
    out.print()
    out.print(table)


def _show_durations(durations: Mapping[str, Any], out: Console) -> None:
    details = f"median {durations['median']:.1f}, mean {durations['mean']:.1f}, 95 % up to {durations['percentile_95']:.1f}"
    out.print(Text.assemble(("\nseconds", "bold"), f"  {durations['shortest']:.2f} to {durations['longest']:.2f}, {details}"))
    most = max(clips for _, _, clips in durations["bins"])
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for justify in ("right", "left", "right"):
        table.add_column(justify=justify)
    for low, high, clips in durations["bins"]:
        edges = f"{low:g} to {high:g}"
        table.add_row(edges, "█" * round(BAR * clips / most) or ("▏" if clips else ""), f"{clips:,}")
    out.print(table)


def _show_packed(dataset: Mapping[str, Any], out: Console) -> None:
    """Print what packing found in a dataset, a line a kind."""
    packed = dataset["packed"]
    if packed is None:
        unknown = f"no {REPORT} came with these shards, so what packing found is not known"
        out.print(f"\n{dataset['root']}: {unknown}", soft_wrap=True)
        return
    done = {"drop": "left out", "keep": "packed"}  # what is refused is never packed, and so not here
    found = {kind: finding for kind, finding in packed["findings"].items() if finding["clips"]}
    if not found and not packed["left_out"]:
        out.print(f"\n{dataset['root']}: packing found nothing wrong", soft_wrap=True)
        return
    by_name = f"  (all by name: {dataset['root']}/{REPORT})"
    out.print(Text.assemble(("\nfound when packing", "bold"), by_name), soft_wrap=True)
    table = _table("", "", "clips", "for instance")
    for kind, finding in found.items():
        first = finding["clips"][0]
        table.add_row(
            kind, done[finding["policy"]], f"{len(finding['clips']):,}", Text(f"{first['source']}: {first['detail']}")
        )
    if skipped := packed["left_out"]:
        first = skipped[0]
        table.add_row("no clip", "left out", f"{len(skipped):,}", Text(f"{first['source']}: {first['reason']}"))
    out.print(table)


def _table(*columns: str) -> Table:
    """Make a table without lines, numbers to the right."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in ("clips", "min", "hours") else "left", overflow="fold")
    return table


def _time(seconds: float, hours: bool) -> str:
    return f"{seconds / (3600 if hours else 60):,.1f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h of sound" if seconds > 36_000 else f"{seconds / 60:,.1f} min of sound"
