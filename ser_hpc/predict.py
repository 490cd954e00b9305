"""Predict recordings with a trained model: `python -m ser_hpc.predict MODEL_OR_RUN AUDIO [AUDIO ...]`

MODEL_OR_RUN is a run directory, or a folder that `python -m ser_hpc.export` wrote. AUDIO is a sound file of any kind that
packing reads, a folder of such files, a table (.csv or .jsonl) with a column `audio` and, for pieces of recordings, `start_s`
and `end_s`, packed shards, or - for a list of names on standard input, one a line.

A run predicts with all folds of its first seed, their calibrated probabilities averaged; --fold K with that fold's model alone.

exit codes:
  0   every recording is predicted
  1   some could not be read, or not to their end; they are named on standard error, and all others are predicted
  2   asked wrongly, which is told as soon as it shows; no file is written
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ser_hpc.core import cli, cores
from ser_hpc.core.atomic_io import write_aside
from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.inference.writers import FORMATS, Writer, choose_format, make_writer

if TYPE_CHECKING:
    from ser_hpc.inference.predictor import Predictor
    from ser_hpc.inference.recordings import Recording
    from ser_hpc.inference.windows import Cutter


def main(argv: Sequence[str] | None = None) -> int:
    """Load, predict and write. Raises UserError."""
    given = _arguments(argv)
    from ser_hpc.inference.load import load  # torch: not before the arguments are read

    kind = choose_format(given.format, given.out)
    cutter = _cutter(given)
    predictor = load(
        given.model,
        fold=given.fold,
        seed=given.seed,
        calibrated=not given.uncalibrated,
        device=given.device,
        batch_seconds=given.batch_seconds,
        base=given.base,
    )
    if cutter is not None:
        cutter.check(predictor.most_s)
    print(
        f"{predictor.source}; {'not calibrated' if given.uncalibrated else 'calibrated'}; on {predictor.device}",
        file=sys.stderr,
    )
    with ExitStack() as stack:
        if given.out is None:
            writer = make_writer(kind, sys.stdout, predictor.classes, given.unsure)
        else:
            aside = stack.enter_context(write_aside(given.out))
            file = aside if kind == "parquet" else stack.enter_context(aside.open("w", encoding="utf-8", newline=""))
            writer = make_writer(kind, file, predictor.classes, given.unsure)
        code = _predict(predictor, _recordings(given.audio), cutter, writer) if given.audio else 0
        if given.watch is not None:
            _watch(predictor, given.watch, cutter, writer)
        writer.close()
        sys.stdout.flush()
        return code


def _cutter(given: argparse.Namespace) -> Cutter | None:
    from ser_hpc.inference.pauses import Pauses
    from ser_hpc.inference.windows import Windows

    if given.split_at_pauses:
        lengths = {"least_s": given.min_seconds, "most_s": given.max_seconds}
        return Pauses(**{name: seconds for name, seconds in lengths.items() if seconds is not None})
    return None if given.window is None else Windows(given.window, given.hop or given.window)


def _predict(predictor: Predictor, given: Iterator[Recording], cutter: Cutter | None, writer: Writer) -> int:
    from ser_hpc.inference.results import Failure

    failed = cut = 0
    strange: list[str] = []
    for found in predictor.stream(given, cutter):
        if isinstance(found, Failure):
            failed += 1
            print(found, file=sys.stderr, flush=True)
        else:
            cut += found.cut
            strange += [found.audio] * found.strange
            writer.write(found)
    sys.stdout.flush()
    if cut:
        which = "middle" if predictor.spec.crop == "center" else "first"
        only = f"only the {which} {predictor.most_s:g} s are predicted, which is what the model hears of a clip"
        print(f"of {counted(cut, 'long recording')} {only}; --window SECONDS or --split-at-pauses hears all", file=sys.stderr)
    if strange:
        names = listed([*dict.fromkeys(strange)], 3)
        what = f"{counted(len(strange), 'clip')} unlike all that this probe was fitted to ({names}): of another length, perhaps"
        print(f"{what}; what is said of them may mean little", file=sys.stderr)
    if failed:
        print(f"{counted(failed, 'recording')} could not be read", file=sys.stderr)
    return 1 if failed else 0


def _watch(predictor: Predictor, folder: Path, cutter: Cutter | None, writer: Writer) -> None:
    """Predict what comes into a folder, until Ctrl-C."""
    from ser_hpc.inference.watch import WatchedFolder

    print(f"watching {folder}; Ctrl-C ends it", file=sys.stderr, flush=True)
    for found in WatchedFolder(folder).new():
        _predict(predictor, iter(found), cutter, writer)


def _recordings(names: Sequence[str]) -> Iterator[Recording]:
    from ser_hpc.inference import recordings

    for name in names:
        if name == "-":
            yield from recordings.find(line.rstrip("\n") for line in sys.stdin if line.strip())
        else:
            yield from recordings.find([name])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m ser_hpc.predict", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("model", metavar="MODEL_OR_RUN", type=Path, help="a run directory, or an exported folder")
    parser.add_argument("audio", metavar="AUDIO", nargs="*", help="files, folders, tables, packed shards, or -")
    which = parser.add_argument_group("which model of a run")
    which.add_argument("--fold", type=int, metavar="K", help="the model of this fold alone")
    which.add_argument("--base", metavar="ENCODER", help="of an adapter folder: the encoder that it was trained over")
    which.add_argument("--seed", type=int, metavar="S", help="of this seed (default: the first that is finished)")
    which.add_argument(
        "--uncalibrated", action="store_true", help="probabilities as the training saved them, without temperature"
    )
    what = parser.add_argument_group("what is predicted at once")
    what.add_argument("--window", type=float, metavar="S", help="windows of so many seconds, for long recordings")
    what.add_argument("--hop", type=float, metavar="S", help="a window begins every so many seconds (default: --window)")
    what.add_argument("--split-at-pauses", action="store_true", help="what lies between pauses, for long recordings")
    what.add_argument("--min-seconds", type=float, metavar="S", help="a stretch between pauses is so long (default: 1)")
    what.add_argument("--max-seconds", type=float, metavar="S", help="at most so long (default: 10)")
    what.add_argument("--watch", type=Path, metavar="FOLDER", help="then what is in this folder, and whatever comes into it")
    told = parser.add_argument_group("how it is told")
    told.add_argument("--format", choices=FORMATS, help="default: a table, or what the name of --out stands for")
    told.add_argument("--out", type=Path, metavar="FILE", help="write there: whole, or not at all")
    told.add_argument("--unsure", type=float, metavar="P", help="say where the confidence is below P")
    where = parser.add_argument_group("where")
    where.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    where.add_argument("--batch-seconds", type=float, metavar="S", help="seconds of sound that are computed together")
    given = parser.parse_intermixed_args(argv)
    if not given.audio and given.watch is None:
        raise UserError("nothing to predict: give files, folders, tables, packed shards, or - for a list on standard input")
    if given.watch is not None and not given.watch.is_dir():
        raise UserError(f"--watch {given.watch}: there is no such folder")
    if given.watch is not None and given.out is not None:
        raise UserError("--watch never ends, and --out writes a file when it ends: leave --out out, and redirect the output")
    if given.hop is not None and given.window is None:
        raise UserError("--hop is of --window: add --window SECONDS")
    if given.split_at_pauses and given.window is not None:
        raise UserError("--window and --split-at-pauses are two ways of cutting a recording: give one")
    if not given.split_at_pauses and (given.min_seconds is not None or given.max_seconds is not None):
        raise UserError("--min-seconds and --max-seconds are of --split-at-pauses: add that")
    if given.unsure is not None and not 0 < given.unsure <= 1:
        raise UserError(f"--unsure {given.unsure:g}: give a probability, as 0.5")
    if given.batch_seconds is not None and not 0 < given.batch_seconds < 1e6:
        raise UserError(f"--batch-seconds {given.batch_seconds:g}: give seconds of sound, as 20")
    return given


if __name__ == "__main__":
    cores.limit_threads(os.environ, cores.process_share(os.environ))  # before torch is imported
    cli.run_main(main)
