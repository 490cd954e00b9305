"""The same recording in disguise is found when packing, named when planning, and refused: by the commands that people type."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from babble import CHANGES, RATE, babble

from ser_hpc import inspect, launch
from ser_hpc import pack as pack_command
from ser_hpc.core.errors import UserError
from ser_hpc.protocols.near_duplicates import parse_harmless
from ser_hpc.shards import pair_file
from ser_hpc.shards.fingerprint_file import SUFFIX
from ser_hpc.shards.index import DATASET, REPORT, ShardIndex
from ser_hpc.shards.pair_file import NEAR_DUPLICATES
from ser_hpc.shards.verify import verify

Row = tuple[str, str, str, str]  # file, emotion, speaker, session
Tree = Callable[[Path], dict[str, bytes]]


def a_corpus(folder: Path, seed: int = 0) -> list[Row]:
    """Three sessions of two speakers, who say four things each, in wav files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for session in "123":
        for speaker in ("f", "m"):
            for take in range(4):
                name = f"s{session}{speaker}{take}.wav"
                soundfile.write(folder / name, babble(rng, 1.2), RATE)
                rows.append((name, ("sad", "happy")[take % 2], f"s{session}{speaker}", session))
    return rows


def altered(folder: Path, name: str, change: str, copy: str) -> str:
    """Write an altered copy of a clip."""
    sound, _ = soundfile.read(folder / name)
    file = f"{copy}.mp3" if change == "mp3" else f"{copy}.wav"
    soundfile.write(folder / file, CHANGES[change](sound), RATE)
    return file


def packed(folder: Path, rows: Sequence[Row], out: Path, *options: str, corpus: str = "mine") -> Path:
    lines = ["audio,emotion,speaker,session,split", *(",".join([*row, _split(row)]) for row in rows)]
    (folder / f"{corpus}.csv").write_text("\n".join(lines) + "\n")
    assert pack_command.main(["csv", str(folder / f"{corpus}.csv"), str(out), "--workers", "1", *options]) == 0
    return out


def _split(row: Row) -> str:
    return {"": "train", "1": "train", "2": "dev", "3": "test"}[row[3]]


def run_of(root: Path, capsys: pytest.CaptureFixture[str], *settings: str) -> str:
    """The run that a launch would make. Raises UserError where it refuses."""
    capsys.readouterr()
    assert launch.main(["--prepare", "--dry-run", f"run.root={root}", *settings]) == 0
    return str(json.loads(capsys.readouterr().out)["run"])


def refusal(root: Path, *settings: str) -> str:
    with pytest.raises(UserError) as refused:
        launch.main(["--prepare", "--dry-run", f"run.root={root}", *settings])
    return str(refused.value)


@pytest.fixture(scope="module")
def disguised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """Shards where the man of session 3 has an altered copy of a clip of session 1, of each change; and these pairs."""
    folder = tmp_path_factory.mktemp("disguised")
    rows = a_corpus(folder)
    pairs = []
    for number, change in enumerate(CHANGES):
        original = rows[number]
        rows.append((altered(folder, original[0], change, f"x-{change}"), original[1], "s3m", "3"))
        pairs.append((f"mine/{original[0][:-4]}", f"mine/x-{change}"))
    return packed(folder, rows, folder / "out"), pairs


@pytest.mark.parametrize("protocol", ["leave_one_session_out", "speaker_groups"])
def test_each_disguise_is_named_and_refused(
    disguised: tuple[Path, list[tuple[str, str]]], tmp_path: Path, protocol: str
) -> None:
    shards, pairs = disguised
    message = refusal(tmp_path, f"data.shards={shards}", f"folds.protocol={protocol}", "folds.count=3")
    for one, other in pairs:
        assert f"{one} = {other} (1.0 s, " in message
    assert f"{len(pairs)} pairs in both training and test (fold 0): " in message
    assert f"{len(pairs)} pairs under two speakers: " in message and "under two classes" not in message
    assert f"folds.harmless_pairs=[{min(pairs)[0]}={min(pairs)[1]}]" in message


def test_turns_of_a_dialogue_may_overlap_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two people of one session, whatever each feels, are told; where a protocol parts them, they are refused."""
    rows = a_corpus(tmp_path)
    file, emotion, _, session = next(row for row in rows if row[3] == "1")
    other = "happy" if emotion == "sad" else "sad"
    rows.append((altered(tmp_path, file, "trimmed", "heard-by-the-other"), other, "s1m", session))
    shards = packed(tmp_path, rows, tmp_path / "out")
    capsys.readouterr()
    assert inspect.main([str(shards), "--folds", "leave_one_session_out", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["folds"]["notes"]
    assert any(
        "1 pair of clips of two speakers of one session share sound, as turns of a dialogue may" in note for note in notes
    )
    message = refusal(tmp_path, f"data.shards={shards}", "folds.protocol=leave_one_speaker_out")
    assert "1 pair in both training and test" in message and "under two speakers" not in message


def test_each_disguise_is_a_finding_of_packing(disguised: tuple[Path, list[tuple[str, str]]]) -> None:
    shards, pairs = disguised
    found = json.loads((shards / REPORT).read_text())["findings"]["near_duplicate"]
    assert found["policy"] == "keep"
    details = {clip["key"]: clip["detail"] for clip in found["clips"]}
    assert set(details) == {name.replace("/", "-") for pair in pairs for name in pair}
    assert details["mine-s1f0"] == "sad by s1f, shares sound with mine-x-gain (sad by s3m; 1.0 s, 100% alike)"


def parse_harmless_file(folder: Path, text: str) -> frozenset[tuple[str, str]]:
    (folder / "pairs.txt").write_bytes(text.encode())
    return parse_harmless([str(folder / "pairs.txt")])


def test_the_listing_is_what_the_setting_takes_and_the_run_is_the_same(
    disguised: tuple[Path, list[tuple[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, pairs = disguised
    assert inspect.main([str(shards), "--near-duplicates"]) == 0
    listing = capsys.readouterr().out
    assert [tuple(line.split()[0].split("=")) for line in listing.splitlines()[:-1]] == sorted(pairs)
    assert parse_harmless_file(tmp_path, listing) == set(pairs), "kept as it was printed"
    assert parse_harmless_file(tmp_path, "\ufeff" + listing.replace("=", " = ").replace("\n", "\r\n")) == set(pairs)
    assert listing.splitlines()[-1] == f"# {len(pairs)} pairs of near-duplicates among {24 + len(pairs)} clips"
    (tmp_path / "heard.txt").write_text(f"# listened to on Monday\n\n{chr(10).join(listing.splitlines()[:-1])}\n")
    run = run_of(tmp_path, capsys, f"data.shards={shards}", f"folds.harmless_pairs={tmp_path / 'heard.txt'}")
    plain = tmp_path / "plain"  # the same dataset, in which nobody has looked
    shutil.copytree(shards, plain, ignore=shutil.ignore_patterns(f"*{SUFFIX}", NEAR_DUPLICATES))
    assert run_of(tmp_path, capsys, f"data.shards={plain}") == run
    some = [f"{one}={other}" for one, other in pairs[1:]]
    message = refusal(tmp_path, f"data.shards={shards}", f"folds.harmless_pairs=[{','.join(some)}]")
    assert "1 pair under two speakers: " in message
    arguments = [str(shards), "--folds", "leave_one_session_out", "--harmless"]
    assert inspect.main([*arguments, str(tmp_path / "heard.txt")]) == 0
    assert inspect.main([*arguments, *some]) == 1


def test_a_declared_pair_that_is_none_is_told(disguised: tuple[Path, list[tuple[str, str]]], tmp_path: Path) -> None:
    shards, _ = disguised
    message = refusal(tmp_path, f"data.shards={shards}", "folds.harmless_pairs=mine/s1f0=mine/nowhere")
    assert "folds.harmless_pairs names pairs that are none here: mine/nowhere=mine/s1f0" in message
    for wrong in ("mine/s1f0", "s1f0=s1f1", "mine/s1f0=mine/s1f0", "nowhere.txt"):
        assert "write CORPUS/ID=CORPUS/ID" in refusal(tmp_path, f"data.shards={shards}", f"folds.harmless_pairs={wrong}")


def test_an_official_split_runs_by_name_and_says_what_it_breaks(
    disguised: tuple[Path, list[tuple[str, str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    shards, _ = disguised
    capsys.readouterr()
    assert inspect.main([str(shards), "--folds", "given_split", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["folds"]["notes"]
    leaks = [note for note in notes if note.startswith("LEAK by the protocol's own definition: 7 pairs")]
    assert len(leaks) == 2 and "in both training and test" in leaks[0] and "under two speakers" in leaks[1]


def test_one_speaker_twice_is_told_and_two_emotions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    rows = a_corpus(folder)
    copy = altered(folder, "s1f0.wav", "trimmed", "again")
    harmless = packed(folder, [*rows, (copy, "sad", "s1f", "1")], tmp_path / "harmless")
    assert inspect.main([str(harmless), "--folds", "leave_one_session_out"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "1 pair of clips are near-duplicates, of one speaker and class and never on two sides: mine/again = mine/s1f0" in told
    )
    wrong = packed(folder, [*rows, (copy, "happy", "s1f", "1")], tmp_path / "wrong")
    message = refusal(tmp_path, f"data.shards={wrong}")
    assert "1 pair under two classes: mine/again = mine/s1f0" in message and "speakers" not in message
    merged = tmp_path / "one.yaml"
    merged.write_text("name: one\nclasses: [both, other]\nmap: {sad: both, happy: both, angry: other}\n")
    assert inspect.main([str(wrong), "--folds", "leave_one_session_out", "--labels", str(merged)]) == 1  # a class without clips
    assert "two classes" not in capsys.readouterr().out


def test_an_unknown_speaker_has_no_part_in_two_speakers_but_in_two_sides(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    rows = [*a_corpus(folder), ("x.wav", "sad", "unknown", "")]
    altered(folder, "s1f0.wav", "gain", "x")
    message = refusal(tmp_path, f"data.shards={packed(folder, rows, tmp_path / 'out')}")
    assert "in both training and test" in message and "two speakers" not in message


def test_halves_of_a_recording_match_and_what_fills_clips_up_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    rows = a_corpus(folder)
    rng = np.random.default_rng(9)
    whole = babble(rng, 3.0)
    soundfile.write(folder / "early.wav", whole[: 2 * RATE], RATE)
    soundfile.write(folder / "late.wav", 0.5 * whole[RATE:], RATE)
    rows += [("early.wav", "sad", "s1f", "1"), ("late.wav", "sad", "s2f", "2")]
    for name in ("brief", "brief2"):  # a third of a second, twice: nothing can be told
        soundfile.write(folder / f"{name}.wav", (0.9 if name == "brief" else 0.8) * whole[: RATE // 3], RATE)
        rows.append((f"{name}.wav", "sad", "s1f", "1"))
    for number in range(8):  # half a second, filled up with zeros to two; and one of zeros and a click
        soundfile.write(folder / f"z{number}.wav", np.concatenate([babble(rng, 0.5), np.zeros(3 * RATE // 2)]), RATE)
        rows.append((f"z{number}.wav", "happy", f"s{1 + number % 3}m", f"{1 + number % 3}"))
    shards = packed(folder, rows, tmp_path / "out")
    capsys.readouterr()
    assert inspect.main([str(shards), "--near-duplicates", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["near_duplicates"]
    assert [pair["clips"] for pair in found["pairs"]] == [["mine/early", "mine/late"]]
    assert found["pairs"][0]["speakers"] == ["s1f", "s2f"] and found["pairs"][0]["emotions"] == ["sad", "sad"]
    assert 0.5 < found["pairs"][0]["seconds"] < 1.0 and found["not_looked_for"] == ""
    assert found["too_short"] == 2


def test_shards_of_before_are_planned_as_before_and_one_command_looks(
    tmp_path: Path, tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files are those of packing now, byte for byte; and no other has changed, so that runs keep their names."""
    folder = tmp_path / "in"
    rows = a_corpus(folder)
    rows.append((altered(folder, "s1f0.wav", "padded", "x"), "sad", "s2m", "2"))
    now = packed(folder, rows, tmp_path / "now")
    before = packed(folder, rows, tmp_path / "before", "--no-fingerprints")
    assert not [*before.rglob(f"*{SUFFIX}"), *before.glob(NEAR_DUPLICATES)]
    assert "near_duplicate" not in json.loads((before / REPORT).read_text())["findings"]
    capsys.readouterr()
    assert inspect.main([str(before), "--folds", "leave_one_session_out", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["folds"]["notes"]
    command = f"python -m ser_hpc.inspect {before} --near-duplicates"
    assert [note for note in notes if "were not looked for" in note and command in note]
    content = tree(before)
    assert inspect.main([str(before), "--near-duplicates"]) == 0
    assert {name: inside for name, inside in tree(before).items() if name in content} == content
    fresh = tree(now)
    assert tree(before) == fresh | {REPORT: content[REPORT]}
    assert "mine/s1f0 = mine/x" in refusal(tmp_path, f"data.shards={before}")
    for path in before.rglob(f"*{SUFFIX}"):
        path.unlink()
    packed(folder, rows, before)  # packing again adds what is lacking, and tells of it
    assert tree(before) == fresh and verify(before) == []


def test_damage_to_what_lies_beside_the_shards_is_mended_and_never_believed(
    tmp_path: Path, tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    rows = a_corpus(folder)
    rows.append((altered(folder, "s1f0.wav", "gain", "x"), "sad", "s2m", "2"))
    out = packed(folder, rows, tmp_path / "out")
    whole = tree(out)
    pairs = json.loads((out / NEAR_DUPLICATES).read_text())
    for edit in ({"pairs": []}, {"pairs": [{"positions": [0, 10**9]}]}, {"datasets": ["0"]}):
        (out / NEAR_DUPLICATES).write_text(json.dumps(pairs | edit))  # its seal is broken
        assert "mine/s1f0 = mine/x" in refusal(tmp_path, f"data.shards={out}")
        assert tree(out) == whole, "found again and kept"
    broken = next(out.rglob(f"*{SUFFIX}"))
    broken.write_bytes(broken.read_bytes()[:-3])
    (problem,) = verify(out)
    assert f"fingerprints {broken} are damaged" in problem
    (out / NEAR_DUPLICATES).unlink()
    capsys.readouterr()
    assert inspect.main([str(out), "--folds", "leave_one_session_out"]) == 0
    assert "not looked for" in capsys.readouterr().out
    assert inspect.main([str(out), "--near-duplicates"]) == 0
    assert tree(out) == whole


def test_copies_in_two_corpora_are_found_when_both_are_read_and_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    rows = a_corpus(folder)
    one = packed(folder, rows, tmp_path / "one", corpus="one")
    others = a_corpus(tmp_path / "in2", seed=1)
    copy = altered(folder, "s1f0.wav", "mp3", "../in2/x")
    two = packed(tmp_path / "in2", [*others, (Path(copy).name, "sad", "s9", "2")], tmp_path / "two", corpus="two")
    for shards in (one, two):
        assert run_of(tmp_path, capsys, f"data.shards={shards}")
    both = f"data.shards=[{one},{two}]"
    assert "one/s1f0 = two/x (1.0 s, " in refusal(tmp_path, both)
    (kept,) = [*one.glob(pair_file.BETWEEN), *two.glob(pair_file.BETWEEN)]
    monkeypatch.setattr(pair_file, "find_pairs", None)  # it is not asked again
    assert "one/s1f0 = two/x (1.0 s, " in refusal(tmp_path, both)
    assert run_of(tmp_path, capsys, both, "folds.harmless_pairs=one/s1f0=two/x")
    monkeypatch.undo()
    packed(tmp_path / "in2", others, two, corpus="two")  # the copy is gone, and what was known of it with it
    packed(folder, rows, one, corpus="one")
    assert run_of(tmp_path, capsys, both)
    assert not kept.exists() or kept.parent == one


def test_what_is_equal_or_overlaps_by_its_times_is_left_to_the_rules_for_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    rows = a_corpus(folder)
    shutil.copy(folder / "s1f0.wav", folder / "equal.wav")
    out = packed(folder, [*rows, ("equal.wav", "sad", "s1m", "1")], tmp_path / "out")
    capsys.readouterr()
    assert inspect.main([str(out), "--near-duplicates"]) == 0
    assert capsys.readouterr().out == "# 0 pairs of near-duplicates among 25 clips\n"
    soundfile.write(folder / "long.wav", babble(np.random.default_rng(5), 3.0), RATE)
    lines = ["audio,emotion,speaker,session,start_s,end_s", "long.wav,sad,s1f,1,0,2", "long.wav,sad,s1f,1,1,3"]
    (folder / "pieces.csv").write_text("\n".join([*lines, *(",".join([*row, "", ""]) for row in rows)]) + "\n")
    assert pack_command.main(["csv", str(folder / "pieces.csv"), str(tmp_path / "pieces"), "--workers", "1"]) == 0
    capsys.readouterr()
    assert inspect.main([str(tmp_path / "pieces"), "--near-duplicates"]) == 0
    assert capsys.readouterr().out == "# 0 pairs of near-duplicates among 26 clips\n"


def test_a_corpus_that_is_too_large_to_search_in_passing_waits_for_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    folder = tmp_path / "in"
    rows = a_corpus(folder)
    searched = packed(folder, rows, tmp_path / "searched")
    monkeypatch.setattr(pair_file, "MOST_AT_PACKING", 23)
    out = packed(folder, rows, tmp_path / "out")
    assert not (out / NEAR_DUPLICATES).exists()
    assert "near_duplicate" not in json.loads((out / REPORT).read_text())["findings"]
    index = ShardIndex.load(out)
    assert "were not looked for" in pair_file.find_near_duplicates(index, most_clips=23).not_looked_for
    assert pair_file.find_near_duplicates(index, most_clips=24).not_looked_for == ""
    report = (out / REPORT).read_bytes()
    assert tree(out) == tree(searched) | {REPORT: report}


def test_packing_can_refuse_them_and_never_chooses_one(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    rows = a_corpus(folder)
    rows.append((altered(folder, "s1f0.wav", "inverted", "x"), "sad", "s1f", "1"))
    with pytest.raises(
        UserError, match=r"x.wav: near_duplicate: sad by s1f, shares sound with (.*\n)+.*--on near_duplicate=keep"
    ):
        packed(folder, rows, out, "--on", "near_duplicate=fail")
    assert not (out / DATASET).exists()
    with pytest.raises(UserError, match="use keep or fail"):
        packed(folder, rows, out, "--on", "near_duplicate=drop")


def test_a_folder_that_cannot_be_written_is_told(
    disguised: tuple[Path, list[tuple[str, str]]], tmp_path: Path, monkeypatch: Any
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(disguised[0], shards, ignore=shutil.ignore_patterns(f"*{SUFFIX}", NEAR_DUPLICATES))

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ser_hpc.shards.fingerprint_file.write_aside", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        pair_file.make_missing_fingerprints(ShardIndex.load(shards), 1, lambda stage, done, total: None)
    with pytest.raises(UserError, match="reads folders"):
        inspect.main(["memory://shards", "--near-duplicates"])
