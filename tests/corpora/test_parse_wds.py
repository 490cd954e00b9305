"""Anyone's WebDataset tars: what webdataset's own writer makes is read, nothing is lost in silence, and nothing is trusted."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
from documents import ROOT, commands

from ser_hpc import pack
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.formats import wds
from ser_hpc.corpora.formats.embedded_audio import FOLDER
from ser_hpc.corpora.utterance import UNKNOWN_SPEAKER
from ser_hpc.shards import as_webdataset
from ser_hpc.shards.index import ShardIndex


def sound(number: int, kind: str = "FLAC", rate: int = 22_050) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(number).uniform(-0.3, 0.3, rate // 3), rate, format=kind)
    return file.getvalue()


def write(path: Path, *samples: dict[str, Any]) -> Path:
    """A tar by webdataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(
                {
                    name: value.encode() if name != "__key__" and isinstance(value, str) else value
                    for name, value in sample.items()
                }
            )
    return path


def sample(number: int, **more: Any) -> dict[str, Any]:
    said = {"emotion": ("Happy", "sad")[number % 2], "speaker_id": number // 2, "sex": "f", "age": 30, "text": None}
    return {"__key__": f"clips/c{number}", "flac": sound(number), "json": json.dumps(said | more)}


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Eight clips of four speakers in two tars for training, one for validation, and one in a folder of its own."""
    root = tmp_path / "My Talk"
    write(root / "train-000000.tar", *(sample(i) for i in range(3)))
    write(root / "train-000001.tar", *(sample(i) for i in range(3, 5)))
    write(root / "val-000000.tar", sample(5))
    write(root / "test" / "000000.tar", *(sample(i) for i in (6, 7)))
    return root


def test_what_webdatasets_writer_makes_is_read(tars: Path) -> None:
    result = wds.parse(tars)
    told = {clip.utterance_id: (clip.speaker, clip.emotion, clip.gender, clip.split) for clip in result.utterances}
    assert told["train-clips-c0"] == ("0", "happy", "female", "train")
    assert told["dev-clips-c5"] == ("2", "sad", "female", "dev") and told["test-clips-c7"][3] == "test"
    assert len(told) == 8 and not result.skipped
    clip = result.utterances[0]
    assert clip.corpus == "my_talk" and clip.extra == {"age": "30"} and clip.audio_path.suffix == ".flac"
    by_sound = {each.audio_path.read_bytes() for each in result.utterances}
    assert by_sound == {sound(number) for number in range(8)}, "every recording's bytes, unchanged"
    assert any("speaker from speaker_id" in warning for warning in result.warnings)


def test_packed_as_a_user_does_they_become_shards_that_stream(tars: Path, tmp_path: Path) -> None:
    """The command of docs/data.md, on two tars by a pattern; what comes out are the clips that went in."""
    (command,) = [command for command in commands(ROOT / "docs" / "data.md") if " webdataset " in command and "{" in command]
    words = command.replace("'", "").split()[2:]
    at = {
        "/data/talk/train-{000000..000001}.tar": f"{tars}/train-{{000000..000001}}.tar",
        "/scratch/shards/talk": tmp_path / "out",
    }
    assert pack.main([str(at.get(word, word)) for word in words] + ["--workers", "1"]) == 0
    index = ShardIndex.load(tmp_path / "out")
    assert sorted(index.metadata.utterance_id.tolist()) == [f"train-clips-c{i}" for i in range(5)]
    assert set(index.metadata.corpus) == {"my_talk"}, "train is no name of a corpus"
    found = list(as_webdataset(tmp_path / "out"))
    assert len(found) == 5 and all(len(each["audio"]) == 5333 for each in found)


def test_our_own_shards_are_such_tars_too(tars: Path, tmp_path: Path) -> None:
    assert pack.main(["webdataset", str(tars), str(tmp_path / "out"), "--workers", "1"]) == 0
    again = wds.parse(tmp_path / "out").utterances
    first = {clip.utterance_id: clip for clip in wds.parse(tars).utterances}
    assert {(clip.speaker, clip.emotion, clip.gender, clip.split) for clip in again} == {
        (clip.speaker, clip.emotion, clip.gender, clip.split) for clip in first.values()
    }
    assert len(again) == 8


@pytest.mark.parametrize("kind", ["wav", "mp3", "ogg", "flac"])
def test_labels_in_members_of_their_own_are_read(tmp_path: Path, kind: str) -> None:
    """A number stays the word that it is; `.txt` is the label only where nothing else is."""
    payload = sound(1, kind.upper(), 16_000)
    write(tmp_path / "a" / "x.tar", {"__key__": "k", kind: payload, "cls": "3", "txt": "good day", "speaker": "anna"})
    (clip,) = wds.parse(tmp_path / "a").utterances
    assert (clip.emotion, clip.speaker, dict(clip.extra)) == ("3", "anna", {"txt": "good day"})
    assert clip.audio_path.read_bytes() == payload and clip.audio_path.suffix == f".{kind}"
    write(tmp_path / "b" / "x.tar", {"__key__": "k", kind: payload, "txt": "Sad", "speaker.txt": "unknown"})
    (clip,) = wds.parse(tmp_path / "b").utterances
    assert (clip.emotion, clip.speaker) == ("sad", UNKNOWN_SPEAKER)


def test_a_gzipped_tar_is_read_too(tars: Path) -> None:
    plain = wds.parse(tars / "train-000000.tar").utterances
    with tarfile.open(tars / "train-z.tar.gz", "w:gz") as target, tarfile.open(tars / "train-000000.tar") as source:
        for info in source:
            target.addfile(info, source.extractfile(info))
    zipped = wds.parse(tars / "train-z.tar.gz").utterances
    assert [(clip.utterance_id, clip.audio_path) for clip in zipped] == [(clip.utterance_id, clip.audio_path) for clip in plain]


def test_what_cannot_be_used_is_named_with_its_reason(tmp_path: Path) -> None:
    unreadable = sample(4) | {"json": "{"}
    silent = {name: value for name, value in sample(1).items() if name != "flac"}
    write(tmp_path / "a.tar", sample(0), silent, sample(2, emotion=None), unreadable, sample(3) | {"wav": sound(3, "WAV")})
    write(tmp_path / "b.tar", sample(0), sample(0, speaker_id=9))
    result = wds.parse(tmp_path)
    assert [clip.utterance_id for clip in result.utterances] == ["clips-c0-0", "clips-c3", "clips-c0-2"]
    reasons = [reason for _, reason in result.skipped]
    assert reasons[:2] == ["sample clips/c1: no sound", "sample clips/c2: no emotion"]
    assert reasons[2].startswith("sample clips/c4: its .json cannot be read") and "same clip" in reasons[3]
    assert any("several recordings" in warning for warning in result.warnings)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["SER_HPC_EVIL"],)


def test_no_pickle_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SER_HPC_EVIL", str(tmp_path / "done"))
    evil = pickle.dumps(Evil())
    write(tmp_path / "a.tar", sample(0) | dict.fromkeys(("pyd", "pickle", "pth", "npy", "mp", "cls.pyd"), evil))
    result = wds.parse(tmp_path)
    assert len(result.utterances) == 1 and not (tmp_path / "done").exists()
    assert any("2 .pyd" in warning and "1 .pth" in warning for warning in result.warnings)


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (member("../k.wav", b"x"), "leads out of the tar's folder"),
        (member("/etc/k.wav", b"x"), "leads out of the tar's folder"),
        (member("k.json", kind=tarfile.SYMTYPE, link="/etc/passwd"), "a link or a device"),
        (member("k.wav", kind=tarfile.LNKTYPE, link="clips/c0.flac"), "a link or a device"),
        (member("k.wav", kind=tarfile.FIFOTYPE), "a link or a device"),
        (member("k.wav", b"\0" * (1 << 17), kind=tarfile.XHDTYPE), "announces 131072 bytes"),
        (member("k.wav", b"a" * (1 << 17), kind=tarfile.GNUTYPE_LONGNAME), "announces 131072 bytes"),
    ],
)
def test_hostile_tars_are_refused_before_anything_is_written(
    tmp_path: Path, wrong: tuple[tarfile.TarInfo, bytes], told: str
) -> None:
    write(tmp_path / "a.tar", sample(0))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.addfile(wrong[0], io.BytesIO(wrong[1]))
    with pytest.raises(UserError, match=rf"a\.tar.*{told}"):
        wds.parse(tmp_path)
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("at", [700, 5000, -11_000])
@pytest.mark.parametrize("how", ["cut", "header"])
def test_damage_is_never_the_end_of_a_tar(tmp_path: Path, at: int, how: str) -> None:
    """Cut in a member, or a header overwritten: tarfile alone passes over the rest in silence."""
    tar = write(tmp_path / "a.tar", *(sample(i) for i in range(3)))
    content = bytearray(tar.read_bytes())
    if how == "cut":
        tar.write_bytes(content[:at])
    else:
        with tarfile.open(tar) as opened:
            places = [info.offset_data - 512 for info in opened]
        place = places[{700: 1, 5000: 2, -11_000: -1}[at]]
        content[place : place + 100] = b"\xff" * 100
        tar.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar, or is damaged"):
        wds.parse(tmp_path)


def test_wrong_places_and_columns_are_answered_in_words(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of its 4 tars 2 are not there: .*train-000002\.tar"):
        wds.parse(tars / "train-{000000..000003}.tar")
    with pytest.raises(UserError, match="counts no tars"):
        wds.parse(tars / "train-{3..1}.tar")
    with pytest.raises(UserError, match="is or holds no tar"):
        wds.parse(tars / "nothing-*.tar")
    (tmp_path / "x.tar").write_text("no tar at all, but a note")
    with pytest.raises(UserError, match="cannot be read as a tar"):
        wds.parse(tmp_path / "x.tar")
    write(tmp_path / "y.tar", {"__key__": "k", "wav": sound(0, "WAV"), "cls": "1"})
    with pytest.raises(UserError, match=r"no column says speaker. Its columns are cls"):
        wds.parse(tmp_path / "y.tar")
    assert len(wds.parse(tars / "train-*.tar").utterances) == 5
