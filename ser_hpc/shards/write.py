"""Packing: utterances become a dataset of tar shards, in parallel, and whatever happens it can be started again.

    every header is read        all bad clips are known before anything is written
    the plan is made            which clip goes into which shard (plan.py)
    finished shards are kept    if made from the same metadata and sources, and undamaged (shard_file.py)
    the rest is written         one shard a task: tar, then its index
    pack_report.json            then dataset.json: only now is it a dataset

Killed at any moment and started again, it ends in the same bytes, for any number of workers; and for any number of parts, each
of which packs some shards of the same plan, on a machine of its own. Whichever part finds every shard there at its end writes
the last two files. Several may do so at once: what they write is the same.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pyarrow as pa

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.errors import UserError, listed
from ser_hpc.files import sync, write_json
from ser_hpc.shards import audio, report
from ser_hpc.shards.index import DATASET, REPORT, SCHEMA, describe_dataset, index_path, read_table
from ser_hpc.shards.plan import ShardPlan, check_keys, plan
from ser_hpc.shards.report import BadClip, PackReport
from ser_hpc.shards.shard_file import Written, disk_errors_in_words, finished_shard, write_shard
from ser_hpc.shards.workers import Workers, check_stopped

Progress = Callable[[str, float, float], None]
READING, CHECKING, PACKING, COMPLETING = "reading headers", "checking finished shards", "packing", "checking all shards"

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
    part: tuple[int, int] = (0, 1),
    on_progress: Callable[..., None] | None = None,
) -> PackReport:
    """Pack clips into `out`, or finish what an earlier run began there; returns the dataset's report, or else this part's.

    `left_out`: (path, reason) of files that the parser skipped, for the report.
    `part` (k, n): every n-th shard of the plan, from the k-th on; `out` is a dataset once all n parts were packed.
    `on_progress(stage, done, total)`: stage READING counts clips; the others count seconds of sound.
    Raises UserError naming every bad clip (unless `skip_bad`: then they are left out and reported), where keys repeat, the disk
    is too small or full, another packer works in `out`, or `out` holds something else.
    """
    progress: Progress = on_progress or (lambda stage, done, total: None)
    check_keys(utterances)
    number, count = part
    assert 0 <= number < count
    with Workers(workers) as pool:
        seconds, bad = _probe_all(utterances, pool, progress)
        _refuse(bad, skip_bad)
        good = [utterance for utterance in utterances if utterance.key in seconds]
        if not good:
            raise UserError(f"there is no clip to pack into {out}" + (f": {len(bad)} of {len(bad)} are bad" if bad else ""))
        plans = plan(good, [seconds[utterance.key] for utterance in good], shard_mb)
        left = [*(BadClip("", path, reason) for path, reason in left_out), *bad]
        with _locked(out, shared=count > 1):
            _refuse_other_corpora(out, plans)
            mine, others = plans[number::count], [shard for i, shard in enumerate(plans) if i % count != number]
            written, kept = _pack_shards(plans, mine, out, pool, skip_bad, progress)
            if number > 0 and kept == len(mine) and (out / DATASET).exists():
                return _summary(written, left, kept, out)  # over a finished dataset, part 0 alone looks at everything again
            theirs = _packed_by_others(others, out, pool, skip_bad, progress)
            if theirs is None:
                return _summary(written, left, kept, out)
            return _commit([*written, *theirs], left, kept + len(theirs), out)


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
    plans: Sequence[ShardPlan], mine: Sequence[ShardPlan], out: Path, pool: Workers, skip_bad: bool, progress: Progress
) -> tuple[list[Written], int]:
    """The shards that are `mine` of all `plans`, and how many of them an earlier run had finished."""
    candidates = [shard for shard in mine if index_path(out / shard.path).exists()]
    checked = _watched(pool.run(_check, [(shard, out) for shard in candidates]), candidates, CHECKING, progress)
    kept = [result for result in checked if result.shard is not None]
    _refuse([clip for result in kept for clip in result.bad], skip_bad)
    kept_paths = {result.plan.path for result in kept}
    todo = [shard for shard in mine if shard.path not in kept_paths]
    _make_room(todo, _stale(out, plans), {(out / shard.path).parent for shard in plans}, out)
    new: list[Written] = []
    for result in _watched(pool.run(write_shard, [(shard, out, skip_bad) for shard in todo]), todo, PACKING, progress):
        new.append(result)
        if result.bad and not skip_bad:
            pool.cancel()
    _refuse([clip for result in new for clip in result.bad], skip_bad)
    return kept + new, len(kept)


def _packed_by_others(
    plans: Sequence[ShardPlan], out: Path, pool: Workers, skip_bad: bool, progress: Progress
) -> list[Written] | None:
    """The shards of other parts, all found as they should be; None if there is still something to do."""
    there: list[ShardPlan] = []
    found: list[Written] = []
    for shard in plans:
        if index_path(out / shard.path).exists():
            there.append(shard)
        elif skip_bad and (empty := _without_clips(shard)):
            found.append(empty)
        else:
            return None
    complete = True
    for result in _watched(pool.run(_check, [(shard, out) for shard in there]), there, COMPLETING, progress):
        if result.shard is None or (result.bad and not skip_bad):
            complete = False
            pool.cancel()
        found.append(result)
    return found if complete else None


def _without_clips(shard: ShardPlan) -> Written | None:
    """A shard that has no file because none of its clips decodes; None if one does: then it is only not packed yet."""
    bad = []
    for utterance in shard.utterances:
        try:
            audio.decode(utterance.audio_path, utterance.start_s, utterance.end_s)
        except audio.BadClipError as error:
            bad.append(BadClip(utterance.key, utterance.audio_path, str(error)))
        else:
            return None
    return Written(shard, None, tuple(bad))


def _check(shard: ShardPlan, out: Path) -> Written:
    return finished_shard(shard, out) or Written(shard, None, ())


def _watched(results: Iterator[Written], plans: Sequence[ShardPlan], stage: str, progress: Progress) -> Iterator[Written]:
    """The results, with progress told by seconds of sound."""
    done, total = 0.0, sum(shard.seconds for shard in plans)
    for result in results:
        done += result.plan.seconds
        progress(stage, done, total)
        yield result


def _make_room(todo: Sequence[ShardPlan], stale: Sequence[Path], wanted: set[Path], out: Path) -> None:
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
        path.unlink(missing_ok=True)  # another part may be as quick
    for folder in {path.parent for path in stale} - wanted:
        with suppress(OSError):  # it holds something else, or is gone
            folder.rmdir()


def _summary(written: Sequence[Written], left: Sequence[BadClip], kept: int, out: Path) -> PackReport:
    """The report of some shards; `left`: clips and files that never came into the plan."""
    shards = [result.shard for result in written if result.shard is not None]
    table = pa.concat_tables([SCHEMA.empty_table(), *(read_table(out, shard) for shard in shards)])
    return report.make(shards, table, [*left, *(clip for result in written for clip in result.bad)], kept)


def _commit(written: Sequence[Written], left: Sequence[BadClip], kept: int, out: Path) -> PackReport:
    """Write the report of all shards, then dataset.json. Raises UserError if there is no clip in any."""
    written = sorted(written, key=lambda result: result.plan.path)
    summary = _summary(written, left, kept, out)
    if not summary.shards:
        raise UserError(f"no clip is left to pack into {out}: all are bad, e.g. {summary.skipped[-1]}")
    with disk_errors_in_words(out):
        write_json(out / REPORT, summary.as_json())
        write_json(out / DATASET, describe_dataset([result.shard for result in written if result.shard is not None]))
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
def _locked(out: Path, shared: bool) -> Iterator[None]:
    """`out` as a folder of ours, without a killed run's temporaries, in which nobody else packs; `shared`: but other parts."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder to pack into")
    if out.is_dir() and any(out.iterdir()) and not (out / _LOCK).exists() and not (out / DATASET).exists():
        raise UserError(f"{out} is not empty and holds no shards; give a new or empty folder to pack into")
    with disk_errors_in_words(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("a+")  # NFS gives shared locks to readers alone
    with lock:
        try:
            free = _lock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, _LOCK_WAIT_SECONDS)
        except OSError:
            free = True  # a file system without locks: only a second packer at the same time would be a danger
        if not free:
            raise UserError(f"another process is packing into {out}; wait for it, or pack into another folder")
        if not shared:
            _tidy(out)
        yield
        if shared:
            with suppress(OSError):
                if _lock(lock, fcntl.LOCK_EX, 0.0):  # the last part to leave: nobody writes the temporaries that are here
                    _tidy(out)


def _lock(file: IO[str], how: int, wait_s: float) -> bool:
    """Whether the lock was had within `wait_s` seconds. Raises OSError where files cannot be locked."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def _tidy(out: Path) -> None:
    for temporary in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:
        temporary.unlink(missing_ok=True)
