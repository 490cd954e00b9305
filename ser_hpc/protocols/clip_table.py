"""The table that protocols divide: the clips that have a class, sorted by name, with speakers and corpora as integers.

Names become numbers once (`categorical`), so that dividing and checking a million clips is arithmetic on arrays of integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ser_hpc.core.errors import UserError, listed
from ser_hpc.corpora.categorical import Categorical
from ser_hpc.corpora.labels import DROPPED, LabelSet
from ser_hpc.corpora.names import (
    Distinct,
    describe_doubts,
    find_doubtful_names,
    is_unknown,
    merge_speakers,
    refuse_doubtful_speakers,
)
from ser_hpc.corpora.utterance import Metadata, TextColumn

NOWHERE, TRAIN, DEV, TEST = -1, 0, 1, 2
SIDES = ("training", "dev", "test")
_SLASH = pa.scalar("/", pa.large_string())


@dataclass(frozen=True, slots=True)
class ClipTable:
    """The clips that have a class, sorted by corpus and id, so that nothing depends on the order of the metadata.

    Speakers, sessions and texts are unique only with their corpus; where there are several corpora their names say which.
    A clip of an unknown speaker has no speaker. All arrays have shape (num_clips,).
    `doubtful_sessions`: a message on those that may be one; "" if there are none.
    """

    classes: tuple[str, ...]
    positions: np.ndarray  # rows of the metadata, int64
    target: np.ndarray
    key: pa.Array  # corpus/id, ascending
    corpus: Categorical
    speaker: Categorical
    session: Categorical
    text: Categorical
    sound: Categorical  # those that occur more than once
    overlap: np.ndarray  # int32: pieces of one recording that share sound have one number, -1 with no other
    gender: Categorical
    split: Categorical
    doubtful_sessions: str

    @classmethod
    def from_metadata(
        cls,
        metadata: Metadata,
        label_set: LabelSet,
        speaker_aliases: Mapping[str, str | None] = MappingProxyType({}),
        distinct: Distinct = frozenset(),
    ) -> ClipTable:
        """Make the table. Raises UserError where two rows are one clip, none has a class, or two names may be one speaker."""
        targets = label_set.targets(metadata)
        used = np.flatnonzero(targets != DROPPED)
        if not len(used):
            raise UserError(f"label set {label_set.name!r} gives none of the {len(metadata)} clips a class")
        unsorted = _with_corpus(_text(metadata.corpus[used]), _text(metadata.utterance_id[used]))
        order = pc.sort_indices(unsorted)
        positions = used[order.to_numpy()]
        key = unsorted.take(order)
        del unsorted, order
        if len(twice := np.flatnonzero(pc.equal(key[1:], key[:-1]).to_numpy(zero_copy_only=False))):
            names = listed(key.take(twice).to_pylist())
            raise UserError(f"clips that stand twice in the metadata: {names}; pack each corpus once")

        corpus = _text(metadata.corpus[positions])
        corpora = Categorical.from_arrow(corpus)

        def column(name: str) -> pa.Array:
            return _text(getattr(metadata, name)[positions])

        def of_corpus(names: pa.Array) -> Categorical:
            apart = pc.if_else(pc.equal(names, ""), names, _with_corpus(corpus, names)) if len(corpora.names) > 1 else names
            return Categorical.from_arrow(apart)

        speaker = merge_speakers(of_corpus(_known(column("speaker"))), corpora.names, speaker_aliases)
        refuse_doubtful_speakers(speaker, corpora.names, distinct, speaker_aliases)
        session = of_corpus(column("session"))
        return cls(
            classes=label_set.classes,
            positions=positions,
            target=targets[positions],
            key=key,
            corpus=corpora,
            speaker=speaker,
            session=session,
            text=of_corpus(column("text_id")),
            sound=Categorical.from_repeated(_text(metadata.sound[positions])),
            gender=Categorical.from_arrow(column("gender")),
            split=Categorical.from_arrow(column("split")),
            overlap=np.full(len(positions), -1, np.int32) if metadata.overlap is None else metadata.overlap[positions],
            doubtful_sessions=describe_doubts(find_doubtful_names("session", session, corpora.names, distinct)),
        )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def has_known_speaker(self) -> np.ndarray:
        """Mask of the clips whose speaker is known."""
        return self.speaker.codes >= 0


@dataclass(frozen=True, slots=True)
class FoldDraft:
    """A fold before its check. `side`: of each clip, int8 (num_clips,); `descriptions`: of training, dev and test."""

    side: np.ndarray
    descriptions: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class ProtocolOptions:
    """The settings of a protocol. `count`: number of folds, None: the protocol's own. No corpora: none are named."""

    count: int | None
    train_corpora: Sequence[str] = ()
    test_corpora: Sequence[str] = ()


def _known(speakers: pa.Array) -> pa.Array:
    """Replace every word for "unknown" by ""."""
    encoded = speakers.dictionary_encode()
    names = ["" if is_unknown(name) else name for name in encoded.dictionary.to_pylist()]
    return pa.array(names, pa.large_string()).take(encoded.indices)


def _text(values: np.ndarray | TextColumn) -> pa.Array:
    return values.arrow if isinstance(values, TextColumn) else pa.array(values, type=pa.large_string())


def _with_corpus(corpus: pa.Array, names: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(corpus, names, _SLASH)
