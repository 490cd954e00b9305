"""Assign clips to shards from the corpus and the earlier plan alone, before anything is encoded.

A shard holds one group (a session; a speaker where a corpus has no sessions; a bucket of speakers where there are many), so
that leaving a group out is leaving files out. Boundaries follow from the sources' durations, never from encoded sizes: any
number of workers, and a killed run started again, make the same shards.

A plan is remembered (OUT/plan.json, written before the first shard): a clip stays in the shard that it was planned into, as
long as its group is the same, and what is new goes into new shards with the next numbers. So adding clips adds shards and
changes none; and every part of an array reads it, plans the same, and writes the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import RATE
from ser_hpc.shards.index import LAYOUT_VERSION
from ser_hpc.shards.source import digest_of

Grouping = Literal["session", "speaker", "speaker_bucket"]

PLAN = "plan.json"
MAX_SPEAKER_GROUPS = 64
_LONGEST_KEY = 100 - len(".flac")  # a USTAR name without a folder has 100 bytes
_FLAC_RATIO = 0.64  # 16-bit FLAC of speech against PCM
_PLAIN_FIELDS = tuple(field.name for field in fields(Utterance) if field.name not in ("audio_path", "extra"))
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")  # corpus and group become a path
_CLIP_OVERHEAD = 2560  # two tar headers, the metadata and padding, in bytes


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A planned shard: clips of one corpus and group, sorted by key. `seconds`: duration of the sources, by their headers."""

    corpus: str
    group: str
    number: int
    utterances: tuple[Utterance, ...]
    seconds: float

    @property
    def path(self) -> str:
        """The tar's path relative to the dataset's folder."""
        return f"{self.group}/{self.corpus}-{self.group}-{self.number:06d}.tar"

    @property
    def estimated_bytes(self) -> int:
        """About the size of the tar in bytes."""
        return estimated_bytes(self.seconds, len(self.utterances))


@dataclass(frozen=True, slots=True)
class SavedAssignment:
    """The part of a plan that is saved: grouping of each corpus; corpus, group, number and keys of each shard, oldest first."""

    grouped_by: Mapping[str, Grouping]
    shards: tuple[tuple[str, str, int, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class ShardAssignment:
    """The planned shards of a dataset. `shards`: those of an earlier plan first, in its order, then the new ones by path."""

    grouped_by: Mapping[str, Grouping]
    shards: tuple[ShardPlan, ...]

    def to_saved(self) -> SavedAssignment:
        """Return the part of this plan that is saved."""
        keys = [tuple(utterance.key for utterance in shard.utterances) for shard in self.shards]
        shards = [(s.corpus, s.group, s.number, of) for s, of in zip(self.shards, keys, strict=True)]
        return SavedAssignment(self.grouped_by, tuple(shards))


NOTHING = SavedAssignment({}, ())


def estimated_bytes(seconds: float, clips: int) -> int:
    """Return about how many bytes clips of `seconds` in all take in a tar."""
    return round(seconds * RATE * 2 * _FLAC_RATIO) + clips * _CLIP_OVERHEAD


def assign_shards(
    utterances: Sequence[Utterance], seconds: Sequence[float], shard_mb: int, earlier: SavedAssignment = NOTHING
) -> ShardAssignment:
    """Plan the shards of a dataset; `seconds[i]` is the duration of `utterances[i]`. Planning again with the result changes
    nothing.

    Raises UserError where two clips have one key, a key is too long for a tar, or `shard_mb` is below 1.
    """
    check_keys(utterances)
    if shard_mb < 1:
        raise UserError(f"shards of {shard_mb} MB: give at least 1")
    grouped_by = _groupings(utterances) | dict(earlier.grouped_by)
    places = {key: place for place, shard in enumerate(earlier.shards) for key in shard[3]}
    stay: dict[int, list[tuple[Utterance, float]]] = defaultdict(list)
    new: dict[tuple[str, str], list[tuple[Utterance, float]]] = defaultdict(list)
    for utterance, duration in zip(utterances, seconds, strict=True):
        of = utterance.corpus, _group(utterance, grouped_by[utterance.corpus])
        place = places.get(utterance.key)
        if place is not None and earlier.shards[place][:2] == of:
            stay[place].append((utterance, duration))
        else:
            new[of].append((utterance, duration))
    unchanged = [_shard(*earlier.shards[place][:3], stay[place]) for place in sorted(stay)]
    free: dict[tuple[str, str], int] = defaultdict(int)
    for corpus, group, number, _ in earlier.shards:
        free[corpus, group] = max(free[corpus, group], number + 1)
    added = []
    for of, clips in new.items():
        parts = _cut(sorted(clips, key=_key), shard_mb * 1_000_000)
        added += [_shard(*of, number, part) for number, part in enumerate(parts, free[of])]
    corpora = {utterance.corpus for utterance in utterances}
    return ShardAssignment(
        {corpus: grouped_by[corpus] for corpus in sorted(corpora)}, (*unchanged, *sorted(added, key=lambda shard: shard.path))
    )


def describe_utterance(utterance: Utterance) -> dict[str, Any]:
    """Return an utterance's metadata as packed: every field, but of its path only the file's name; `extra` as JSON."""
    values = {name: getattr(utterance, name) for name in _PLAIN_FIELDS}
    values["source"] = utterance.audio_path.name
    values["extra"] = json.dumps(dict(utterance.extra), sort_keys=True, ensure_ascii=False) if utterance.extra else ""
    return values


def source_digests(shard: ShardPlan) -> dict[Path, str]:
    """Return the digest of every source file of a shard: size and CRC-32, or "unreadable"."""
    return {path: digest_of(path) for path in dict.fromkeys(utterance.audio_path for utterance in shard.utterances)}


def source_hash(shard: ShardPlan, contents: Mapping[Path, str]) -> str:
    """Return the SHA-256 over all that decides a shard's bytes: metadata, order, and `source_digests`."""
    digest = hashlib.sha256(f"layout {LAYOUT_VERSION}".encode())
    for utterance in shard.utterances:
        digest.update(json.dumps([utterance.key, describe_utterance(utterance), contents[utterance.audio_path]]).encode())
    return digest.hexdigest()


def check_keys(utterances: Sequence[Utterance]) -> None:
    """Raise UserError where two clips have one key, or a key is too long for a tar."""
    repeated = [key for key, count in Counter(u.key for u in utterances).items() if count > 1]
    if repeated:
        raise UserError(f"{len(repeated)} keys stand for more than one clip: {listed(repeated)}; utterance ids must be unique")
    long = [u.key for u in utterances if len(u.key) > _LONGEST_KEY]
    if long:
        raise UserError(
            f"{len(long)} keys are longer than the {_LONGEST_KEY} characters that a tar can hold: {listed(long, 3)}; "
            "shorten the corpus's name or the utterance ids"
        )


def _groupings(utterances: Iterable[Utterance]) -> dict[str, Grouping]:
    """Choose how each corpus is divided, when it is first packed."""
    speakers: dict[str, set[str]] = defaultdict(set)
    with_sessions = set()
    for utterance in utterances:
        speakers[utterance.corpus].add(utterance.speaker)
        if utterance.session:
            with_sessions.add(utterance.corpus)
    return {
        corpus: "session" if corpus in with_sessions else "speaker" if len(names) <= MAX_SPEAKER_GROUPS else "speaker_bucket"
        for corpus, names in speakers.items()
    }


def _group(utterance: Utterance, grouped_by: Grouping) -> str:
    """Return the group of an utterance, safe in a file name; different groups have different names."""
    if grouped_by == "session":
        return _slug(utterance.session or "no_session")
    if grouped_by == "speaker":
        return _slug(utterance.speaker)
    return f"speakers_{int(hashlib.sha256(utterance.speaker.encode()).hexdigest(), 16) % MAX_SPEAKER_GROUPS:02d}"


def _slug(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:40]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _key(clip: tuple[Utterance, float]) -> str:
    return clip[0].key


def _shard(corpus: str, group: str, number: int, clips: Iterable[tuple[Utterance, float]]) -> ShardPlan:
    utterances, durations = zip(*sorted(clips, key=_key), strict=True)
    return ShardPlan(corpus, group, number, utterances, sum(durations))


def _cut(clips: Sequence[tuple[Utterance, float]], limit: int) -> list[list[tuple[Utterance, float]]]:
    """Split clips into consecutive parts of about `limit` bytes each."""
    parts: list[list[tuple[Utterance, float]]] = []
    filled = limit
    for utterance, duration in clips:
        size = estimated_bytes(duration, 1)
        if filled + size > limit:
            parts.append([])
            filled = 0
        parts[-1].append((utterance, duration))
        filled += size
    return parts


def read_assignment(out: Path) -> SavedAssignment:
    """Return the plan of the last packing into `out`; an empty one where there was none, or one of another layout.

    Raises UserError if the file is damaged.
    """
    path = out / PLAN
    if not path.exists():
        return NOTHING
    try:
        saved = read_json(path)
        if saved["version"] != LAYOUT_VERSION:
            return NOTHING
        grouped_by = dict(saved["grouped_by"])
        shards = tuple(_checked_row(**shard) for shard in saved["shards"])
        if not set(grouped_by.values()) <= set(get_args(Grouping)):
            raise ValueError(f"grouped_by is {grouped_by}")
        return SavedAssignment(grouped_by, shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Bring back a copy of it, or delete it: then clips are dealt to shards anew, and "
            "shards that this changes are made again"
        ) from error


def write_assignment(out: Path, plan: SavedAssignment) -> None:
    """Write the plan into `out`, unless the same one is there. Raises UserError if the file there is damaged."""
    if (out / PLAN).exists() and read_assignment(out) == plan:
        return
    shards = list(_rows(plan))
    write_json(out / PLAN, {"version": LAYOUT_VERSION, "grouped_by": dict(plan.grouped_by), "shards": shards})


def _rows(plan: SavedAssignment) -> Iterator[dict[str, object]]:
    for corpus, group, number, keys in plan.shards:
        yield {"corpus": corpus, "group": group, "number": number, "keys": list(keys)}


def _checked_row(corpus: str, group: str, number: int, keys: list[str]) -> tuple[str, str, int, tuple[str, ...]]:
    if not (_WORD.fullmatch(corpus) and _WORD.fullmatch(group) and type(number) is int and 0 <= number < 10**6):
        raise ValueError(f"shard {corpus!r}, {group!r}, {number!r}")
    return corpus, group, number, tuple(keys)
