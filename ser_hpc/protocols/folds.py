"""Plan folds: which clips train, which choose the epoch (dev) and which are tested, so that no speaker is on two sides.

A protocol divides the clips (a new one is a line here), a cap may thin training out, `leakage` refuses the result or adds
notes, and `plan_folds` turns it into positions and descriptions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_hpc.config.extension_errors import check_made, explain_errors
from ser_hpc.config.protocols import ProtocolSettings
from ser_hpc.core.errors import UserError, counted, listed
from ser_hpc.corpora.labels import LabelSet
from ser_hpc.corpora.names import Distinct, shared_name_notes
from ser_hpc.corpora.text_order import text_bytes
from ser_hpc.corpora.utterance import Metadata
from ser_hpc.protocols.clip_table import DEV, NOWHERE, TEST, TRAIN, ClipTable, FoldDraft, ProtocolOptions
from ser_hpc.protocols.cross_corpus import cross_corpus, leave_one_corpus_out
from ser_hpc.protocols.leakage import check_leakage
from ser_hpc.protocols.leave_one_out import leave_one_session_out, leave_one_speaker_out, speaker_groups
from ser_hpc.protocols.near_duplicates import NearDuplicates
from ser_hpc.protocols.official_splits import Drafts, given_split, iemocap_ses01, superb

_PROTOCOLS: dict[str, Callable[[ClipTable, ProtocolOptions], Drafts]] = {
    "leave_one_session_out": leave_one_session_out,
    "leave_one_speaker_out": leave_one_speaker_out,
    "speaker_groups": speaker_groups,
    "leave_one_corpus_out": leave_one_corpus_out,
    "cross_corpus": cross_corpus,
    "given_split": given_split,
    "iemocap_ses01": iemocap_ses01,
    "superb": superb,
}
PROTOCOLS: tuple[str, ...] = tuple(_PROTOCOLS)
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One side of a fold. `positions`: rows of the metadata table, int64, ascending; known speakers and sessions by name."""

    description: str
    positions: np.ndarray
    speakers: tuple[str, ...]
    sessions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fold:
    """One training with its dev and test part. `index`: from 0."""

    index: int
    train: Part
    dev: Part
    test: Part

    @property
    def positions(self) -> np.ndarray:
        """Positions of all its clips, part by part."""
        return np.concatenate([part.positions for part in (self.train, self.dev, self.test)])


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """The folds of a protocol. `notes`: for readers of its scores; `digest`: of every clip and position: equal if plans are."""

    protocol: str
    folds: tuple[Fold, ...]
    notes: tuple[str, ...]
    digest: str


def plan_folds(
    metadata: Metadata,
    label_set: LabelSet,
    protocol: str | ProtocolSettings,
    count: int | None,
    *,
    train_corpora: Sequence[str] = (),
    test_corpora: Sequence[str] = (),
    max_per_class: int | None = None,
    speaker_aliases: Mapping[str, str | None] = MappingProxyType({}),
    distinct: Distinct = frozenset(),
    near: NearDuplicates | None = None,
    harmless_pairs: Sequence[str] = (),
) -> FoldPlan:
    """Plan the folds of a protocol, by name or from outside the package, over the clips that the label set gives a class;
    independent of the metadata's order.

    `count`: how many folds are requested; None: as many as the protocol makes of this corpus (5 groups of speakers).
    `train_corpora`, `test_corpora`: for cross_corpus. `max_per_class`: at most so many clips of a class train in a fold.
    `speaker_aliases`, `distinct`: which names are one person, and which are not (`corpora.names`).
    `near`: clips that share sound, as `shards.pair_file` finds them, None: nobody has looked; `harmless_pairs`: those that may.
    Raises UserError where the corpus does not allow the protocol or the count, and for every leak (`check_leakage`).
    """
    clips = ClipTable.from_metadata(metadata, label_set, speaker_aliases, distinct)
    drafts, notes = divide(clips, protocol, ProtocolOptions(count, train_corpora, test_corpora))
    sides = [draft.side for draft in drafts]
    if max_per_class is not None:
        notes = [*notes, _cap(clips, sides, max_per_class)]
    folds = tuple(Fold(k, *(_part(clips, draft, side) for side in (TRAIN, DEV, TEST))) for k, draft in enumerate(drafts))
    notes += [
        *_left_out(clips, metadata, label_set, sides),
        *shared_name_notes(clips.speaker, clips.corpus.names, speaker_aliases),
    ]
    name = protocol.kind if isinstance(protocol, ProtocolSettings) else protocol
    notes += check_leakage(clips, sides, name, near, harmless_pairs)
    return FoldPlan(name, folds, tuple(notes), digest_folds(metadata, folds))


def divide(clips: ClipTable, protocol: str | ProtocolSettings, options: ProtocolOptions) -> Drafts:
    """Make a protocol's folds and notes, unchecked. Raises UserError where the corpus does not allow protocol or count."""
    if isinstance(protocol, ProtocolSettings):
        with explain_errors(protocol.kind):
            made = protocol.divide(clips, options.count)
        return _checked(made, protocol.kind, len(clips.target))
    if protocol not in _PROTOCOLS:
        raise UserError(f"there is no protocol {protocol!r}; choose one of {listed(PROTOCOLS)}")
    if protocol != "cross_corpus" and (options.train_corpora or options.test_corpora):
        raise UserError(f"folds.train_corpora and folds.test_corpora are for the protocol cross_corpus, not for {protocol}")
    return _PROTOCOLS[protocol](clips, options)


def _checked(made: Any, reference: str, num_clips: int) -> Drafts:
    """Return the folds and notes of a protocol from outside. Raises UserError where they are none."""
    two = isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], list | tuple)
    drafts = list(made[0]) if two and isinstance(made[0], list | tuple) else []
    fits = bool(drafts) and all(isinstance(draft, FoldDraft) for draft in drafts)
    check_made(f"{reference}.divide", made, fits, "a list of one FoldDraft at least, and a list of notes")
    for number, draft in enumerate(drafts):
        side, sides = draft.side, (TRAIN, DEV, TEST)
        of_clips = isinstance(side, np.ndarray) and side.shape == (num_clips,) and side.dtype.kind in "iu"
        of_clips = of_clips and set(np.unique(side).tolist()) <= {*sides, NOWHERE}
        check_made(f"{reference}: fold {number}", side, of_clips, f"for each of {num_clips} clips TRAIN, DEV, TEST or NOWHERE")
        check_made(f"{reference}: fold {number}", draft.descriptions, len(draft.descriptions) == 3, "three descriptions")
        if empty := [name for name, each in zip(("train", "dev", "test"), sides, strict=True) if not (side == each).any()]:
            raise UserError(f"{reference}: fold {number} has no clips in its {listed(empty)} part: each part needs some")
    return drafts, [str(note) for note in made[1]]


def _cap(clips: ClipTable, sides: Sequence[np.ndarray], most: int) -> str:
    """Take out of training, in place, all but `most` clips of each class. Returns the note on how many that were.

    Those of the smallest hash of corpus and id stay, so that the choice depends on no order, seed or other fold.
    """
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in clips.key.to_pylist())
    by_hash = np.argsort(np.frombuffer(digests, dtype="<u8"), kind="stable")
    left_out = []
    for side in sides:
        rows = by_hash[side[by_hash] == TRAIN]
        rows = rows[np.argsort(clips.target[rows], kind="stable")]
        counts = np.bincount(clips.target[rows], minlength=len(clips.classes))
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its class
        side[rows[place >= most]] = NOWHERE
        left_out.append(int((place >= most).sum()))
    low, high = min(left_out), max(left_out)
    return (
        f"At most {most} clips of a class train in a fold (folds.max_per_class): {low if low == high else f'{low} to {high}'} "
        "training clips a fold are left out, chosen by a hash of their names."
    )


def _part(clips: ClipTable, draft: FoldDraft, side: int) -> Part:
    rows = draft.side == side
    unknown = int((rows & ~clips.has_known_speaker).sum())
    description = draft.descriptions[side] + (f"; {counted(unknown, 'clip')} of unknown speakers" if unknown else "")
    taken = np.zeros(clips.positions.max() + 1, dtype=bool)
    taken[clips.positions[rows]] = True
    return Part(description, np.flatnonzero(taken), clips.speaker.names_in(rows), clips.session.names_in(rows))


def digest_folds(metadata: Metadata, folds: Sequence[Fold]) -> str:
    """Hash the names of all clips and the positions of all parts: SHA-256 in hex, as in `FoldPlan.digest`."""
    content = hashlib.sha256()
    corpora = metadata.corpus
    for column in (corpora, metadata.utterance_id):
        for start in range(0, len(column), _AT_ONCE):  # the text of all clips at once would be gigabytes
            rows = slice(start, start + _AT_ONCE)
            texts = corpora.take(rows).to_arrow() if column is corpora else metadata.utterance_id[rows].arrow
            content.update((b"\n" if start else b"") + _lines(texts))
        content.update(b"\0")
    for fold in folds:
        for part in (fold.train, fold.dev, fold.test):
            content.update(len(part.positions).to_bytes(8, "little"))
            content.update(np.ascontiguousarray(part.positions, dtype="<i8").data)
    return content.hexdigest()


def _lines(texts: pa.LargeStringArray) -> bytes:
    """Return the texts, a line each but without the last one's end, as bytes of UTF-8."""
    ended = pc.binary_join_element_wise(texts, pa.scalar("", texts.type), pa.scalar("\n", texts.type))
    offsets, data = text_bytes(ended)
    return data[offsets[0] : offsets[-1] - 1].tobytes()


def _left_out(clips: ClipTable, metadata: Metadata, label_set: LabelSet, sides: Sequence[np.ndarray]) -> list[str]:
    notes = []
    rest = np.ones(len(metadata), dtype=bool)
    rest[clips.positions] = False
    dropped = Counter(label_set.annotations(metadata)[rest].tolist())
    if dropped:
        each = listed([f"{emotion} {number}" for emotion, number in sorted(dropped.items())], 20)
        notes.append(f"{dropped.total()} of {len(metadata)} clips have no class in the label set {label_set.name}: {each}.")
    never = int(np.all([side == NOWHERE for side in sides], axis=0).sum())
    if never:
        notes.append(f"{never} of {len(clips)} clips that have a class are in no part of any fold.")
    return notes
