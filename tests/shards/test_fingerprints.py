"""Acoustic fingerprints: what leaves them as they are; the search for pairs finds what was planted, however it is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from babble import babble
from hypothesis import given, settings
from hypothesis import strategies as st

from ser_hpc.shards import fingerprint_search
from ser_hpc.shards.fingerprint import HOP, SHORTEST, SILENCE, fingerprint
from ser_hpc.shards.fingerprint_file import SUFFIX, read_fingerprints, write_fingerprints
from ser_hpc.shards.fingerprint_search import PER_CLIP, Fingerprints, find_pairs

DIGEST = "0" * 64


def samples(sound: np.ndarray) -> np.ndarray:
    return np.rint(sound * 32767).astype(np.int16)


def joined(prints: list[np.ndarray]) -> Fingerprints:
    return Fingerprints.join([np.concatenate(prints)], [np.array([len(words) for words in prints])])


def as_set(prints: Fingerprints, dataset: np.ndarray | None = None) -> set[tuple[int, ...]]:
    return set(map(tuple, find_pairs(prints, dataset).positions.tolist()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 9 * HOP))
def test_inversion_changes_nothing_and_hops_shift_the_words(seed: int, cut: int) -> None:
    sound = samples(babble(np.random.default_rng(seed), 0.7))
    words = fingerprint(sound)
    np.testing.assert_array_equal(fingerprint(-sound), words)
    hops = cut // HOP
    shifted = fingerprint(sound[hops * HOP :])
    both = (shifted != SILENCE) & (words[hops:] != SILENCE)  # what is loudest may have been cut off
    np.testing.assert_array_equal(shifted[both], words[hops:][both])
    assert both.mean() > 0.5


@pytest.mark.parametrize("length", [0, 1, SHORTEST - 1, SHORTEST, SHORTEST + HOP - 1, SHORTEST + HOP])
def test_a_word_every_hop_and_none_for_what_is_too_short(length: int) -> None:
    sound = samples(babble(np.random.default_rng(0), 1.0))[:length]
    assert len(fingerprint(sound)) == (0 if length < SHORTEST else 1 + (length - SHORTEST) // HOP)


@pytest.mark.parametrize("faint", [0, 1], ids=["digital silence", "the last bit at random"])
def test_silence_tells_nothing_so_that_clips_filled_up_with_it_are_not_alike(faint: int) -> None:
    rng = np.random.default_rng(1)

    def filled(sound: np.ndarray) -> np.ndarray:
        return np.concatenate([sound, rng.integers(-faint, faint + 1, 5 * 16_000).astype(np.int16)])

    prints = [fingerprint(filled(samples(babble(rng, 0.6)))) for _ in range(30)]
    assert all((words[100:] == SILENCE).all() and (words[:30] != SILENCE).any() for words in prints)
    nothing = fingerprint(filled(np.zeros(0, np.int16)))
    assert (nothing == SILENCE).all()
    assert as_set(joined([*prints, nothing, nothing])) == set()


def test_an_hour_is_cut_into_blocks_as_a_minute_is() -> None:
    sound = samples(babble(np.random.default_rng(2), 3.0))
    alone = fingerprint(sound)
    np.testing.assert_array_equal(fingerprint(np.tile(sound, 30))[: len(alone)], alone)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[np.ndarray], set[tuple[int, int]]]:
    """Fingerprints of random words, of which some are cut from the one before, with a few bits changed; and these pairs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    prints = [rng.integers(1, 1 << 16, rng.integers(0, 200)).astype(np.uint16) for _ in range(draw(st.integers(2, 12)))]
    pairs = set()
    for one in range(0, len(prints) - 1, 2):
        if len(words := prints[one]) >= 60:
            copy = words[rng.integers(0, len(words) // 2) :].copy()
            copy[25::30] ^= 3
            prints[one + 1] = copy
            pairs.add((one, one + 1))
    return prints, pairs


@settings(max_examples=40, deadline=None)
@given(corpora())
def test_what_was_planted_is_found_and_nothing_else(corpus: tuple[list[np.ndarray], set[tuple[int, int]]]) -> None:
    prints, pairs = corpus
    assert as_set(joined(prints)) == pairs


@settings(max_examples=15, deadline=None)
@given(corpora(), st.integers(50, 400))
def test_the_pairs_do_not_depend_on_how_the_work_is_cut(
    corpus: tuple[list[np.ndarray], set[tuple[int, int]]], at_once: int
) -> None:
    prints, pairs = corpus
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(fingerprint_search, "_KEYS_AT_ONCE", at_once)
        changed.setattr(fingerprint_search, "_AT_ONCE", 17 + at_once)
        assert as_set(joined(prints)) == pairs


def test_only_pairs_between_datasets_where_these_are_asked_for() -> None:
    rng = np.random.default_rng(3)
    words = [rng.integers(1, 1 << 16, 100).astype(np.uint16) for _ in range(2)]
    prints = joined([words[0], words[0], words[1], words[1]])
    assert as_set(prints) == {(0, 1), (2, 3)}
    assert as_set(prints, np.array([0, 0, 0, 1])) == {(2, 3)}


def test_hundreds_of_copies_are_all_linked_without_comparing_each_with_each() -> None:
    """A jingle, a beep, a corpus packed with five hundred copies of one clip."""
    rng = np.random.default_rng(4)
    words = rng.integers(1, 1 << 16, 100).astype(np.uint16)
    copies = 500
    found = as_set(joined([words] * copies))
    assert {(i, i + 1) for i in range(copies - 1)} <= found and {(0, i) for i in range(1, copies)} <= found
    assert len(found) < 3 * copies


def test_of_many_altered_copies_all_are_linked_and_the_pairs_are_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred copies of one clip in two groups, each nearer to its own than to the other."""
    rng = np.random.default_rng(7)
    words = rng.integers(1, 1 << 16, 100).astype(np.uint16)
    copies, groups = 200, [words ^ (rng.random(100) < 0.3).astype(np.uint16) for _ in range(2)]
    prints = [groups[i % 2] ^ (rng.random(100) < 0.1).astype(np.uint16) << 1 for i in range(copies)]
    found = as_set(joined(prints))
    assert len(found) < (PER_CLIP + 1) * copies < copies * copies / 4
    reached = {0}
    for _ in range(copies):
        reached |= {clip for pair in found if reached & set(pair) for clip in pair}
    assert reached == set(range(copies))
    monkeypatch.setattr(fingerprint_search, "_PAIRS_AT_ONCE", 300)
    assert as_set(joined(prints)) == found, "however the work is cut"


def test_pairs_that_do_not_count_take_no_place() -> None:
    """Thirty clips of the same samples, and one that is a little off: it is named with one of them."""
    words = np.random.default_rng(8).integers(1, 1 << 16, 100).astype(np.uint16)
    prints = joined([words] * 30 + [words ^ (np.arange(100) % 50 == 0).astype(np.uint16)])
    found = find_pairs(prints, wanted=lambda pairs: pairs.take((pairs.first == 30) | (pairs.second == 30)))
    assert found.positions.tolist() == [[i, 30] for i in range(30)]


def test_a_sliver_in_common_is_no_pair_but_a_half_is() -> None:
    rng = np.random.default_rng(5)
    whole = rng.integers(1, 1 << 16, 400).astype(np.uint16)
    assert as_set(joined([whole[:200], whole[160:360]])) == set()
    assert as_set(joined([whole[:200], whole[100:300]])) == {(0, 1)}


def test_nothing_but_what_was_written_is_read(tmp_path: Path) -> None:
    """Cut, flipped anywhere, of another tar, of another number of clips: as if it were not there."""
    tar = tmp_path / "a.tar"
    rng = np.random.default_rng(6)
    prints = [rng.integers(0, 1 << 16, n).astype(np.uint16) for n in (5, 0, 9)]
    assert read_fingerprints(tar, DIGEST, 3) is None
    write_fingerprints(tar, DIGEST, prints)
    words, lengths = read_fingerprints(tar, DIGEST, 3) or (None, None)
    np.testing.assert_array_equal(words, np.concatenate(prints))
    np.testing.assert_array_equal(lengths, [5, 0, 9])
    assert read_fingerprints(tar, "1" * 64, 3) is None and read_fingerprints(tar, DIGEST, 2) is None
    file = tar.with_suffix(SUFFIX)
    content = file.read_bytes()
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        assert read_fingerprints(tar, DIGEST, 3) is None
        file.write_bytes(content[:at])
        assert read_fingerprints(tar, DIGEST, 3) is None
