"""Folds over several corpora: they are rotated and crossed, small ones stay whole, caps thin out training and nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import table

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.labels import LabelSet, label_set_as_annotated
from ser_hpc.corpora.utterance import Metadata
from ser_hpc.protocols.folds import FoldPlan, plan_folds
from ser_hpc.protocols.speaker_balance import balanced_groups

ROTATED = ("leave_one_session_out", "leave_one_speaker_out", "speaker_groups", "leave_one_corpus_out")
TWO = LabelSet("two", ("happy", "sad"), {"other": None})
PARTS = ("train", "dev", "test")
Rows = list[dict[str, Any]]


def corpus(name: str, speakers: int, per_session: int = 1, clips: int = 4, unknown: int = 0) -> Rows:
    """Speakers of alternating gender, each with happy and sad clips in one session; then clips of unknown speakers."""
    rows = [
        {
            "speaker": f"s{s}",
            "session": f"x{s // per_session}",
            "gender": ("female", "male")[s % 2],
            "utterance_id": f"s{s}_{i}",
        }
        | {"emotion": ("happy", "sad")[i % 2]}
        for s in range(speakers)
        for i in range(clips)
    ]
    rows += [
        {"speaker": "unknown", "session": "x0", "utterance_id": f"u_{i}", "emotion": ("happy", "sad")[i % 2]}
        for i in range(unknown)
    ]
    return [row | {"corpus": name} for row in rows]


@st.composite
def several(draw: st.DrawFn) -> Rows:
    """Two to four corpora, the first of four speakers or more; sessions of one or two, uneven clips, unknown speakers."""
    rows: Rows = []
    for i, name in enumerate(draw(st.permutations(["a", "a_b", "b", "c"]))[: draw(st.integers(2, 4))]):
        speakers = draw(st.integers(0 if i else 4, 8))
        found = corpus(name, speakers, draw(st.integers(1, 2)), draw(st.integers(2, 5)), draw(st.integers(0, 3)))
        rows += [row | {"emotion": draw(st.sampled_from([row["emotion"]] * 9 + ["other"]))} for row in found]
    return rows


def attempt(metadata: Metadata, protocol: str, **more: Any) -> FoldPlan | None:
    """The plan, or nothing where what was drawn is too small or lopsided for the protocol."""
    try:
        return plan_folds(metadata, TWO, protocol, None, **more)
    except UserError as error:
        expected = ("needs at least", "without a single training clip", "need a known speaker each")
        assert any(words in str(error) for words in expected), error
        return None


def speakers_of(metadata: Metadata, positions: np.ndarray) -> set[tuple[str, str]]:
    pairs = zip(metadata.corpus[positions], metadata.speaker[positions], strict=True)
    return {(corpus, speaker) for corpus, speaker in pairs if speaker != "unknown"}


@settings(deadline=None, derandomize=True)
@given(several(), st.sampled_from(ROTATED))
def test_known_clips_are_tested_once_and_no_speaker_or_small_corpus_is_divided(rows: Rows, protocol: str) -> None:
    """What every rotated protocol promises, whatever corpora come together."""
    metadata = table(rows)
    if (fold_plan := attempt(metadata, protocol)) is None:
        return
    known = metadata.speaker != "unknown"
    tested = np.concatenate([fold.test.positions for fold in fold_plan.folds])
    assert sorted(tested.tolist()) == np.flatnonzero(known & (metadata.emotion != "other")).tolist()
    in_corpus = Counter(name for name, _ in speakers_of(metadata, tested))
    for fold in fold_plan.folds:
        parts = [getattr(fold, part).positions for part in PARTS]
        train, dev, test = (speakers_of(metadata, part) for part in parts)
        assert len(set(np.concatenate(parts).tolist())) == sum(map(len, parts))
        assert not train & dev and not train & test and not dev & test
        assert known[parts[1]].all() and known[parts[2]].all() and all(map(len, parts[::2]))
        trained = {name for name, _ in train}
        assert not [name for name, _ in test if in_corpus[name] < 3 and name in trained], "a small corpus is divided"


@settings(deadline=None, derandomize=True)
@given(several())
def test_leaving_a_corpus_out_leaves_all_of_it_out(rows: Rows) -> None:
    metadata = table(rows)
    if (fold_plan := attempt(metadata, "leave_one_corpus_out")) is None:
        return
    usable = metadata.emotion != "other"
    for fold in fold_plan.folds:
        (tested,) = set(metadata.corpus[fold.test.positions])
        assert fold.test.description == f"corpus {tested}"
        rest = np.flatnonzero(usable & (metadata.corpus != tested))
        assert sorted([*fold.train.positions, *fold.dev.positions]) == rest.tolist()
        assert len(fold.dev.positions)


@settings(deadline=None, derandomize=True)
@given(several(), st.sampled_from([*ROTATED, "cross_corpus"]), st.randoms(use_true_random=False))
def test_neither_the_order_of_clips_nor_of_datasets_changes_a_plan(rows: Rows, protocol: str, random: Any) -> None:
    """Caps included: the same clips are left out."""
    more = {"max_per_class": 3} | ({"test_corpora": [rows[0]["corpus"]]} if protocol == "cross_corpus" else {})
    shuffled = list(rows)
    random.shuffle(shuffled)
    plans = []
    for some in (rows, shuffled, sorted(rows, key=lambda row: row["corpus"], reverse=True)):
        metadata = table(some)
        try:
            fold_plan = plan_folds(metadata, TWO, protocol, None, **more)
        except UserError as error:
            plans.append(str(error))
            continue
        parts = [getattr(fold, part) for fold in fold_plan.folds for part in PARTS]
        names = [sorted(metadata.corpus[p.positions] + "/" + metadata.utterance_id[p.positions]) for p in parts]
        plans.append((names, [(p.description, p.speakers, p.sessions) for p in parts], fold_plan.notes))
    assert plans[0] == plans[1] == plans[2]


def test_the_dev_part_is_a_fifth_of_each_training_corpus_that_has_three_speakers() -> None:
    metadata = table([*corpus("big", 20), *corpus("four", 4), *corpus("pair", 2, clips=60), *corpus("nobody", 0, unknown=9)])
    folds = plan_folds(metadata, TWO, "leave_one_corpus_out", None).folds
    assert [fold.test.description for fold in folds] == ["corpus big", "corpus four", "corpus pair"]
    dev = [Counter(name for name, _ in speakers_of(metadata, fold.dev.positions)) for fold in folds]
    assert dev == [{"four": 1}, {"big": 4}, {"big": 4, "four": 1}]
    assert folds[2].train.description == "corpora big, four, nobody without the dev speakers; 9 clips of unknown speakers"
    assert (metadata.corpus[folds[2].train.positions] == "nobody").sum() == 9
    genders = Counter(metadata.gender[folds[1].dev.positions])
    assert genders["female"] == genders["male"]


def test_dev_is_of_a_small_corpus_where_no_training_corpus_has_three_speakers() -> None:
    metadata = table([*corpus("big", 5), *corpus("pair", 2)])
    fold = plan_folds(metadata, TWO, "leave_one_corpus_out", None).folds[0]
    assert (fold.test.description, len(fold.train.speakers), len(fold.dev.speakers)) == ("corpus big", 1, 1)


def test_cross_corpus_tests_what_it_is_told_to() -> None:
    metadata = table([*corpus("de", 5), *corpus("en", 10), *corpus("ur", 6, unknown=3), *corpus("xx", 5)])
    (fold,) = plan_folds(metadata, TWO, "cross_corpus", None, test_corpora=["ur"]).folds
    assert {*metadata.corpus[fold.train.positions]} == {*metadata.corpus[fold.dev.positions]} == {"de", "en", "xx"}
    assert {*metadata.corpus[fold.test.positions]} == {"ur"} and len(fold.test.positions) == 24, (
        "unknown speakers are not tested"
    )
    some = plan_folds(metadata, TWO, "cross_corpus", 1, test_corpora=["ur", "de"], train_corpora=["en"])
    assert {*metadata.corpus[some.folds[0].train.positions]} == {"en"} == {*metadata.corpus[some.folds[0].dev.positions]}
    assert some.folds[0].test.description == "corpora de, ur"
    assert any("23 of 107 clips that have a class are in no part" in note for note in some.notes), "xx, and the unknown"


def test_sessions_are_left_out_within_every_corpus() -> None:
    """Fold k tests the k-th session of each and chooses on the next; a corpus that has no session k trains, which is told."""
    metadata = table([*corpus("a", 10, per_session=2), *corpus("b", 3), *corpus("c", 2), *corpus("d", 2, per_session=2)])
    fold_plan = plan_folds(metadata, TWO, "leave_one_session_out", None)
    assert [fold.test.description for fold in fold_plan.folds] == [
        "sessions a/x0, b/x0, c/x0, d/x0", "sessions a/x1, b/x1, c/x1", "sessions a/x2, b/x2", "session a/x3", "session a/x4",
    ]  # fmt: skip
    assert [fold.dev.sessions for fold in fold_plan.folds] == [
        ("a/x1", "b/x1", "c/x1"), ("a/x2", "b/x2", "c/x0"), ("a/x3", "b/x0"), ("a/x4",), ("a/x0",),
    ]  # fmt: skip
    assert "c has 2 of the 5 sessions: in folds 2 to 4 all of it trains." in fold_plan.notes
    assert {name for name in fold_plan.folds[3].train.sessions if name[0] != "a"} == {
        "b/x0", "b/x1", "b/x2", "c/x0", "c/x1", "d/x0",
    }  # fmt: skip


def test_groups_hold_some_of_each_corpus_and_alike_many_clips() -> None:
    metadata = table([*corpus("a", 11), *corpus("b", 7), *corpus("four", 4, clips=8), *corpus("pair", 2, clips=12)])
    fold_plan = plan_folds(metadata, TWO, "speaker_groups", None)
    found = [Counter(name for name, _ in speakers_of(metadata, fold.test.positions)) for fold in fold_plan.folds]
    assert len(found) == 5 and all(2 <= count["a"] <= 3 and 1 <= count["b"] <= 2 for count in found)
    assert sorted(count["four"] for count in found) == [0, 1, 1, 1, 1]
    assert sorted(count["pair"] for count in found) == [0, 0, 0, 0, 2]
    sizes = [len(fold.test.positions) for fold in fold_plan.folds]
    assert max(sizes) - min(sizes) <= 24 and sum(sizes) == len(metadata), "no further apart than the pair, which is one block"
    assert "Fewer than 3 known speakers, who stay together in every fold: pair." in fold_plan.notes


def test_small_corpora_are_left_out_as_one_speaker() -> None:
    metadata = table([*corpus("a", 3), *corpus("pair", 2), *corpus("single", 1)])
    folds = plan_folds(metadata, TWO, "leave_one_speaker_out", 5).folds
    assert [fold.test.description for fold in folds] == [
        "speaker a/s0", "speaker a/s1", "speaker a/s2", "speakers pair/s0, pair/s1", "speaker single/s0",
    ]  # fmt: skip


@settings(deadline=None, derandomize=True)
@given(several(), st.integers(1, 6), st.sampled_from(["speaker_groups", "leave_one_corpus_out"]))
def test_a_cap_thins_out_training_and_nothing_else(rows: Rows, most: int, protocol: str) -> None:
    """Exactly as many of a class stay as are allowed; a tighter cap keeps some of what a wider one keeps; all is told."""
    metadata = table(rows)
    if (whole := attempt(metadata, protocol)) is None:
        return
    capped, wider = (plan_folds(metadata, TWO, protocol, None, max_per_class=cap) for cap in (most, most + 1))
    left_out = []
    for full, fold, more in zip(whole.folds, capped.folds, wider.folds, strict=True):
        for part in ("dev", "test"):
            assert np.array_equal(getattr(full, part).positions, getattr(fold, part).positions)
        assert {*fold.train.positions} <= {*more.train.positions} <= {*full.train.positions}
        before, after = (Counter(metadata.emotion[some.train.positions]) for some in (full, fold))
        assert after == {emotion: min(count, most) for emotion, count in before.items()}
        left_out.append(before.total() - after.total())
    low, high = min(left_out), max(left_out)
    told = f"{low} training" if low == high else f"{low} to {high} training"
    assert [note for note in capped.notes if "folds.max_per_class" in note and told in note]


def test_what_a_cap_keeps_is_a_fair_draw_and_no_matter_of_the_other_clips() -> None:
    """Of two corpora both are kept in proportion; adding a third changes the order of no two clips of the others."""
    rows = [*corpus("a", 50, clips=20), *corpus("b", 50, clips=20)]

    def kept(rows: Rows) -> set[str]:
        metadata = table(rows)
        positions = (
            plan_folds(metadata, TWO, "cross_corpus", None, test_corpora=["t"], max_per_class=200).folds[0].train.positions
        )
        return {f"{metadata.corpus[i]}/{metadata.utterance_id[i]}" for i in positions}

    few = kept([*rows, *corpus("t", 3)])
    assert 150 < len([name for name in few if name.startswith("a/")]) < 250 and len(few) == 400
    third = kept([*rows, *corpus("aa", 50, clips=20), *corpus("t", 3)])
    assert {name for name in third if not name.startswith("aa/")} < few


def test_one_sound_in_two_corpora_is_found_under_any_name() -> None:
    """The same recording packed in two corpora: refused where it stands on two sides; told where its labels differ."""
    rows = [*corpus("a", 5), *corpus("b", 5), *corpus("c", 5)]
    rows[0] |= {"sound": "same"}
    rows[20 + 1] |= {"sound": "same"}  # sad, and happy in a
    with pytest.raises(UserError, match="identical sounds on two sides") as refused:
        plan_folds(table(rows), TWO, "leave_one_corpus_out", None)
    assert "a/s0_0 = b/s0_1" in str(refused.value)
    for protocol, more in (("leave_one_corpus_out", {}), ("cross_corpus", {"test_corpora": ["b"]})):
        with pytest.raises(UserError, match="a/s0_0 = b/s0_1"):
            plan_folds(table(rows), TWO, protocol, None, **more)
    rows[2] |= {"sound": "alike"}
    rows[20 + 2] |= {"sound": "alike"}  # happy in both: no contradiction
    same_side = plan_folds(table(rows), TWO, "cross_corpus", None, test_corpora=["c"])
    assert "1 sounds occur under more than one label: a/s0_0 = b/s0_1." in same_side.notes


THREE = [*corpus("a", 5), *corpus("b", 5), *corpus("nobody", 0, unknown=6)]
REFUSED: dict[str, tuple[Rows, str, int | None, dict[str, Any], tuple[str, ...]]] = {
    "one corpus left out": (corpus("a", 9), "leave_one_corpus_out", None, {}, ("at least two corpora", "data.shards")),
    "one of known speakers": (
        [*corpus("a", 9), *corpus("b", 0, unknown=9)], "leave_one_corpus_out", None, {}, ("there are 1 (a)", "a, b"),
    ),
    "another number than corpora": (THREE, "leave_one_corpus_out", 5, {}, ("5 folds", "(a, b)", "ask for 2")),
    "nobody to choose on": ([*corpus("a", 5), *corpus("b", 1)], "leave_one_corpus_out", None, {}, ("corpus b", "is b/s0")),
    "no corpus to test": (THREE, "cross_corpus", None, {}, ("folds.test_corpora", "a, b, nobody")),
    "a corpus that is not there": (THREE, "cross_corpus", None, {"test_corpora": ["iemocap"]}, ("iemocap", "a, b, nobody")),
    "trained and tested": (
        THREE, "cross_corpus", None, {"test_corpora": ["a", "b"], "train_corpora": ["b"]}, ("b stands in both",),
    ),
    "unknown speakers tested": (THREE, "cross_corpus", None, {"test_corpora": ["nobody"]}, ("no known speaker", "a, b")),
    "everything tested": (THREE[:40], "cross_corpus", None, {"test_corpora": ["a", "b"]}, ("no corpus left",)),
    "two folds of one": (THREE, "cross_corpus", 2, {"test_corpora": ["a"]}, ("2 folds", "ask for 1")),
    "corpora of another protocol": (THREE, "speaker_groups", None, {"test_corpora": ["a"]}, ("cross_corpus", "speaker_groups")),
    "too few sessions in each": (
        [*corpus("a", 2), *corpus("b", 2)], "leave_one_session_out", None, {}, ("at least three", "has 2", "within a corpus"),
    ),
    "two small corpora": (
        [*corpus("a", 2), *corpus("b", 2)], "speaker_groups", None, {}, ("at least three speakers", "has 2", "counts as one"),
    ),
    "more groups than what can be divided": (
        [*corpus("a", 4), *corpus("pair", 2)], "speaker_groups", 6, {}, ("6 folds", "ask for 3 to 5", "counts as one"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("trap", REFUSED)
def test_refused_by_name(trap: str) -> None:
    rows, protocol, count, more, words = REFUSED[trap]
    with pytest.raises(UserError) as refused:
        plan_folds(table(rows), TWO, protocol, count, **more)
    for word in words:
        assert word in str(refused.value)


def digest_of(metadata: Metadata, protocol: str) -> str:
    """The digest of a plan over one corpus, made again clip by clip from what the protocols say."""
    usable = [i for i in range(len(metadata)) if metadata.emotion[i] != "other"]
    known = {i for i in usable if metadata.speaker[i] != "unknown"}
    group: dict[int, Any] = {
        i: metadata.session[i] if protocol == "leave_one_session_out" else metadata.speaker[i] for i in usable
    }
    if protocol == "speaker_groups":
        clips: dict[str, list[int]] = defaultdict(list)
        for i in sorted(known):
            clips[metadata.speaker[i]].append(i)
        names = sorted(clips)
        classes = [[sum(metadata.emotion[i] == emotion for i in clips[name]) for emotion in TWO.classes] for name in names]
        genders = [[int(any(metadata.gender[i] == word for i in clips[name])) for word in ("female", "male")] for name in names]
        groups = balanced_groups(np.array(classes), np.array(genders), min(5, len(names))).tolist()
        group = {i: groups[names.index(metadata.speaker[i])] if i in known else None for i in usable}
    order = sorted({group[i] for i in known})
    content = "".join("\n".join(column) + "\0" for column in (metadata.corpus, metadata.utterance_id)).encode()
    for k, tested in enumerate(order):
        dev = order[(k + 1) % len(order)]
        sides = (
            [i for i in usable if group[i] not in (tested, dev)],
            [i for i in known if group[i] == dev],
            [i for i in known if group[i] == tested],
        )
        for side in sides:
            content += len(side).to_bytes(8, "little") + b"".join(i.to_bytes(8, "little") for i in sorted(side))
    return hashlib.sha256(content).hexdigest()


@settings(deadline=None, derandomize=True)
@given(several(), st.sampled_from(ROTATED[:3]), st.randoms(use_true_random=False))
def test_the_digest_over_one_corpus_is_what_it_always_was(rows: Rows, protocol: str, random: Any) -> None:
    """Runs that were planned before there were several corpora go on."""
    one = [row for row in rows if row["corpus"] == rows[0]["corpus"]]
    metadata = table(random.sample(one, len(one)))
    if (fold_plan := attempt(metadata, protocol)) is None:
        return
    assert fold_plan.digest == digest_of(metadata, protocol)


def test_every_corpus_as_annotated_together() -> None:
    """A label set need not know that there are several: the same names of speakers, sessions and clips are kept apart."""
    metadata = table([*corpus("a", 4, 2), *corpus("b", 4, 2)])
    fold_plan = plan_folds(metadata, label_set_as_annotated(metadata), "leave_one_corpus_out", 2)
    assert fold_plan.folds[0].test.speakers == ("a/s0", "a/s1", "a/s2", "a/s3")
    assert fold_plan.folds[1].test.sessions == ("b/x0", "b/x1")
