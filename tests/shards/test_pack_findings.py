"""Everything that can be wrong with a clip is found in real files, done with as asked, and told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import odd_sounds
import pytest
import soundfile

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import RATE, audio
from ser_hpc.shards.index import DATASET, REPORT, ShardIndex
from ser_hpc.shards.pack_report import PackReport
from ser_hpc.shards.quality import DEFAULTS, KINDS, FindingKind, QualityRules
from ser_hpc.shards.read import ShardReader
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack

Tree = Callable[[Path], dict[str, bytes]]
FOUND_BY_DECODING: tuple[FindingKind, ...] = (
    "undecodable",
    "silent",
    "clipped",
    "out_of_range",
    "cancelled",
    "duplicate",
    "contradiction",
)

OTHERS = ("overlap", "near_duplicate")  # one is told by times: test_pack_names.py; one by fingerprints: test_near_duplicates.py
OF_SOUND = tuple(kind for kind in KINDS if kind not in OTHERS)


@pytest.fixture
def corpus(make_corpus: Callable) -> list[Utterance]:
    """Three sessions of eleven clips; of the last, clips with a defect each, named after it, the rest sound."""
    utterances = make_corpus(sessions=3, clips=11)
    at = 22
    first = utterances[0]
    samples, _ = soundfile.read(first.audio_path, dtype="int16")
    rng = np.random.default_rng(1)
    sounds: list[tuple[FindingKind, np.ndarray]] = [
        ("too_short", rng.integers(-9000, 9000, 1599, dtype=np.int16)),
        ("too_long", rng.integers(-9000, 9000, 3 * RATE + 1, dtype=np.int16)),
        ("silent", np.where(np.arange(41_120) % 13_000 == 7, 9000, 0).astype(np.int16)),  # 2.57 s with three clicks
        ("clipped", np.clip(rng.normal(0, 20_000, RATE // 2), -32768, 32767).astype(np.int16)),
    ]
    doubtful, spiky, noise = rng.uniform(-0.3, 0.3, (3, RATE // 2))
    spiky[700] = 1e29
    sounds += [("doubtful", doubtful), ("out_of_range", spiky), ("cancelled", np.stack([0.9 * noise, -noise], axis=1))]
    for kind, sound in sounds:
        utterances[at] = named(utterances[at], kind)
        path = utterances[at].audio_path
        soundfile.write(path, sound, RATE, subtype="FLOAT" if kind == "out_of_range" else "PCM_16")
        at += 1
    path = named(first, "doubtful").audio_path
    path.write_bytes(odd_sounds.with_sizes(path.read_bytes(), data=0x80000000))
    for kind, emotion in (("duplicate", first.emotion), ("contradiction", "surprise")):
        path = first.audio_path.with_name(f"{kind}.flac")  # the same sound in another container
        soundfile.write(path, samples, RATE)
        copy = replace(named(utterances[at], kind), audio_path=path, emotion=emotion, speaker=first.speaker)
        utterances[at] = copy
        at += 1
    path = first.audio_path.with_name("undecodable.flac")  # damaged in the middle, which its header does not tell
    content = bytearray(utterances[at - 1].audio_path.read_bytes())
    content[4000] ^= 0xFF
    path.write_bytes(content)
    utterances[at] = replace(named(utterances[at], "undecodable"), audio_path=path)
    return utterances


def named(utterance: Utterance, kind: str) -> Utterance:
    return replace(utterance, utterance_id=kind, audio_path=utterance.audio_path.with_name(f"{kind}.wav"))


def rules(**policies: str) -> QualityRules:
    """The defaults with clips over 3 s too long and `undecodable` left out, changed by `policies`."""
    choices = {"undecodable": "drop"} | policies
    return QualityRules.parse([f"{kind}={policy}" for kind, policy in choices.items()], longest_s=3.0)


def packed_ids(out: Path) -> set[str]:
    return set(ShardIndex.load(out).metadata.utterance_id)


def keys(report: PackReport, kind: FindingKind) -> set[str]:
    return {found.key.removeprefix("mini-") for found in report.of(kind)}


def test_each_defect_is_found_and_done_with_by_default_as_documented(tmp_path: Path, corpus: list[Utterance]) -> None:
    out = tmp_path / "out"
    report = pack(corpus, out, workers=1, rules=rules())
    for kind in OF_SOUND:
        assert keys(report, kind) == {kind} | ({"s1c0", "duplicate"} if kind == "contradiction" else set())
    dropped = {kind for kind in OF_SOUND if rules().policies[kind] == "drop"}
    assert dropped == {"undecodable", "too_short", "silent", "duplicate"}
    assert {u.utterance_id for u in corpus} - packed_ids(out) == dropped
    assert verify(out) == []
    told = json.loads((out / REPORT).read_text())["findings"]
    for kind in OF_SOUND:
        entry = next(entry for entry in told[kind]["clips"] if entry["key"] == f"mini-{kind}")
        assert told[kind]["policy"] == {**DEFAULTS, "undecodable": "drop"}[kind]
        assert entry["source"] == next(u.audio_path.name for u in corpus if u.utterance_id == kind)
    assert told["silent"]["clips"][0]["detail"].startswith("2.57 s")
    assert re.search(r"surprise by sp10, but sounds exactly as mini-s1c0 \(anger by sp10\)", json.dumps(told))
    with ShardReader(ShardIndex.load(out)) as reader:  # nobody else's sound has moved
        for i, utterance_id in enumerate(reader.index.metadata.utterance_id):
            path = next(u.audio_path for u in corpus if u.utterance_id == utterance_id)
            if utterance_id in ("out_of_range", "cancelled"):
                continue  # not as it stands in the file
            np.testing.assert_array_equal(reader.read(i), soundfile.read(path, dtype="int16")[0])


@pytest.mark.parametrize("kind", OF_SOUND)
def test_each_kind_can_be_dropped_kept_or_made_to_fail(
    tmp_path: Path, corpus: list[Utterance], tree: Tree, kind: FindingKind
) -> None:
    """Whatever was asked before: changing one's mind ends in the bytes of having asked so at first."""
    out = tmp_path / "out"
    for policy in ("drop", "keep", "drop"):
        if (kind, policy) == ("undecodable", "keep"):
            continue
        afresh = tmp_path / f"{policy}-afresh"
        pack(corpus, out, workers=1, rules=rules(**{kind: policy}))
        pack(corpus, afresh, workers=1, rules=rules(**{kind: policy}))
        assert (kind in packed_ids(out)) == (policy == "keep")
        assert tree(out) == tree(afresh)
        shutil.rmtree(afresh)
    with pytest.raises(UserError, match=rf"{kind}\.(wav|flac): {kind}: .*(\n.*)*--on {kind}=drop"):
        pack(corpus, out, workers=1, rules=rules(**{kind: "fail"}))
    with pytest.raises(UserError, match=kind):
        pack(corpus, tmp_path / "new", workers=1, rules=rules(**{kind: "fail"}))
    assert (tmp_path / "new").exists() == (kind in FOUND_BY_DECODING)  # what headers tell fails before anything is written
    assert not (tmp_path / "new" / DATASET).exists()
    assert list((tmp_path / "new").rglob("*.tmp")) == []


def test_everything_that_fails_is_named_at_once_and_the_rest_is_kept(tmp_path: Path, corpus: list[Utterance]) -> None:
    fail = dict.fromkeys(FOUND_BY_DECODING, "fail")
    with pytest.raises(UserError) as caught:
        pack(corpus, tmp_path / "out", workers=1, rules=rules(**fail))
    for kind in FOUND_BY_DECODING:
        assert re.search(rf"{kind}\.(wav|flac): {kind}: ", str(caught.value))
    assert "8 clips cannot be packed" in str(caught.value)  # the contradiction's two others as well
    assert pack(corpus, tmp_path / "out", workers=1, rules=rules()).kept == 2


def test_what_headers_tell_is_all_named_before_anything_is_written(tmp_path: Path, make_corpus: Callable) -> None:
    utterances = make_corpus()
    utterances[2].audio_path.write_text("not audio at all, only words")
    wav = utterances[5].audio_path
    wav.write_bytes(wav.read_bytes()[:-1000])
    with pytest.raises(UserError) as caught:
        pack(utterances, tmp_path / "out", workers=1)
    assert f"{utterances[2].audio_path}: undecodable: is a text file" in str(caught.value)
    assert f"{wav}: undecodable: is truncated" in str(caught.value)
    assert "2 clips" in str(caught.value) and "--on undecodable=drop" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_silent_clips_are_no_copies_of_each_other_once_they_are_dropped(tmp_path: Path, make_corpus: Callable) -> None:
    utterances = make_corpus(sessions=1, clips=4)
    for utterance in utterances[:2]:
        soundfile.write(utterance.audio_path, np.zeros(8000, np.int16), RATE)
    report = pack(utterances, tmp_path / "out", workers=1)
    assert keys(report, "silent") == {"s1c0", "s1c1"} and not report.of("contradiction")
    kept = pack(utterances, tmp_path / "out", workers=1, rules=QualityRules.parse(["silent=keep"]))
    assert kept.clips == 4 and keys(kept, "contradiction") == {"s1c0", "s1c1"}


def test_the_first_of_equal_sounds_comes_back_when_its_original_is_gone(
    tmp_path: Path, make_corpus: Callable, tree: Tree
) -> None:
    """Which is in another shard: that is rewritten although neither its clips nor their sources have changed."""
    utterances = make_corpus(sessions=3, clips=2)
    for copy in (2, 4):
        shutil.copy(utterances[0].audio_path, utterances[copy].audio_path)
        utterances[copy] = replace(utterances[copy], speaker=utterances[0].speaker)
    out = tmp_path / "out"
    pack(utterances, out, workers=1)
    assert {"s1c0", "s2c0", "s3c0"} & packed_ids(out) == {"s1c0"}
    pack(utterances[1:], out, workers=1)
    assert {"s1c0", "s2c0", "s3c0"} & packed_ids(out) == {"s2c0"}
    pack(utterances[1:], tmp_path / "afresh", workers=1)
    assert tree(out) == tree(tmp_path / "afresh")


def test_a_copy_costs_no_second_decoding(tmp_path: Path, make_corpus: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shard is written twice, but the payloads of the others are copied."""
    utterances = make_corpus(sessions=2, clips=4)
    shutil.copy(utterances[0].audio_path, utterances[4].audio_path)
    utterances[4] = replace(utterances[4], speaker=utterances[0].speaker)
    decoded: list[Path] = []
    decode = audio.decode
    monkeypatch.setattr(audio, "decode", lambda path, *segment: decoded.append(path) or decode(path, *segment))
    assert pack(utterances, tmp_path / "out", workers=1).clips == 7
    assert len(decoded) == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_a_corpus_of_which_nothing_is_left_is_refused(tmp_path: Path, make_corpus: Callable, workers: int) -> None:
    utterances = make_corpus(sessions=1, clips=2)
    for utterance in utterances:
        soundfile.write(utterance.audio_path, np.zeros(8000, np.int16), RATE)
    with pytest.raises(UserError, match=r"no clip to pack.*silent"):
        pack(utterances, tmp_path / "out", workers=workers)
    for utterance in utterances:
        utterance.audio_path.write_bytes(b"")
    for nothing in (utterances, []):
        with pytest.raises(UserError, match="no clip to pack"):
            pack(nothing, tmp_path / "other", workers=workers, rules=rules())
    assert not (tmp_path / "other").exists()


def test_files_that_the_parser_passed_over_are_in_the_report(tmp_path: Path, make_corpus: Callable) -> None:
    report = pack(make_corpus(), tmp_path / "out", workers=1, left_out=[(tmp_path / "odd.wav", "no such name")])
    assert report.left_out == ((tmp_path / "odd.wav", "no such name"),)
    told = json.loads((tmp_path / "out" / REPORT).read_text())["left_out"]
    assert told == [{"source": "odd.wav", "reason": "no such name"}]
    assert str(tmp_path) not in (tmp_path / "out" / REPORT).read_text()
