"""Judge clips while packing: the kinds of findings and the policy for each. Every finding is counted in the report.

    undecodable     missing, truncated, no audio, a git-lfs pointer, NaN: with the reason           fail
    too_short       under 0.1 s                                                                       drop
    too_long        over `longest_s`                                                                  keep
    silent          nowhere louder than -60 dBFS for 100 ms in all (`audio.level_db`)                 drop
    clipped         more than 1 % of the source's samples at full scale or beyond                     keep
    doubtful        its header is wrong, or contradicts itself or the file: what is there is read     keep
    out_of_range    float samples far out of [-1, 1]: lone ones are limited, else all are scaled      keep
    cancelled       channels that cancel each other in their mean: the loudest alone is taken         keep
    duplicate       the very 16 kHz samples of an earlier clip of the same speaker and emotion        drop: the first one stays
    contradiction   the very samples of a clip with another speaker or emotion                        keep: no fold parts them
    overlap         a piece of a recording that shares sound with another speaker's piece, by times   fail
    near_duplicate  shares sound with another clip, though its samples differ (another gain, a cut)   keep: see `protocols`

On the right the default policy: `drop` leaves the clip out, `keep` packs it, `fail` packs nothing.
A contradiction that is dropped takes all clips of that sound, and an overlap all pieces: nobody knows which is right.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import RATE
from ser_hpc.shards.overlaps import overlap_groups, recording_number

FindingKind = Literal[
    "undecodable",
    "too_short",
    "too_long",
    "silent",
    "clipped",
    "doubtful",
    "out_of_range",
    "cancelled",
    "duplicate",
    "contradiction",
    "overlap",
    "near_duplicate",
]
FindingPolicy = Literal["drop", "keep", "fail"]

KINDS: tuple[FindingKind, ...] = get_args(FindingKind)
DEFAULTS: Mapping[FindingKind, FindingPolicy] = {
    "undecodable": "fail",
    "too_short": "drop",
    "too_long": "keep",
    "silent": "drop",
    "clipped": "keep",
    "doubtful": "keep",
    "out_of_range": "keep",
    "cancelled": "keep",
    "duplicate": "drop",
    "contradiction": "keep",
    "overlap": "fail",
    "near_duplicate": "keep",
}
SHORTEST_S = 0.1
LONGEST_S = 60.0
SILENT_DB = -60.0
CLIPPED_SHARE = 0.01
_NAMED = 100


@dataclass(frozen=True, slots=True)
class ClipMeasurements:
    """What packing measured of a clip. `reason`: why it does not decode, else "".

    `num_samples` at 16 kHz; `clipped`: share of the source's samples at full scale or beyond; `level_db`: see `audio.level_db`;
    `sound`: hash of its samples, "" if it was not decoded. `doubtful`, `out_of_range`, `cancelled`: see `audio.DecodedClip`.
    """

    key: str
    reason: str = ""
    num_samples: int = 0
    clipped: float = 0.0
    level_db: float = 0.0
    sound: str = ""
    doubtful: str = ""
    out_of_range: str = ""
    cancelled: str = ""

    def announced(self) -> ClipMeasurements:
        """Return what was known of the clip before it was decoded."""
        return ClipMeasurements(self.key, self.reason, self.num_samples, doubtful=self.doubtful)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one clip; `detail` is the message."""

    kind: FindingKind
    key: str
    path: Path
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class QualityRules:
    """The policy for each kind of finding; `longest_s`: clips over that many seconds are `too_long`."""

    policies: Mapping[FindingKind, FindingPolicy] = field(default_factory=lambda: DEFAULTS)
    longest_s: float = LONGEST_S

    @classmethod
    def parse(cls, choices: Iterable[str], longest_s: float = LONGEST_S) -> QualityRules:
        """Return the defaults, changed by choices as "silent=keep". Raises UserError for an unknown kind or policy."""
        policies = dict(DEFAULTS)
        for choice in choices:
            name, _, wanted = choice.partition("=")
            kind = next((kind for kind in KINDS if kind == name), None)
            policy = next((policy for policy in get_args(FindingPolicy) if policy == wanted), None)
            if kind is None or policy is None:
                raise UserError(
                    f"--on {choice}: write KIND=POLICY; kinds: {listed(KINDS)}; policies: {listed(get_args(FindingPolicy))}"
                )
            if (kind, policy) == ("undecodable", "keep"):
                raise UserError(f"--on {choice}: what does not decode cannot be packed; use drop or fail")
            if (kind, policy) == ("near_duplicate", "drop"):
                raise UserError(f"--on {choice}: which of two is the altered one cannot be told; use keep or fail")
            policies[kind] = policy
        if not longest_s > SHORTEST_S:
            raise UserError(f"--longest {longest_s:g}: give seconds, more than {SHORTEST_S}")
        return cls(policies, longest_s)

    def alone(self, clip: ClipMeasurements) -> Iterator[tuple[FindingKind, str]]:
        """Yield (kind, detail) of what is wrong with a clip whatever the others are."""
        if clip.reason:
            yield "undecodable", clip.reason
            return
        seconds = clip.num_samples / RATE
        if seconds < SHORTEST_S:
            yield "too_short", f"{seconds:.3f} s"
        if seconds > self.longest_s:
            yield "too_long", f"{seconds:.1f} s"
        if clip.level_db < SILENT_DB:
            yield "silent", f"{seconds:.2f} s, no louder than {clip.level_db:.1f} dBFS"
        if clip.clipped > CLIPPED_SHARE:
            yield "clipped", f"{clip.clipped:.1%} of its samples are at full scale"
        if clip.doubtful:
            yield "doubtful", clip.doubtful
        if clip.out_of_range:
            yield "out_of_range", clip.out_of_range
        if clip.cancelled:
            yield "cancelled", clip.cancelled

    def drops(self, clip: ClipMeasurements) -> bool:
        """Return whether a clip is left out whatever the others are."""
        return bool(clip.reason) or any(self.policies[kind] == "drop" for kind, _ in self.alone(clip))

    def dropped(self, findings: Iterable[Finding]) -> set[str]:
        """Return the keys of the clips that are left out."""
        return {found.key for found in findings if self.policies[found.kind] == "drop"}

    def refuse(self, findings: Iterable[Finding]) -> None:
        """Raise UserError naming every finding whose policy is `fail`, if there are any."""
        bad = sorted((found for found in findings if self.policies[found.kind] == "fail"), key=str)
        if not bad:
            return
        lines = [str(found) for found in bad[:_NAMED]] + [f"and {len(bad) - _NAMED} more"] * (len(bad) > _NAMED)
        clips = len({found.key for found in bad})
        kinds = [kind for kind in KINDS if any(found.kind == kind for found in bad)]
        raise UserError(
            f"{counted(clips, 'clip')} cannot be packed:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nMend them, or leave them out (counted and named in the report): "
            + " ".join(f"--on {kind}={'keep' if kind == 'near_duplicate' else 'drop'}" for kind in kinds)
        )


def find_problems(clips: Sequence[tuple[Utterance, ClipMeasurements]], rules: QualityRules) -> list[Finding]:
    """Find everything that is wrong with the clips of a dataset; of equal sounds the first here counts as the original.

    Clips that are left out for a reason of their own are not compared with others.
    """
    findings: list[Finding] = []
    sounds: dict[str, list[Utterance]] = defaultdict(list)
    for utterance, clip in clips:
        alone = [Finding(kind, clip.key, utterance.audio_path, detail) for kind, detail in rules.alone(clip)]
        findings += alone
        if clip.sound and not rules.drops(clip):
            sounds[clip.sound].append(utterance)
    for equal in sounds.values():
        if len(equal) > 1:
            findings += _compared(equal)
    findings += _overlapping([(utterance, clip) for utterance, clip in clips if not rules.drops(clip)])
    return sorted(findings, key=lambda found: (KINDS.index(found.kind), found.key))


def judge_near_duplicates(
    pairs: Sequence[tuple[Utterance, Utterance]], seconds: np.ndarray, error: np.ndarray
) -> list[Finding]:
    """Make a finding of each clip that shares sound with another. `seconds` of the two that were compared, and the share of
    fingerprint bits that differ there (`error`), float (num_pairs,)."""
    others: dict[str, list[str]] = defaultdict(list)
    clips: dict[str, Utterance] = {}
    for (one, two), length, wrong in zip(pairs, seconds.tolist(), error.tolist(), strict=True):
        for utterance, other in ((one, two), (two, one)):
            clips[utterance.key] = utterance
            alike = f"{length:.1f} s, {1 - wrong:.0%} alike"
            others[utterance.key].append(f"{other.key} ({other.emotion} by {other.speaker}; {alike})")
    return [
        Finding(
            "near_duplicate",
            key,
            utterance.audio_path,
            f"{utterance.emotion} by {utterance.speaker}, shares sound with {listed(others[key], 4)}",
        )
        for key, utterance in sorted(clips.items())
    ]


def _compared(equal: Sequence[Utterance]) -> Iterator[Finding]:
    """Yield the findings about clips of one sound."""
    first: dict[tuple[str, str, str], Utterance] = {}
    for utterance in equal:
        original = first.setdefault(_label(utterance), utterance)
        if original is not utterance:
            yield Finding("duplicate", utterance.key, utterance.audio_path, f"sounds exactly as {original.key}")
    if len(first) > 1:
        for utterance in equal:
            others = [
                f"{other.key} ({other.emotion} by {other.speaker})"
                for label, other in first.items()
                if label != _label(utterance)
            ]
            detail = f"{utterance.emotion} by {utterance.speaker}, but sounds exactly as {listed(others)}"
            yield Finding("contradiction", utterance.key, utterance.audio_path, detail)


def _overlapping(clips: Sequence[tuple[Utterance, ClipMeasurements]]) -> Iterator[Finding]:
    """Yield the findings about overlapping pieces of one recording by different speakers; other clips cost nothing."""
    if all(utterance.start_s is None and utterance.end_s is None for utterance, _ in clips):
        return
    real = {path: os.path.realpath(path) for path in {utterance.audio_path for utterance, _ in clips}}  # it may have many names
    cut = {real[u.audio_path] for u, _ in clips if u.start_s is not None or u.end_s is not None}
    pieces = [(utterance, clip) for utterance, clip in clips if real[utterance.audio_path] in cut]
    start = np.array([utterance.start_s or 0.0 for utterance, _ in pieces])
    length = np.array([clip.num_samples / RATE for _, clip in pieces])
    groups: dict[int, list[Utterance]] = defaultdict(list)
    recordings = np.array([recording_number(real[utterance.audio_path]) for utterance, _ in pieces])
    for (utterance, _), group in zip(pieces, overlap_groups(recordings, start, start + length).tolist(), strict=True):
        if group >= 0:
            groups[group].append(utterance)
    for group in groups.values():
        if len({utterance.speaker for utterance in group}) > 1:
            named = {utterance.key: f"{utterance.key} (by {utterance.speaker})" for utterance in group}
            for utterance in group:
                others = listed([name for key, name in named.items() if key != utterance.key], 4)
                yield Finding("overlap", utterance.key, utterance.audio_path, f"by {utterance.speaker}, but overlaps {others}")


def _label(utterance: Utterance) -> tuple[str, str, str]:
    return utterance.corpus, utterance.speaker, utterance.emotion
