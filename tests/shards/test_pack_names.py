"""Packing lets no person in under two names, and what it found is told where scores are read."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small import tones

from ser_hpc.core.errors import UserError
from ser_hpc.corpora.name_overrides import NameOverrides
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.pack import main
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.pack_report import packing_notes
from ser_hpc.shards.quality import QualityRules
from ser_hpc.shards.write import pack


def a_table(folder: Path, *rows: str, columns: str = "audio,emotion,speaker,session") -> Path:
    """A csv of short clips, each another sound; a row is all but the audio."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [columns]
    for number, row in enumerate(rows):
        sound = 0.3 * np.sin(np.arange(8000) * (0.05 + 0.01 * number))
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
        lines.append(f"{number}.wav,{row}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "mine.csv"


def test_names_that_may_be_one_are_refused_with_the_pairs_shown(tmp_path: Path) -> None:
    file = a_table(tmp_path / "in", "happy,Anna,S1", "happy,ANNA,S1", "Happy,bob,s1", "sad,01,s2", "sad,1,s2", "sad,1.0,s2")
    with pytest.raises(UserError) as refused:
        main(["csv", str(file), str(tmp_path / "out")])
    message = str(refused.value)
    for words in (
        "speaker of mine: '01' (1 clip) = '1' (1 clip) = '1.0' (1 clip)",
        "speaker of mine: 'ANNA' (1 clip) = 'Anna' (1 clip)",
        "session of mine: 'S1' (2 clips) = 's1' (1 clip)",
        "emotion of mine: 'Happy' (1 clip) = 'happy' (2 clips)",
        "--same-speaker 01=1",
        "--distinct-speaker 01=1",
    ):
        assert words in message
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_what_was_said_of_names_is_done_and_outlives_packing(tmp_path: Path) -> None:
    file = a_table(tmp_path / "in", "happy,Anna,", "sad,ANNA,", "happy,01,", "sad,1,", columns="audio,emotion,speaker,session")
    people = tmp_path / "people.yaml"
    people.write_text("ANNA: Anna\n")
    arguments = ["csv", str(file), str(tmp_path / "out"), "--same-speaker", str(people), "--distinct-speaker", "01=1"]
    assert main(arguments) == 0
    index = ShardIndex.load(tmp_path / "out")
    assert sorted(index.metadata.speaker.tolist()) == ["01", "1", "Anna", "Anna"]
    assert index.distinct == {("mine", "speaker", "01"), ("mine", "speaker", "1")}
    with pytest.raises(UserError, match="--same-speaker: no clip has 'Eve'; speakers here: 01, 1, ANNA, Anna"):
        main([*arguments, "--same-speaker", "Eve=Anna"])
    with pytest.raises(UserError, match="no clip has 'ana'"):
        main([*arguments[:3], "--same-speaker", "ANNA=ana"])
    with pytest.raises(UserError, match="--same-speaker speaks of one corpus, but 2 are to be packed"):
        main(["csv", str(file), *arguments])


def test_a_file_whose_name_is_decomposed_opens_and_its_speaker_is_read_composed(tmp_path: Path) -> None:
    nfd = unicodedata.normalize("NFD", "zoë")
    (clip, *_) = tones(tmp_path / "in", 1, 1)
    path = clip.audio_path.rename(clip.audio_path.with_name(f"{nfd}.wav"))
    report = pack([replace(clip, audio_path=path, speaker=nfd)], tmp_path / "out", workers=1)
    assert report.clips == 1
    assert ShardIndex.load(tmp_path / "out").metadata.speaker.tolist() == [unicodedata.normalize("NFC", "zoë")]


def pieces(folder: Path, *cuts: tuple[str, float | None, float | None]) -> list[Utterance]:
    """Pieces of one recording of six seconds: speaker, start and end of each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "long.wav"
    soundfile.write(path, 0.3 * np.random.default_rng(0).standard_normal(96_000), 16_000)
    return [
        Utterance(
            "long",
            f"long-{round((start or 0) * 1000)}-{round((end or 6) * 1000)}",
            path,
            speaker,
            "sad",
            start_s=start,
            end_s=end,
        )
        for speaker, start, end in cuts
    ]


def test_an_index_tells_which_pieces_share_sound(tmp_path: Path) -> None:
    """Over shards, for each speaker has its own; pieces that only touch share nothing."""
    clips = pieces(tmp_path / "in", ("a", 0.0, 2.0), ("a", 1.5, 3.0), ("b", 3.0, 4.0), ("a", 4.5, None), ("a", 5.5, 6.0))
    pack(clips, tmp_path / "out", workers=1)
    metadata = ShardIndex.load(tmp_path / "out").metadata
    assert metadata.overlap is not None
    group = dict(zip(metadata.utterance_id.tolist(), metadata.overlap.tolist(), strict=True))
    assert group["long-0-2000"] == group["long-1500-3000"] != -1
    assert group["long-4500-6000"] == group["long-5500-6000"] not in (-1, group["long-0-2000"])
    assert group["long-3000-4000"] == -1
    assert metadata.take(np.array([0, 1])).overlap is not None


def test_a_recording_is_known_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    """Two of one name in folders that an id spells alike share nothing; one under two names does, in ids cut at 80 letters."""
    (tmp_path / "é 1").mkdir()
    (tmp_path / "è 1").mkdir()
    other = [replace(clip, utterance_id=f"b{clip.utterance_id}") for clip in pieces(tmp_path / "è 1", ("b", 0.0, 2.0))]
    soundfile.write(other[0].audio_path, 0.2 * np.random.default_rng(1).standard_normal(96_000), 16_000)
    clips = [*pieces(tmp_path / "é 1", ("a", 0.0, 2.0)), *other]
    pack(clips, tmp_path / "apart", workers=1)
    overlap = ShardIndex.load(tmp_path / "apart").metadata.overlap
    assert overlap is not None and (overlap == -1).all()
    one, two = pieces(tmp_path / "é 1", ("a", 0.0, 2.0), ("a", 1.0, 3.0))
    named = tmp_path / "é 1" / ".." / "é 1" / "long.wav"
    pack([one, replace(two, utterance_id="x" * 80, audio_path=named)], tmp_path / "one", workers=1)
    overlap = ShardIndex.load(tmp_path / "one").metadata.overlap
    assert overlap is not None and (overlap == 0).all()
    with pytest.raises(UserError, match="overlap"):
        pack([one, replace(two, speaker="b", audio_path=named)], tmp_path / "two", workers=1)


def test_a_corpus_of_whole_clips_has_no_overlaps(tmp_path: Path) -> None:
    pack(tones(tmp_path / "in", 1, 1), tmp_path / "out", workers=1)
    assert ShardIndex.load(tmp_path / "out").metadata.overlap is None


def test_pieces_under_two_speakers_that_share_sound_are_refused(tmp_path: Path) -> None:
    clips = pieces(tmp_path / "in", ("a", 0.0, 2.0), ("b", 1.5, 3.0), ("c", 3.0, 4.0))
    with pytest.raises(UserError, match=r"(?s)2 clips cannot be packed:.*overlap.*--on overlap=drop"):
        pack(clips, tmp_path / "out", workers=1)


@pytest.mark.parametrize(("policy", "packed"), [("keep", 3), ("drop", 1)])
def test_overlaps_may_be_kept_or_left_out(policy: str, packed: int, tmp_path: Path) -> None:
    clips = pieces(tmp_path / "in", ("a", 0.0, 2.0), ("b", 1.5, 3.0), ("c", 3.0, 4.0))
    assert pack(clips, tmp_path / "out", workers=1, rules=QualityRules.parse([f"overlap={policy}"])).clips == packed


def test_what_packing_found_is_noted_for_readers_of_scores(tmp_path: Path) -> None:
    clips = tones(tmp_path / "in", 1, 2)
    copies = [replace(clips[0], utterance_id="copy"), replace(clips[1], utterance_id="contrary", emotion="sad")]
    pack([*clips, *copies], tmp_path / "out", workers=1)
    left_out, contradicting = packing_notes(tmp_path / "out")
    assert left_out == "tones: packing left out 1 clip (duplicate 1; all in pack_report.json)."
    assert contradicting.startswith("tones: 2 clips kept as contradiction: tones-contrary, ")
    report = tmp_path / "out" / "pack_report.json"
    report.write_text(json.dumps({"counts": {}}))
    (damaged,) = packing_notes(tmp_path / "out")
    assert "cannot be read" in damaged
    report.unlink()
    assert packing_notes(tmp_path / "out") == []


def test_declared_names_change_no_clip_that_they_do_not_name() -> None:
    clip = Utterance("c", "u", Path("a.wav"), "Anna", "happy")
    assert NameOverrides().apply([clip]) == (clip,)
