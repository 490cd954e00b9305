"""A corpus that grows gets more shards, and those that are there keep every byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards.assignment import MAX_SPEAKER_GROUPS, PLAN, assign_shards
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack

Tree = Callable[[Path], dict[str, bytes]]
UTTERANCE = Utterance("mini", "u", Path("u.wav"), "ann", "joy")


def clips(numbers: range | list[int]) -> list[Utterance]:
    return [replace(UTTERANCE, utterance_id=f"u{number:03d}", session=f"{number % 3}") for number in numbers]


def placed(planned: object) -> dict[str, str]:
    return {utterance.key: shard.path for shard in planned.shards for utterance in shard.utterances}  # type: ignore[attr-defined]


def tars(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith((".tar", ".parquet"))}


def test_adding_clips_changes_no_byte_of_what_is_there(tmp_path: Path, make_corpus: Callable, tree: Tree) -> None:
    """Clips between the old ones by key, copies of old ones, a new speaker, a new session; in one step or two."""
    utterances = make_corpus(sessions=4, clips=6)
    old = [u for i, u in enumerate(utterances[:18]) if i % 2]
    for copy, original in ((0, 1), (18, 3)):  # which sort before and after
        shutil.copy(utterances[original].audio_path, utterances[copy].audio_path)
        utterances[copy] = replace(utterances[copy], speaker=utterances[original].speaker, emotion=utterances[original].emotion)
    out = tmp_path / "out"
    pack(old, out, workers=1)
    before = tars(tree(out))
    report = pack(utterances, out, workers=1)
    after = tars(tree(out))
    assert before.items() <= after.items() and len(after) == len(before) + 8
    assert report.kept == 3
    assert {found.key for found in report.of("duplicate")} == {utterances[0].key, utterances[18].key}
    assert len(ShardIndex.load(out).metadata) == 22 and verify(out) == []
    steps = tmp_path / "steps"
    pack(old, steps, workers=1)
    pack(old, steps, workers=1)
    pack(utterances, steps, workers=1)
    assert tree(steps) == tree(out)


def test_what_vanishes_or_changes_makes_only_its_own_shard_again(tmp_path: Path, make_corpus: Callable, tree: Tree) -> None:
    utterances, out = make_corpus(sessions=3, clips=4), tmp_path / "out"
    pack([u for i, u in enumerate(utterances) if i % 4 < 2], out, workers=1)
    pack(utterances, out, workers=1)
    before = tars(tree(out))
    changed = [replace(u, emotion="fear") if u is utterances[2] else u for u in utterances if u is not utterances[4]]
    report = pack(changed, out, workers=1)
    after = tars(tree(out))
    assert {name for name in before if before[name] != after[name]} == {
        f"{shard}.{end}" for shard in ("1/mini-1-000001", "2/mini-2-000000") for end in ("tar", "parquet")
    }
    assert report.kept == 4
    assert len(ShardIndex.load(out).metadata) == 11


def test_packed_from_scratch_is_the_same_anywhere(tmp_path: Path, make_corpus: Callable, tree: Tree) -> None:
    utterances = make_corpus()
    pack(utterances, tmp_path / "here", workers=1)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "corpus", moved)
    pack([replace(u, audio_path=moved / u.audio_path.name) for u in utterances], tmp_path / "there", workers=1)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 40), min_size=1), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_plan_is_sticky_and_a_function_of_the_earlier_one(history: list[set[int]], random: object) -> None:
    """Through any history: planned again it is the same, in any order; who stays keeps the place; shards are never mixed."""
    earlier = assign_shards(clips([0]), [30.0], 1).to_saved()
    for numbers in history:
        utterances = clips(sorted(numbers))
        now = assign_shards(utterances, [30.0] * len(utterances), 1, earlier)
        random.shuffle(utterances)  # type: ignore[attr-defined]
        assert assign_shards(utterances, [30.0] * len(utterances), 1, earlier) == now
        assert assign_shards(utterances, [30.0] * len(utterances), 1, now.to_saved()) == now
        old = {key: f"{g}/{c}-{g}-{n:06d}.tar" for c, g, n, keys in earlier.shards for key in keys}
        assert all(path == old[key] for key, path in placed(now).items() if key in old)
        assert set(old.values()).isdisjoint(path for key, path in placed(now).items() if key not in old)
        assert sorted(placed(now)) == sorted(u.key for u in utterances)
        paths = [shard.path for shard in now.shards]
        assert len(set(paths)) == len(paths)
        earlier = now.to_saved()


def test_groups_stay_what_they_are_when_speakers_become_many() -> None:
    few = [replace(UTTERANCE, utterance_id=f"u{i}", speaker=f"s{i}") for i in range(MAX_SPEAKER_GROUPS)]
    many = [replace(UTTERANCE, utterance_id=f"u{i}", speaker=f"s{i}") for i in range(3 * MAX_SPEAKER_GROUPS)]
    first = assign_shards(few, [1.0] * len(few), 64)
    grown = assign_shards(many, [1.0] * len(many), 64, first.to_saved())
    assert placed(first).items() <= placed(grown).items()


def test_a_clip_that_moves_to_another_session_moves_to_another_shard() -> None:
    before = assign_shards(clips(range(6)), [1.0] * 6, 64)
    moved = [replace(u, session="2") if u.utterance_id == "u000" else u for u in clips(range(6))]
    after = assign_shards(moved, [1.0] * 6, 64, before.to_saved())
    assert placed(after)["mini-u000"] == "2/mini-2-000001.tar"
    assert {k: v for k, v in placed(after).items() if k != "mini-u000"} == {
        k: v for k, v in placed(before).items() if k != "mini-u000"
    }


@pytest.mark.parametrize("damage", ["half", "path", "types"])
def test_a_damaged_plan_is_refused_and_without_it_one_is_made_anew(tmp_path: Path, make_corpus: Callable, damage: str) -> None:
    """Its words become paths: one that would lead out of the folder is damage."""
    utterances, out = make_corpus(), tmp_path / "out"
    pack(utterances, out, workers=1)
    text = (out / PLAN).read_text()
    told = json.loads(text)
    told["shards"][0] |= {"path": {"group": "../../elsewhere"}, "types": {"keys": 7}, "half": {}}[damage]
    (out / PLAN).write_text(text[: len(text) // 2] if damage == "half" else json.dumps(told))
    with pytest.raises(UserError, match=r"plan\.json is damaged.*or delete it"):
        pack(utterances, out, workers=1)
    (out / PLAN).unlink()
    assert pack(utterances, out, workers=1).kept == 3
    assert (out / PLAN).read_text() == text
