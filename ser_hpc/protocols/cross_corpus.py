"""Cross-corpus protocols: train on some corpora and test on others, which have no clip in dev.

The dev part is of the training corpora: one of five balanced groups of the speakers of each (of a corpus of fewer than three
speakers only where no training corpus has more), so the tested corpus chooses nothing.
"""

from __future__ import annotations

import numpy as np

from ser_hpc.core.errors import UserError, listed
from ser_hpc.protocols.clip_table import DEV, NOWHERE, TEST, TRAIN, ClipTable, FoldDraft, ProtocolOptions
from ser_hpc.protocols.speaker_balance import FEWEST, SpeakerTable

_DEV_GROUPS = 5  # one of them is dev


def leave_one_corpus_out(clips: ClipTable, options: ProtocolOptions) -> tuple[list[FoldDraft], list[str]]:
    """Make folds, of which fold k tests the k-th corpus with known speakers; the others train, a group of speakers is dev.

    Raises UserError where there are fewer than two such corpora, or another number of folds was requested.
    """
    speakers = SpeakerTable.from_clips(clips)
    tested = np.unique(speakers.corpus)
    names = [clips.corpus.names[code] for code in tested]
    if len(tested) < 2:
        raise UserError(
            f"leave_one_corpus_out needs at least two corpora of known speakers, but there are {len(tested)} "
            f"({listed(names) or 'none'}) among the corpora {listed(clips.corpus.names)}: list more under data.shards, or use "
            "the protocol speaker_groups"
        )
    if options.count not in (None, len(tested)):
        raise UserError(
            f"{options.count} folds were asked for, but leave_one_corpus_out makes one of each corpus of known speakers "
            f"({listed(names)}): ask for {len(tested)}"
        )
    everything = np.arange(len(clips.corpus.names))
    fifth = _one_of_five(speakers)
    return [_draft(clips, speakers, fifth, everything[everything != code], np.array([code])) for code in tested], []


def cross_corpus(clips: ClipTable, options: ProtocolOptions) -> tuple[list[FoldDraft], list[str]]:
    """Make one fold that tests `test_corpora`; the others train, or `train_corpora`. Raises UserError for wrong names."""
    if options.count not in (None, 1):
        raise UserError(f"{options.count} folds were asked for, but cross_corpus makes one: leave the number out, or ask for 1")
    known = clips.corpus.names_in(clips.has_known_speaker)
    here = f"the corpora here are {listed(clips.corpus.names, 40)}"
    if not options.test_corpora:
        raise UserError(f"cross_corpus needs folds.test_corpora, the names of the corpora to test; {here}")
    train = options.train_corpora or [name for name in clips.corpus.names if name not in options.test_corpora]
    if absent := [name for name in [*train, *options.test_corpora] if name not in clips.corpus.names]:
        raise UserError(f"cross_corpus: there is no clip with a class of the corpus {listed(absent)}; {here}")
    if not train:
        raise UserError(f"cross_corpus has no corpus left to train on, when all are tested; {here}")
    if both := sorted(set(train) & set(options.test_corpora)):
        raise UserError(f"cross_corpus: {listed(both)} stands in both folds.train_corpora and folds.test_corpora")
    if unknown := [name for name in options.test_corpora if name not in known]:
        raise UserError(
            f"cross_corpus: {listed(unknown)} has no known speaker, and can only train; test one of {listed(known, 40)}"
        )
    speakers = SpeakerTable.from_clips(clips)
    codes = ([clips.corpus.names.index(name) for name in sorted(set(names))] for names in (train, options.test_corpora))
    return [_draft(clips, speakers, _one_of_five(speakers), *map(np.array, codes))], []


def _draft(clips: ClipTable, speakers: SpeakerTable, fifth: np.ndarray, train: np.ndarray, test: np.ndarray) -> FoldDraft:
    """Make a fold. `train`, `test`: numbers of corpora. `fifth`: mask of speakers who are dev where their corpus trains."""
    dev = _dev(clips, speakers, fifth, train)
    of_corpus = np.full(len(clips.corpus.names), NOWHERE, dtype=np.int8)
    of_corpus[train], of_corpus[test] = TRAIN, TEST
    side = of_corpus[clips.corpus.codes]
    side[np.append(dev, False)[clips.speaker.codes]] = DEV
    side[~clips.has_known_speaker & (side == TEST)] = NOWHERE
    names = listed([clips.speaker.names[i] for i in np.flatnonzero(dev)])
    return FoldDraft(side, (f"{_named(clips, train)} without the dev speakers", f"speakers {names}", _named(clips, test)))


def _dev(clips: ClipTable, speakers: SpeakerTable, fifth: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return the mask of the dev speakers, (num_speakers,)."""
    training = np.isin(speakers.corpus, train)
    chosen = fifth & training
    if chosen.any():
        return chosen
    members = np.flatnonzero(training)
    if len(members) < 2:
        raise UserError(
            f"training and dev need a known speaker each, but among the training clips ({_named(clips, train)}) there is "
            f"{listed([clips.speaker.names[i] for i in members]) or 'none'}: train on more corpora"
        )
    chosen[members[speakers.balanced(members, min(_DEV_GROUPS, len(members))) == 0]] = True
    return chosen


def _one_of_five(speakers: SpeakerTable) -> np.ndarray:
    """Return a mask (num_speakers,): about a fifth of each corpus's speakers, none where it has fewer than three."""
    mask = np.zeros(len(speakers.corpus), dtype=bool)
    for members in speakers.corpora():
        if len(members) >= FEWEST:
            mask[members[speakers.balanced(members, min(_DEV_GROUPS, len(members))) == 0]] = True
    return mask


def _named(clips: ClipTable, codes: np.ndarray) -> str:
    names = [clips.corpus.names[code] for code in codes]
    return f"corpora {listed(names)}" if len(names) > 1 else f"corpus {names[0]}"
