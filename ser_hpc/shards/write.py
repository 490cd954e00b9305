"""Packing: utterances become a dataset of tar shards, in parallel, and whatever happens it can be started again.

    every header is read        all bad clips are known before anything is written
    the plan is made            which clip goes into which shard (plan.py)
    finished shards are kept    if made from the same metadata and sources, and undamaged (shard_file.py)
    the rest is written         one shard a task: tar, then its index
    pack_report.json            then dataset.json: only now is it a dataset

Killed at any moment and started again, it ends in the same bytes, for any number of workers.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.errors import UserError, listed
from ser_hpc.files import sync, write_json
from ser_hpc.shards import audio, report
from ser_hpc.shards.index import DATASET, REPORT, describe_dataset, index_path, read_table
from ser_hpc.shards.plan import ShardPlan, check_keys, plan
from ser_hpc.shards.report import BadClip, PackReport
from ser_hpc.shards.shard_file import Written, disk_errors_in_words, finished_shard, write_shard
from ser_hpc.shards.workers import Workers, check_stopped

Progress = Callable[[str, float, float], None]
READING, CHECKING, PACKING = "reading headers", "checking finished shards", "packing"

_LOCK = ".lock"
_LOCK_WAIT_SECONDS = 2.0  # the workers of a killed run may take a moment to end
_PROBED_AT_ONCE = 128
_SHOWN = 100
_SHARD_NAME = re.compile(r"(?P<corpus>[a-z0-9_]{1,24})-(?P<group>.+)-\d{6}\.(tar|parquet)")


def pack(
    utterances: Sequence[Utterance],
    out: Path,
    *,
    workers: int,
    skip_bad: bool = False,
    shard_mb: int = 64,
    left_out: Sequence[tuple[Path, str]] = (),
    on_progress: Callable[..., None] | None = None,
) -> PackReport:
    """Pack clips into `out`, or finish what an earlier run began there.

    `left_out`: (path, reason) of files that the parser skipped, for the report.
    `on_progress(stage, done, total)`: stage READING counts clips; CHECKING and PACKING count seconds of sound.
    Raises UserError naming every bad clip (unless `skip_bad`: then they are left out and reported), where keys repeat, the disk
    is too small or full, another packer works in `out`, or `out` holds something else.
    """
    progress: Progress = on_progress or (lambda stage, done, total: None)
    check_keys(utterances)
    with Workers(workers) as pool:
        seconds, bad = _probe_all(utterances, pool, progress)
        _refuse(bad, skip_bad)
        good = [utterance for utterance in utterances if utterance.key in seconds]
        if not good:
            raise UserError(f"there is no clip to pack into {out}" + (f": {len(bad)} of {len(bad)} are bad" if bad else ""))
        plans = plan(good, [seconds[utterance.key] for utterance in good], shard_mb)
        with _locked(out):
            _refuse_other_corpora(out, plans)
            written, kept = _pack_shards(plans, out, pool, skip_bad, progress)
            unparsed = [BadClip("", path, reason) for path, reason in left_out]
            return _commit(written, [*unparsed, *bad], kept, out)


def _probe_all(utterances: Sequence[Utterance], pool: Workers, progress: Progress) -> tuple[dict[str, float], list[BadClip]]:
    """Seconds of each clip by its key, and the clips whose headers are bad."""
    seconds: dict[str, float] = {}
    bad: list[BadClip] = []
    done = 0
    tasks = [(utterances[at : at + _PROBED_AT_ONCE],) for at in range(0, len(utterances), _PROBED_AT_ONCE)]
    for results in pool.run(_probe, tasks):
        for key, result in results:
            if isinstance(result, BadClip):
                bad.append(result)
            else:
                seconds[key] = result
        done += len(results)
        progress(READING, done, len(utterances))
    return seconds, bad


def _probe(utterances: Sequence[Utterance]) -> list[tuple[str, float | BadClip]]:
    results: list[tuple[str, float | BadClip]] = []
    for utterance in utterances:
        check_stopped()
        try:
            results.append((utterance.key, audio.probe(utterance.audio_path, utterance.start_s, utterance.end_s)))
        except audio.BadClipError as error:
            results.append((utterance.key, BadClip(utterance.key, utterance.audio_path, str(error))))
    return results


def _refuse(bad: Sequence[BadClip], skip_bad: bool) -> None:
    if bad and not skip_bad:
        lines = sorted(str(clip) for clip in bad)
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        head = "1 clip" if len(bad) == 1 else f"{len(bad)} clips"
        raise UserError(
            f"{head} cannot be packed:\n"
            + "\n".join(f"  {line}" for line in lines[:_SHOWN] + more)
            + "\nMend them, or leave them out (counted and named in the report) with --skip-bad."
        )


def _pack_shards(
    plans: Sequence[ShardPlan], out: Path, pool: Workers, skip_bad: bool, progress: Progress
) -> tuple[list[Written], int]:
    """Every shard of the plan, and how many of them an earlier run had finished."""
    candidates = [shard for shard in plans if index_path(out / shard.path).exists()]
    checked = _watched(pool.run(_check, [(shard, out) for shard in candidates]), candidates, CHECKING, progress)
    kept = [result for result in checked if result.shard is not None]
    _refuse([clip for result in kept for clip in result.bad], skip_bad)
    kept_paths = {result.plan.path for result in kept}
    todo = [shard for shard in plans if shard.path not in kept_paths]
    _make_room(todo, _stale(out, plans), out)
    new: list[Written] = []
    for result in _watched(pool.run(write_shard, [(shard, out, skip_bad) for shard in todo]), todo, PACKING, progress):
        new.append(result)
        if result.bad and not skip_bad:
            pool.cancel()
    _refuse([clip for result in new for clip in result.bad], skip_bad)
    return sorted(kept + new, key=lambda result: result.plan.path), len(kept)


def _check(shard: ShardPlan, out: Path) -> Written:
    return finished_shard(shard, out) or Written(shard, None, ())


def _watched(results: Iterator[Written], plans: Sequence[ShardPlan], stage: str, progress: Progress) -> Iterator[Written]:
    """The results, with progress told by seconds of sound."""
    done, total = 0.0, sum(shard.seconds for shard in plans)
    for result in results:
        done += result.plan.seconds
        progress(stage, done, total)
        yield result


def _make_room(todo: Sequence[ShardPlan], stale: Sequence[Path], out: Path) -> None:
    """Before the first change: the disk is large enough, the dataset is no longer called finished, old shards are gone."""
    needed, free = sum(shard.estimated_bytes for shard in todo), shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"packing needs about {needed / 1e6:.1f} MB in {out}, but only {free / 1e6:.1f} MB are free; "
            "free some space, or pack into another folder"
        )
    if todo or stale:
        (out / DATASET).unlink(missing_ok=True)
        sync(out)
    for path in stale:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def _commit(written: Sequence[Written], bad: Sequence[BadClip], kept: int, out: Path) -> PackReport:
    """Write the report, then dataset.json."""
    shards = [result.shard for result in written if result.shard is not None]
    skipped = [*bad, *(clip for result in written for clip in result.bad)]
    if not shards:
        raise UserError(f"no clip is left to pack into {out}: all are bad, e.g. {skipped[-1]}")
    summary = report.make(shards, pa.concat_tables([read_table(out, shard) for shard in shards]), skipped, kept)
    with disk_errors_in_words(out):
        write_json(out / REPORT, summary.as_json())
        write_json(out / DATASET, describe_dataset(shards))
    return summary


def _stale(out: Path, plans: Sequence[ShardPlan]) -> list[Path]:
    """Files of shards that are not in the plan."""
    wanted = {out / shard.path for shard in plans}
    return [path for path in _shard_files(out) if path.with_suffix(".tar") not in wanted]


def _shard_files(out: Path) -> list[Path]:
    return [
        path
        for path in sorted(out.glob("*/*"))
        if (name := _SHARD_NAME.fullmatch(path.name)) and name["group"] == path.parent.name
    ]


def _refuse_other_corpora(out: Path, plans: Sequence[ShardPlan]) -> None:
    """Packing deletes shards that are not in its plan: never those of another corpus."""
    names = [_SHARD_NAME.fullmatch(path.name) for path in _shard_files(out)]
    others = {name["corpus"] for name in names if name} - {shard.corpus for shard in plans}
    if others:
        raise UserError(f"{out} holds shards of {listed(sorted(others))}; pack into another folder, or delete this one")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """`out` as a folder of ours that no other packer works in, free of a killed run's temporaries."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder to pack into")
    if out.is_dir() and any(out.iterdir()) and not (out / _LOCK).exists() and not (out / DATASET).exists():
        raise UserError(f"{out} is not empty and holds no shards; give a new or empty folder to pack into")
    with disk_errors_in_words(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("w")
    with lock:
        deadline = time.monotonic() + _LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"another process is packing into {out}; wait for it, or pack into another folder"
                    ) from None
                time.sleep(0.1)
            except OSError:
                break  # a file system without locks: only a second packer at the same time would be a danger
        for temporary in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:
            temporary.unlink(missing_ok=True)
        yield
