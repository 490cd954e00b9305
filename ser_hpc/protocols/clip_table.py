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
from ser_hpc.corpora.text_order import sort_words, sorted_order
from ser_hpc.corpora.utterance import Metadata, TextColumn
from ser_hpc.corpora.words import WordColumn

NOWHERE, TRAIN, DEV, TEST = -1, 0, 1, 2
SIDES = ("training", "dev", "test")
SIDE_PAIRS = ((TRAIN, DEV), (TRAIN, TEST), (DEV, TEST))
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
    ids: TextColumn  # of all clips, by position
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
        corpora = Categorical.from_words(metadata.corpus.take(used))
        ids = metadata.utterance_id[used] if len(used) < len(metadata) else metadata.utterance_id
        order, same = sorted_order(sort_words(ids.arrow, corpora.codes, len(corpora.names)))
        positions, corpus = used[order], Categorical(corpora.names, corpora.codes[order])
        if len(twice := order[1:][same]):
            names = [f"{corpora.names[corpora.codes[row]]}/{ids[row]}" for row in twice.tolist()]
            raise UserError(f"clips that stand twice in the metadata: {listed(names)}; pack each corpus once")
        del order, same, ids

        def column(name: str) -> WordColumn:
            words: WordColumn = getattr(metadata, name)
            return words.take(positions)

        def of_corpus(words: WordColumn) -> Categorical:
            if len(corpora.names) > 1:
                words = WordColumn.join(column("corpus"), words).rename(lambda pair: pair if pair.partition("/")[2] else "")
            return Categorical.from_words(words)

        known = column("speaker").rename(lambda name: "" if is_unknown(name) else name)
        speaker = merge_speakers(of_corpus(known), corpora.names, speaker_aliases)
        refuse_doubtful_speakers(speaker, corpora.names, distinct, speaker_aliases)
        session = of_corpus(column("session"))
        return cls(
            classes=label_set.classes,
            positions=positions,
            target=targets[positions],
            ids=metadata.utterance_id,
            corpus=corpus,
            speaker=speaker,
            session=session,
            text=of_corpus(column("text_id")),
            sound=Categorical.from_repeated(metadata.sound.arrow, positions),
            gender=Categorical.from_words(column("gender")),
            split=Categorical.from_words(column("split")),
            overlap=np.full(len(positions), -1, np.int32) if metadata.overlap is None else metadata.overlap[positions],
            doubtful_sessions=describe_doubts(find_doubtful_names("session", session, corpora.names, distinct)),
        )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def key(self) -> pa.Array:
        """Names of the clips as corpus/id, ascending; made when asked for, as they are long."""
        return self.keys(np.arange(len(self)))

    def keys(self, rows: np.ndarray) -> pa.Array:
        """Return the names of some clips as corpus/id."""
        corpora = pa.array(self.corpus.names, pa.large_string()).take(pa.array(self.corpus.codes[rows]))
        return pc.binary_join_element_wise(corpora, self.ids[self.positions[rows]].arrow, _SLASH)

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
