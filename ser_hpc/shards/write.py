"""Pack utterances into a dataset of tar shards, in parallel; a packing that was stopped anywhere can be started again.

    every header is read        clips that are refused by their header are known before anything is written (quality.py)
    the plan is made            which clip goes into which shard; clips planned before stay there (assignment.py)
    finished shards are kept    if made from the same metadata and sources, and undamaged (shard_file.py)
    the rest is written         one shard a task: tar, then its index, which also holds what was measured of every clip
    all clips are judged        over all shards: what is to `fail` is named now, all at once
    shards are corrected        those that hold a clip that is to be dropped for another's sake, or lack one that is not
    index.arrow                 the indices of all shards joined
    near-duplicates are found   by the acoustic fingerprints that lie beside the shards (pair_file.py)
    pack_report.json            what was found; then dataset.json: only now is it a dataset

Killed at any moment and started again, it ends in the same bytes, for any number of workers; and for any number of parts, each
of which packs some shards of the same plan, on a machine of its own. Whichever part finds every shard there at its end does the
last three steps. Several may do so at once: what they write is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from ser_hpc.core.atomic_io import write_json
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.name_overrides import NameOverrides
from ser_hpc.corpora.utterance import TextColumn, Utterance
from ser_hpc.shards import RATE, assignment, audio, pack_report, pair_file
from ser_hpc.shards.assignment import ShardAssignment, ShardPlan, assign_shards, check_keys
from ser_hpc.shards.index import DATASET, REPORT, Shard, dataset_description, index_path, join_dataset
from ser_hpc.shards.mapped_index import INDEX, write_index
from ser_hpc.shards.output_dir import lock_output, make_room, refuse_other_corpora, stale_files
from ser_hpc.shards.pack_report import PackReport
from ser_hpc.shards.quality import ClipMeasurements, Finding, QualityRules, find_problems, judge_near_duplicates
from ser_hpc.shards.shard_file import Written, explain_disk_errors, finished_shard, write_shard
from ser_hpc.shards.task_pool import TaskPool, check_stopped

ProgressCallback = Callable[[str, float, float], None]
Result = TypeVar("Result", bound=Written | ShardPlan)
READING, CHECKING, PACKING, COMPLETING = "reading headers", "checking finished shards", "packing", "checking all shards"
CORRECTING = "leaving out copies"
_PROBED_AT_ONCE = 128


def pack(
    utterances: Sequence[Utterance],
    out: Path,
    *,
    workers: int,
    rules: QualityRules | None = None,
    shard_mb: int = 64,
    left_out: Sequence[tuple[Path, str]] = (),
    part: tuple[int, int] = (0, 1),
    declared: NameOverrides | None = None,
    fingerprinted: bool = True,
    on_progress: Callable[..., None] | None = None,
) -> PackReport:
    """Pack clips into `out`, or finish what an earlier run began there; return the dataset's report, or else this part's.

    `rules`: the policies for silent clips, copies and so on; none: the defaults. `left_out`: (path, reason) of files that the
    parser passed over, for the report. `part` (k, n): every n-th shard of the plan, from the k-th on; `out` is a dataset once
    all n parts were packed. `declared`: which names are one, and which are not. `fingerprinted`: with acoustic fingerprints, by
    which near-duplicates are found. `on_progress(stage, done, total)`: stage READING counts clips; the others count seconds of
    sound. Raises UserError naming every clip whose finding is to `fail`, where keys repeat or names may be one speaker, session
    or emotion, the disk is too small or full, another packer works in `out`, or `out` holds something else.
    """
    number, count = part
    assert 0 <= number < count
    declared = declared or NameOverrides()
    utterances = declared.apply(utterances)
    check_keys(utterances)
    declared.refuse_ambiguous(utterances)
    distinct = declared.of_corpora({utterance.corpus for utterance in utterances})
    with TaskPool(workers) as pool:
        progress = on_progress or (lambda stage, done, total: None)
        packing = _Packing(out, rules or QualityRules(), pool, tuple(left_out), distinct, progress, fingerprinted)
        lengths = packing.read_headers(utterances)
        with lock_output(out, shared=count > 1):
            planned = assign_shards(utterances, lengths, shard_mb, assignment.read_assignment(out))
            refuse_other_corpora(out, planned.shards)
            mine, others = planned.shards[number::count], [s for i, s in enumerate(planned.shards) if i % count != number]
            finished, new = packing.pack_shards(planned, mine)
            if number > 0 and not new and (out / DATASET).exists():
                return packing.summary(finished, new)  # over a finished dataset, part 0 alone looks at everything again
            theirs = packing.find_shards(others)
            if theirs is None:
                return packing.summary(finished, new)
            return packing.complete(planned, [*finished, *theirs], new)


class _Packing:
    """The state that the steps of one call of `pack` share."""

    def __init__(
        self,
        out: Path,
        rules: QualityRules,
        pool: TaskPool,
        left_out: tuple[tuple[Path, str], ...],
        distinct: frozenset[tuple[str, str, str]],
        progress: ProgressCallback,
        fingerprinted: bool,
    ) -> None:
        self.out, self.rules, self.pool, self.left_out = out, rules, pool, left_out
        self.distinct, self.progress, self.fingerprinted = distinct, progress, fingerprinted

    def read_headers(self, utterances: Sequence[Utterance]) -> list[float]:
        """Return each clip's seconds, 0 where no header is readable. Raises UserError for what is to fail, or none left."""
        heads: dict[str, ClipMeasurements] = {}
        tasks = [(utterances[at : at + _PROBED_AT_ONCE],) for at in range(0, len(utterances), _PROBED_AT_ONCE)]
        for measured in self.pool.run(_probe, tasks):
            heads |= {clip.key: clip for clip in measured}
            self.progress(READING, len(heads), len(utterances))
        clips = [heads[utterance.key] for utterance in utterances]
        findings = find_problems(list(zip(utterances, clips, strict=True)), self.rules)
        self.rules.refuse(findings)
        if all(self.rules.drops(clip) for clip in clips):
            example = f": all {len(clips)} are left out, as {findings[0]}" if findings else ""
            raise UserError(f"there is no clip to pack into {self.out}{example}")
        return [clip.num_samples / RATE for clip in clips]

    def pack_shards(self, planned: ShardAssignment, mine: Sequence[ShardPlan]) -> tuple[list[Written], list[Written]]:
        """Pack the shards that are `mine`; return those that an earlier run had finished, and those written now."""
        candidates = [shard for shard in mine if index_path(self.out / shard.path).exists()]
        checked = self._watched(_check, [(shard, self.out, self.rules) for shard in candidates], CHECKING)
        finished = [result for result in checked if isinstance(result, Written)]
        finished_paths = {result.plan.path for result in finished}
        todo = [shard for shard in mine if shard.path not in finished_paths]
        wanted = {(self.out / shard.path).parent for shard in planned.shards}
        make_room(todo, stale_files(self.out, planned.shards), wanted, self.out)
        with explain_disk_errors(self.out):
            assignment.write_assignment(self.out, planned.to_saved())
        return finished, [
            *self._watched(write_shard, [(shard, self.out, self.rules, self.fingerprinted) for shard in todo], PACKING)
        ]

    def find_shards(self, plans: Sequence[ShardPlan]) -> list[Written] | None:
        """Return the shards of other parts, if all are finished, else None."""
        if not all(index_path(self.out / shard.path).exists() for shard in plans):
            return None
        found = []
        for result in self._watched(_check, [(shard, self.out, self.rules) for shard in plans], COMPLETING):
            if isinstance(result, Written):
                found.append(result)
            else:
                self.pool.cancel()
        return found if len(found) == len(plans) else None

    def summary(self, finished: Sequence[Written], new: Sequence[Written]) -> PackReport:
        """Make the report of some shards. Raises UserError for what is to fail."""
        written = [*finished, *new]
        findings = self._judge(written)
        self.rules.refuse(findings)
        return pack_report.make_pack_report(written, findings, self.rules, self.left_out, len(finished))

    def complete(self, planned: ShardAssignment, finished: Sequence[Written], new: Sequence[Written]) -> PackReport:
        """Judge all clips, correct shards, write the report, then dataset.json. Raises UserError for what is to fail."""
        found = {result.plan.path: result for result in (*finished, *new)}
        written = [found[shard.path] for shard in planned.shards]  # of equal sounds, that in the oldest shard is the first
        findings = self._judge(written)
        self.rules.refuse(findings)
        dropped = self.rules.dropped(findings)
        if all(clip.key in dropped for result in written for clip in result.clips):
            raise UserError(f"there is no clip to pack into {self.out}: all are left out, as {findings[0]}")
        wrong = [result.plan for result in written if result.packed != {clip.key for clip in result.clips} - dropped]
        make_room(wrong, (), set(), self.out)
        tasks = [(shard, self.out, self.rules, self.fingerprinted, _of(shard, dropped)) for shard in wrong]
        found |= {result.plan.path: result for result in self._watched(write_shard, tasks, CORRECTING)}
        written = [found[path] for path in sorted(found)]
        unchanged = sum(found[result.plan.path] is result for result in finished)
        shards = [result.shard for result in written if result.shard is not None]
        with explain_disk_errors(self.out):
            rows = join_dataset(self.out, shards)
            description = dataset_description(shards, self.distinct, write_index(self.out / INDEX, rows))
            near = self._near_duplicates(written, shards, rows, description["fingerprint"]) if self.fingerprinted else None
            self.rules.refuse(near or [])
            summary = pack_report.make_pack_report(
                written, [*findings, *(near or [])], self.rules, self.left_out, unchanged, near is not None
            )
            write_json(self.out / REPORT, summary.as_json())
            write_json(self.out / DATASET, description)
        return summary

    def _near_duplicates(
        self, written: Sequence[Written], shards: Sequence[Shard], rows: pa.RecordBatch, printed: str
    ) -> list[Finding] | None:
        """Find clips that share sound, None: there are too many to look at now; make the fingerprints that are lacking.

        `printed`: the dataset's fingerprint.
        """
        lacking = pair_file.shards_without_fingerprints([(self.out, shard) for shard in shards])
        pair_file.make_fingerprints_of(lacking, self.pool, self.progress)
        utterances = {utterance.key: utterance for result in written for utterance in result.plan.utterances}
        names = rows.column("corpus"), rows.column("utterance_id")

        def key(position: int) -> str:
            return "-".join(column[position].as_py() for column in names)

        overlap = rows.column("overlap").to_numpy() if "overlap" in rows.schema.names else None
        sound = TextColumn(rows.column("sound"))
        pairs = pair_file.search_dataset(
            self.out, shards, printed, sound, overlap, key, search=len(rows) <= pair_file.MOST_AT_PACKING
        )
        if not (self.out / DATASET).exists():  # it is another dataset now
            pair_file.forget_pairs(self.out)
        if pairs is None:
            return None
        together = [(utterances[key(a)], utterances[key(b)]) for a, b in pairs.positions.tolist()]
        return judge_near_duplicates(together, pairs.seconds, pairs.error)

    def _judge(self, written: Sequence[Written]) -> list[Finding]:
        clips = [pair for result in written for pair in zip(result.plan.utterances, result.clips, strict=True)]
        return find_problems(clips, self.rules)

    def _watched(
        self, function: Callable[..., Result], tasks: Sequence[tuple[ShardPlan, *tuple[object, ...]]], stage: str
    ) -> Iterator[Result]:
        """Yield what the tasks return, and report progress in seconds of sound."""
        done, total = 0.0, sum(task[0].seconds for task in tasks)
        for result in self.pool.run(function, tasks):
            done += (result.plan if isinstance(result, Written) else result).seconds
            self.progress(stage, done, total)
            yield result


def _probe(utterances: Sequence[Utterance]) -> list[ClipMeasurements]:
    """Read the clips' headers; the work of one task."""
    measured = []
    for utterance in utterances:
        check_stopped()
        try:
            header = audio.read_header(utterance.audio_path, utterance.start_s, utterance.end_s)
            measured.append(ClipMeasurements(utterance.key, num_samples=header.num_samples, doubtful=header.doubtful))
        except audio.BadClipError as error:
            measured.append(ClipMeasurements(utterance.key, reason=str(error)))
    return measured


def _check(shard: ShardPlan, out: Path, rules: QualityRules) -> Written | ShardPlan:
    """Return the shard as an earlier run wrote it, or its plan if it is not finished."""
    return finished_shard(shard, out, rules) or shard


def _of(shard: ShardPlan, keys: Collection[str]) -> frozenset[str]:
    return frozenset(utterance.key for utterance in shard.utterances if utterance.key in keys)
