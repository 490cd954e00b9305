"""Pack corpora into tar shards, once; new folds and new label sets never need it again.

    python -m ser_hpc.pack emodb /data/emodb /scratch/shards/emodb
    python -m ser_hpc.pack csv /data/mine/all.csv /scratch/shards/mine
    python -m ser_hpc.pack emodb /data/emodb ravdess /data/RAVDESS /scratch/shards
        several corpora, each into /scratch/shards/<its name>; a bad one does not stop the others

A csv is any other corpus as a table: columns audio (path, relative to the
table), emotion and speaker; optional session, gender, split, text_id, start_s,
end_s; others are kept as fields. ROOT is then the file; jsonl takes the same
names, one object a line. Or CORPUS is a parser of your own, MODULE:FUNCTION, as
my_corpus:parse for my_corpus.py in this folder.

Any rate, channel count and format becomes 16 kHz mono FLAC. What is wrong with
clips is found, shown, and named in OUT/pack_report.json; --on says what becomes
of it (drop: left out, keep: packed, fail: nothing is packed), by default:
    undecodable=fail    missing, truncated, no audio, a git-lfs pointer, NaN
    too_short=drop      under 0.1 s
    too_long=keep       over --longest seconds
    silent=drop         never above -60 dBFS for 100 ms in all
    clipped=keep        over 1 % of the samples at full scale
    doubtful=keep       its header is wrong (sizes, format): what is there is read
    out_of_range=keep   float samples far out of [-1, 1]: limited, or scaled
    cancelled=keep      channels that cancel each other: the loudest is taken
    duplicate=drop      the same sound, speaker and emotion as an earlier clip
    contradiction=keep  the same sound under another speaker or emotion
    overlap=fail        pieces of a recording that share sound, of two speakers
    near_duplicate=keep the same recording altered (gain, cut, codec): no drop

Names of speakers, sessions and emotions that may be one (Anna, anna; 01, 1.0) are
refused until it is said: --same-speaker Anna=anna reads the one as the other,
--distinct-speaker 01=1 keeps them apart; --same-session, --same-emotion and so on
alike. Instead of a pair a YAML file of pairs may be given.

What headers tell fails before anything is written; everything bad is named at once.

Interrupted, killed or out of disk: the same command again continues. When files or
annotations have changed, only shards that differ are made again; clips that have
come are packed into new shards, and no other changes.

Exit code 0: packed; 2: something was not packed, the message says why.

A big corpus on a cluster: --partition cpu --jobs 20 submits an array of jobs that
pack a share of the shards each; the last one to end completes the datasets. Submit
again to go on. The bytes are those of packing here. --part 0/20 to --part 19/20 are
those shares, for other schedulers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ser_hpc.core import cli, cores
from ser_hpc.core.awake_clock import awake_s
from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.name_overrides import COLUMNS as NAMED
from ser_hpc.corpora.name_overrides import NameOverrides
from ser_hpc.corpora.parse_result import ParseResult
from ser_hpc.corpora.registry import PARSERS, get_parser
from ser_hpc.shards import pack_screen
from ser_hpc.shards.index import DATASET
from ser_hpc.shards.pack_report import PackReport
from ser_hpc.shards.quality import LONGEST_S, QualityRules
from ser_hpc.shards.write import pack

_ON_THE_CLUSTER = ("partition", "cluster", "account", "time", "jobs", "dry_run", "queue_anyway")


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    rules, part, declared = QualityRules.parse(options.on, options.longest), _part(options.part), _declared(options)
    sources, out = _sources(options.what)
    for option in ("workers", "shard_mb"):
        if (value := getattr(options, option)) is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: give at least 1")
    if len(sources) > 1 and (named := next((name for name, texts in _names(options).items() if texts), None)):
        raise UserError(f"--{named} speaks of one corpus, but {len(sources)} are to be packed: pack that one by itself")
    screen = cli.make_console(soft_wrap=True)
    if options.partition is not None or options.cluster is not None:
        if _submitted(sources, out, options, screen):
            return 0
        screen.print("There is no Slurm here: packing on this machine.")
    elif given := [name for name in _ON_THE_CLUSTER if getattr(options, name) not in (None, False)]:
        raise UserError(f"--{given[0].replace('_', '-')} is for jobs on a cluster: give --partition (or --cluster) as well")
    if len(sources) == 1:
        (source,) = sources
        _pack_one(source, source.parsed(screen), out, options, rules, part, declared, screen)
        return 0
    return _pack_many(sources, out, options, rules, part, declared, screen)


def _submitted(sources: Sequence[CorpusSource], out: Path, options: argparse.Namespace, screen: Console) -> bool:
    """Submit packing jobs; False where there is no Slurm. Faults of annotations are raised here, of recordings in the jobs."""
    from ser_hpc.launchers.slurm import pack_jobs

    declared = _declared(options)
    for source in sources:
        declared.refuse_ambiguous(declared.apply(source.parsed(screen).utterances))
    workers = pack_jobs.WORKERS if options.workers is None else options.workers
    chosen = {"profile": options.cluster, "partition": options.partition, "account": options.account, "time_min": options.time}
    what = [word for source in sources for word in (source.corpus, str(source.root.resolve()))]
    choices = [word for choice in options.on for word in ("--on", choice)] + ["--longest", f"{options.longest!r}"]
    choices += ["--no-fingerprints"] * options.no_fingerprints
    choices += [word for name, texts in _names(options).items() for text in texts for word in (f"--{name}={text}",)]
    arguments = [*what, str(out.resolve()), *choices, "--shard-mb", str(options.shard_mb), "--workers", str(workers)]
    cluster = pack_jobs.packing_settings(chosen, workers)
    jobs, own_test = pack_jobs.JOBS if options.jobs is None else options.jobs, not options.queue_anyway
    return pack_jobs.submit_packing(arguments, out, jobs, cluster, screen, dry_run=options.dry_run, own_test=own_test)


@dataclass(frozen=True, slots=True)
class CorpusSource:
    """A corpus to pack: the name of its parser, and where it lies."""

    corpus: str
    root: Path

    def parsed(self, screen: Console) -> ParseResult:
        """Parse the corpus and print warnings. Raises UserError where the parser does, or there is none of that name."""
        parsed = get_parser(self.corpus)(self.root)
        for warning in parsed.warnings[: pack_screen.SHOWN]:
            screen.print(f"warning: {warning}")
        if len(parsed.warnings) > pack_screen.SHOWN:
            screen.print(f"and {counted(len(parsed.warnings) - pack_screen.SHOWN, 'more warning')}")
        screen.print(f"{self.corpus}: {counted(len(parsed.utterances), 'clip')} in {self.root}")
        return parsed


def _pack_one(
    source: CorpusSource,
    parsed: ParseResult,
    out: Path,
    options: argparse.Namespace,
    rules: QualityRules,
    part: tuple[int, int],
    declared: NameOverrides,
    screen: Console,
) -> PackReport:
    began = awake_s()
    with pack_screen.ProgressBars() as progress:
        report = pack(
            parsed.utterances,
            out,
            workers=cores.process_share(os.environ).cores if options.workers is None else options.workers,
            rules=rules,
            shard_mb=options.shard_mb,
            left_out=parsed.skipped,
            part=part,
            declared=declared,
            fingerprinted=not options.no_fingerprints,
            on_progress=progress,
        )
    pack_screen.print_pack_report(report, out, awake_s() - began, screen)
    if part != (0, 1):
        complete = (out / DATASET).exists()
        state = "all parts are packed" if complete else "others are still to be packed; the last one completes the dataset"
        screen.print(f"part {options.part}: {state}")
    return report


def _pack_many(
    sources: Sequence[CorpusSource],
    out: Path,
    options: argparse.Namespace,
    rules: QualityRules,
    part: tuple[int, int],
    declared: NameOverrides,
    screen: Console,
) -> int:
    """Pack each corpus into a folder of its name, reporting and passing over failures; return 2 if there were any, else 0."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("corpus", "clips", "sound", "shards"):
        table.add_column(column, overflow="fold")
    folders: dict[Path, CorpusSource] = {}
    failed = 0
    for source in sources:
        try:
            parsed = source.parsed(screen)
            folder = out / parsed.utterances[0].corpus
            if (first := folders.setdefault(folder, source)) is not source:
                raise UserError(f"{source.root} and {first.root} would both be packed into {folder}; give them other names")
            report = _pack_one(source, parsed, folder, options, rules, part, declared, screen)
            row: tuple[str | Text, ...] = f"{report.clips:,}", pack_screen.format_duration(report.seconds), str(folder)
        except UserError as error:
            print(f"error: {source.corpus}: {error}", file=sys.stderr, flush=True)
            failed += 1
            row = "", "", Text.assemble(("not packed", "bold"), ", see above")
        table.add_row(f"{source.corpus} {source.root}", *row)
    screen.print(table, soft_wrap=False)
    if failed:
        print(f"error: {failed} of {len(sources)} corpora were not packed", file=sys.stderr)
    return 2 if failed else 0


def _sources(arguments: Sequence[str]) -> tuple[list[CorpusSource], Path]:
    """Parse CORPUS ROOT [CORPUS ROOT ...] OUT. Raises UserError where they are not that."""
    if len(arguments) < 3 or len(arguments) % 2 == 0:
        raise UserError(
            f"give CORPUS ROOT, more such pairs if you like, and OUT: not {len(arguments)} words ({' '.join(arguments)})"
        )
    sources = [CorpusSource(corpus, Path(root)) for corpus, root in zip(arguments[:-1:2], arguments[1::2], strict=True)]
    return sources, Path(arguments[-1])


def _names(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the options about names; a file by its absolute path, for jobs run elsewhere."""
    by_option = {f"{what}-{column}": getattr(options, f"{what}_{column}") for what in ("same", "distinct") for column in NAMED}
    return {name: [text if "=" in text else str(Path(text).resolve()) for text in texts] for name, texts in by_option.items()}


def _declared(options: argparse.Namespace) -> NameOverrides:
    by_option = _names(options)
    same, distinct = ({column: by_option[f"{what}-{column}"] for column in NAMED} for what in ("same", "distinct"))
    return NameOverrides.parse(same, distinct)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise UserError(
        f"--part {text}: write K/N with K from 0 to N - 1, as in --part 0/8; an array's tasks must be counted from 0 and be "
        "submitted all together: --array=0-7"
    )


def _parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "python -m ser_hpc.pack",
        usage="%(prog)s [options] CORPUS ROOT [CORPUS ROOT ...] OUT",
        description=__doc__,
        formatter_class=cli.Help,
    )
    known = listed(list(PARSERS), 40)
    options.add_argument(
        "what", nargs="+", metavar="CORPUS ROOT ... OUT", help=f"corpora: {known}, MODULE:FUNCTION; ROOT as published"
    )
    options.add_argument("--on", action="append", default=[], metavar="KIND=POLICY", help="what becomes of a kind of finding")
    for what, meaning in (("same", "two names are one: the first is read as the other"), ("distinct", "they are not one")):
        for column in NAMED:
            metavar = "NAME=OTHER" if what == "distinct" else "NAME=OTHER|FILE"
            options.add_argument(f"--{what}-{column}", action="append", default=[], metavar=metavar, help=meaning)
    options.add_argument("--longest", type=float, metavar="S", default=LONGEST_S, help="seconds (default: %(default)g)")
    options.add_argument(
        "--no-fingerprints",
        action="store_true",
        help="do not look for near-duplicates (inspect SHARDS --near-duplicates can later)",
    )
    options.add_argument("--workers", type=int, metavar="N", help="processes (default: its share of the cores; 8 in a job)")
    options.add_argument(
        "--shard-mb", type=int, metavar="MB", default=64, help="close a shard at about this size (default: %(default)s)"
    )
    options.add_argument(
        "--part", metavar="K/N", default="0/1", help="pack only the K-th of N parts, counted from 0 (default: %(default)s, all)"
    )
    cluster = options.add_argument_group("on a cluster")
    cluster.add_argument("--partition", metavar="P", help="submit jobs to this Slurm partition instead of packing here")
    cluster.add_argument("--cluster", metavar="SITE", help="profile of the cluster under configs/cluster, or a file")
    cluster.add_argument("--account", metavar="A", help="account to charge")
    cluster.add_argument("--time", metavar="T", help="time limit of a job, as 240 (minutes) or 4:00:00 (the default)")
    cluster.add_argument("--jobs", type=int, metavar="N", help="number of jobs (default: 8)")
    cluster.add_argument("--dry-run", action="store_true", help="show what would be submitted, and submit nothing")
    cluster.add_argument("--queue-anyway", action="store_true", help="submit without Slurm's own test (sbatch --test-only)")
    return options


if __name__ == "__main__":
    cli.run_main(main)
