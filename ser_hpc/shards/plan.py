"""Which clip goes into which shard: decided from the corpus alone, before anything is encoded.

A shard holds one group (a session; a speaker where a corpus has no sessions; a bucket of speakers where there are many), so
that leaving a group out is leaving files out. Boundaries follow from the sources' durations, never from encoded sizes: any
number of workers, and a killed run started again, make the same shards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.errors import UserError, listed
from ser_hpc.shards.audio import RATE

LAYOUT_VERSION = 2  # of tars, indexes and dataset.json; a change of it re-packs everything
MAX_SPEAKER_GROUPS = 64
_LONGEST_KEY = 100 - len(".flac")  # a USTAR name without a folder has 100 bytes
_FLAC_RATIO = 0.64  # 16-bit FLAC of speech against PCM
_CLIP_OVERHEAD = 2560  # two tar headers, the metadata and padding, in bytes


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to be: clips of one corpus and group, sorted by key. `seconds` is of the sources, by their headers."""

    corpus: str
    group: str
    number: int
    utterances: tuple[Utterance, ...]
    seconds: float

    @property
    def path(self) -> str:
        """Of the tar, relative to the dataset's folder."""
        return f"{self.group}/{self.corpus}-{self.group}-{self.number:06d}.tar"

    @property
    def estimated_bytes(self) -> int:
        return estimated_bytes(self.seconds, len(self.utterances))


def estimated_bytes(seconds: float, clips: int) -> int:
    """About how many bytes clips take in a tar."""
    return round(seconds * RATE * 2 * _FLAC_RATIO) + clips * _CLIP_OVERHEAD


def plan(utterances: Sequence[Utterance], seconds: Sequence[float], shard_mb: int) -> list[ShardPlan]:
    """The shards of a dataset, sorted by path; `seconds[i]` is the duration of `utterances[i]`.

    Raises UserError where two clips have one key, or a key is too long for a tar.
    """
    check_keys(utterances)
    if shard_mb < 1:
        raise UserError(f"shards of {shard_mb} MB: give at least 1")
    groups = defaultdict(list)
    for utterance, duration, group in zip(utterances, seconds, _groups(utterances), strict=True):
        groups[utterance.corpus, group].append((utterance, duration))
    plans = []
    for (corpus, group), clips in groups.items():
        clips.sort(key=lambda clip: clip[0].key)
        for number, part in enumerate(_cut(clips, shard_mb * 1_000_000)):
            members, durations = zip(*part, strict=True)
            plans.append(ShardPlan(corpus, group, number, members, sum(durations)))
    return sorted(plans, key=lambda shard: shard.path)


def describe(utterance: Utterance) -> dict[str, Any]:
    """An utterance's metadata as packed: all it says, but of its path only the file's name; `extra` as JSON."""
    values = asdict(utterance)
    values["source"] = values.pop("audio_path").name
    values["extra"] = json.dumps(values["extra"], sort_keys=True, ensure_ascii=False) if values["extra"] else ""
    return values


def source_hash(shard: ShardPlan) -> str:
    """SHA-256 over all that decides a shard's bytes: metadata, order, and the content of every source file."""
    digest = hashlib.sha256(f"layout {LAYOUT_VERSION}".encode())
    contents: dict[Path, str] = {}
    for utterance in shard.utterances:
        path = utterance.audio_path
        if path not in contents:
            contents[path] = _content_hash(path)
        digest.update(json.dumps([utterance.key, describe(utterance), contents[path]]).encode())
    return digest.hexdigest()


def check_keys(utterances: Sequence[Utterance]) -> None:
    """Raises UserError where two clips have one key, or a key is too long for a tar."""
    repeated = [key for key, count in Counter(u.key for u in utterances).items() if count > 1]
    if repeated:
        raise UserError(f"{len(repeated)} keys stand for more than one clip: {listed(repeated)}; utterance ids must be unique")
    long = [u.key for u in utterances if len(u.key) > _LONGEST_KEY]
    if long:
        raise UserError(
            f"{len(long)} keys are longer than the {_LONGEST_KEY} characters that a tar can hold: {listed(long, 3)}; "
            "shorten the corpus's name or the utterance ids"
        )


def _content_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"  # decoding will say why


def _groups(utterances: Sequence[Utterance]) -> list[str]:
    """The group of each utterance, safe in a file name; different groups have different names."""
    with_sessions = {u.corpus for u in utterances if u.session}
    speakers = Counter(corpus for corpus, _ in {(u.corpus, u.speaker) for u in utterances})

    def group(utterance: Utterance) -> str:
        if utterance.corpus in with_sessions:
            return _slug(utterance.session or "no_session")
        if speakers[utterance.corpus] > MAX_SPEAKER_GROUPS:
            bucket = int(hashlib.sha256(utterance.speaker.encode()).hexdigest(), 16) % MAX_SPEAKER_GROUPS
            return f"speakers_{bucket:02d}"
        return _slug(utterance.speaker)

    return [group(utterance) for utterance in utterances]


def _slug(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:40]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _cut(clips: list[tuple[Utterance, float]], limit: int) -> list[list[tuple[Utterance, float]]]:
    """Consecutive parts of about `limit` bytes each."""
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
