"""Divide speakers into groups that are alike in classes and genders, so that every fold tests about the same.

Each speaker is a vector: its clips of each class and its gender, every feature as a share of what one group should hold. The
groups are the more alike, the smaller the sum of their squared lengths (their total is fixed, so this is their variance).
Speakers are dealt out, largest first, each to the group that has least of what it brings; then speakers move and change
places as long as that helps. Nothing is random, and all sums are of integers: the same groups on every machine.

Where there are several corpora each is divided alone, and its groups are dealt out so that all hold about as many clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ser_hpc.protocols.clip_table import ClipTable

FEWEST = 3  # speakers of a corpus that is divided: one each for training, dev and test
_UNIT = 1 << 18  # of a feature: fine enough for thousands of speakers; products of sums stay far below 2**63
_VISITS = 4000  # speakers tried for a better place: many rounds for tens of them, two for thousands; a second at most


@dataclass(frozen=True, slots=True)
class SpeakerTable:
    """The known speakers, in the order of their names; the first axis of every array is num_speakers."""

    corpus: np.ndarray  # number of the speaker's corpus, int64
    classes: np.ndarray  # clips of each class, int64 (num_speakers, num_classes)
    genders: np.ndarray  # 1 at the speaker's own, int64 (num_speakers, num_genders)

    @classmethod
    def from_clips(cls, clips: ClipTable) -> SpeakerTable:
        """Count the clips of each known speaker."""
        known = clips.has_known_speaker
        code = clips.speaker.codes[known]
        num_speakers, num_classes = len(clips.speaker.names), len(clips.classes)
        corpus = np.full(num_speakers, len(clips.corpus.names), dtype=np.int64)
        np.minimum.at(corpus, code, clips.corpus.codes[known])  # of someone who speaks in several: the first
        classes = np.bincount(code * num_classes + clips.target[known], minlength=num_speakers * num_classes)
        genders = np.zeros((num_speakers, len(clips.gender.names)), dtype=np.int64)
        annotated = known & (clips.gender.codes >= 0)
        genders[clips.speaker.codes[annotated], clips.gender.codes[annotated]] = 1
        return cls(corpus, classes.reshape(num_speakers, num_classes), genders)

    def corpora(self) -> list[np.ndarray]:
        """Return the speakers of each corpus that has any, the corpus of most clips first."""
        clips = np.bincount(self.corpus, weights=self.classes.sum(axis=1))
        members = (np.flatnonzero(self.corpus == code) for code in np.argsort(-clips, kind="stable"))
        return [some for some in members if len(some)]

    def units(self) -> np.ndarray:
        """Number what is never divided, int64 (num_speakers,): a speaker, or all of a corpus that has fewer than `FEWEST`."""
        first = np.arange(len(self.corpus))
        for members in self.corpora():
            if len(members) < FEWEST:
                first[members] = members[0]
        units: np.ndarray = np.unique(first, return_inverse=True)[1]
        return units

    def groups(self, num_groups: int) -> np.ndarray:
        """Return the group of each speaker, int64 (num_speakers,): balanced within each corpus that has enough speakers.

        A corpus of fewer than `num_groups` speakers is in as many groups, one of fewer than `FEWEST` in a single one. No group
        is empty, unless there are fewer `units`.
        """
        groups = np.zeros(len(self.corpus), dtype=np.int64)
        sizes = np.zeros(num_groups, dtype=np.int64)  # clips
        for members in self.corpora():
            parts = min(num_groups, len(members)) if len(members) >= FEWEST else 1
            part = self.balanced(members, parts)
            clips = self.classes[members].sum(axis=1)
            place = np.arange(parts)  # the first corpus keeps its order
            if sizes.any():
                largest_first = np.argsort(-np.bincount(part, clips), kind="stable")
                place[largest_first] = np.argsort(sizes, kind="stable")[:parts]
            groups[members] = place[part]
            np.add.at(sizes, groups[members], clips)
        return groups

    def balanced(self, members: np.ndarray, num_groups: int) -> np.ndarray:
        """Return `balanced_groups` of some of the speakers."""
        return balanced_groups(self.classes[members], self.genders[members], num_groups)


def balanced_groups(classes: np.ndarray, genders: np.ndarray, num_groups: int) -> np.ndarray:
    """Return the group of each speaker, int64 (num_speakers,); no group is empty.

    `classes`: clips of each class, (num_speakers, num_classes). `genders`: 1 at a speaker's own, (num_speakers, num_genders).
    All genders together weigh as much as all classes. Speakers must number at least `num_groups`.
    """
    assert 1 <= num_groups <= len(classes) == len(genders)
    genders = genders[:, genders.any(axis=0)]
    features = np.concatenate([_shares(classes, num_groups), _shares(genders, num_groups)], axis=1)
    largest_first = np.argsort(-classes.sum(axis=1), kind="stable")
    groups, sums = _deal(features, largest_first, num_groups)
    _exchange(features, largest_first, groups, sums)
    first_member = [int(np.flatnonzero(groups == group)[0]) for group in range(num_groups)]
    numbered: np.ndarray = np.argsort(np.argsort(first_member))[groups]
    return numbered


def _shares(counts: np.ndarray, num_groups: int) -> np.ndarray:
    """Return `counts` (num_speakers, n) as shares of a group's due, in `_UNIT`s, weighted so that all tables count alike."""
    due = np.maximum(counts.sum(axis=0), 1) / num_groups
    weight = 1 / np.sqrt(max(counts.shape[1], 1))
    shares: np.ndarray = np.rint(counts / due * weight * _UNIT).astype(np.int64)
    return shares


def _deal(features: np.ndarray, order: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Assign each speaker to the group least like it (of equals the smaller); return the groups and the groups' sums."""
    groups = np.zeros(len(features), dtype=np.int64)
    sums = np.zeros((num_groups, features.shape[1]), dtype=np.int64)
    sizes = np.zeros(num_groups, dtype=np.int64)
    for speaker in order:
        group = np.lexsort((sizes, sums @ features[speaker]))[0]
        groups[speaker] = group
        sums[group] += features[speaker]
        sizes[group] += 1
    return groups, sums


def _exchange(features: np.ndarray, order: np.ndarray, groups: np.ndarray, sums: np.ndarray) -> None:
    """Let speakers change places, or move alone, while the groups become more alike; `groups` and `sums` change in place."""
    num_speakers = len(features)
    # A move is a change of places with nobody: one partner without features stands in every group.
    partners = np.concatenate([features, np.zeros_like(sums)])
    since_last_change = 0
    for visit in range(_VISITS):
        speaker = order[visit % num_speakers]
        home = groups[speaker]
        places = np.concatenate([groups, np.arange(len(sums))])
        change = partners - features[speaker]  # of the home group; the partner's group changes by as much the other way
        cost = (change * (sums[home] - sums[places] + change)).sum(axis=1)  # half the change of the squared lengths
        partner = int(np.argmin(cost))
        if cost[partner] < 0:
            away = places[partner]
            sums[home] += change[partner]
            sums[away] -= change[partner]
            groups[speaker] = away
            if partner < num_speakers:
                groups[partner] = home
            since_last_change = 0
        else:
            since_last_change += 1
        if since_last_change == num_speakers:
            break
