"""Packing in parts, in any order, at once or killed, makes the very folder that packing at once makes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small import SUICIDE

from ser_hpc.core.errors import UserError
from ser_hpc.pack import main
from ser_hpc.shards import audio, write
from ser_hpc.shards import output_dir as out_folder
from ser_hpc.shards.index import DATASET
from ser_hpc.shards.quality import QualityRules
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack

Tree = Callable[[Path], dict[str, bytes]]
ROOT = Path(__file__).parents[2]
ON = ("--on", "undecodable=drop")
DROP = QualityRules.parse(ON[1:])
SCRIPT = ROOT / "slurm" / "build_shards.sbatch"


@pytest.fixture
def corpus(make_corpus: Callable) -> list:
    """Five groups: a clip whose header is bad, one that only decoding finds out, a group of nothing else, a copy."""
    utterances = make_corpus(sessions=5, clips=2)
    utterances[0].audio_path.write_bytes(b"")
    for i in (3, 6, 7):
        spoil(utterances, i)
    shutil.copy(utterances[8].audio_path, utterances[4].audio_path)
    utterances[4] = replace(utterances[4], speaker=utterances[8].speaker)
    return utterances


def spoil(utterances: list, i: int) -> None:
    """A FLAC with a flipped byte in the middle of its first frame, which only decoding finds."""
    samples, rate = soundfile.read(utterances[i].audio_path, dtype="int16")
    path = utterances[i].audio_path.with_suffix(".flac")
    soundfile.write(path, samples, rate)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    utterances[i] = replace(utterances[i], audio_path=path)


def table(tmp_path: Path, utterances: list) -> Path:
    path = tmp_path / "mini.csv"
    rows = [f"{u.audio_path},{u.emotion},{u.speaker},{u.session}" for u in utterances]
    path.write_text("\n".join(["audio,emotion,speaker,session", *rows]) + "\n")
    return path


def pack_part(utterances: list, out: Path, number: int, count: int) -> None:
    pack(utterances, out, workers=1, rules=DROP, left_out=[(Path("odd.wav"), "no such name")], part=(number, count))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_parts_in_any_order_make_the_folder_of_packing_at_once(tmp_path: Path, corpus: list, tree: Tree, count: int) -> None:
    """More parts than shards, too; a dataset once every shard is there; and so it stays, by another number of parts as well."""
    whole, out = tmp_path / "whole", tmp_path / "parts"
    pack_part(corpus, whole, 0, 1)
    order = np.random.default_rng(count).permutation(count).tolist()
    for number in order[:-1]:
        pack_part(corpus, out, number, count)
    missing = set(whole.glob("*/*.*")) - {whole / path.relative_to(out) for path in out.glob("*/*.*")}
    assert (out / DATASET).exists() == (not missing)
    pack_part(corpus, out, order[-1], count)
    assert tree(out) == tree(whole)
    assert verify(out) == []
    for number in range(count + 1):
        pack_part(corpus, out, number, count + 1)
        assert tree(out) == tree(whole)


@pytest.mark.parametrize("calls", [2, 5, 9, 28, 31, 33])
def test_a_killed_part_started_again_ends_in_the_same_bytes(tmp_path: Path, corpus: list, tree: Tree, calls: int) -> None:
    """Killed in its tar, its index, its second shard, the report or dataset.json; restarted at once, or after the others."""
    arguments = ["csv", str(table(tmp_path, corpus)), "OUT", "--workers", "1", *ON, "--part"]
    whole, out = tmp_path / "whole", tmp_path / "parts"

    def command(where: Path, part: str) -> list[str]:
        return [str(where) if argument == "OUT" else argument for argument in arguments] + [part]

    main(command(whole, "0/1"))
    main(command(out, "1/2"))
    killed = [sys.executable, "-c", SUICIDE, str(calls), *command(out, "0/2")]
    result = subprocess.run(killed, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL
    assert verify(out) == [] or not (out / DATASET).exists()
    if calls % 2:
        main(command(out, "1/2"))
    main(command(out, "0/2"))
    assert tree(out) == tree(whole)


def test_two_parts_that_complete_it_at_once_write_the_same(
    tmp_path: Path, corpus: list, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part 0 has found every shard there; before it writes the last files, part 1 does so too, and then part 0 goes on."""
    whole, out = tmp_path / "whole", tmp_path / "parts"
    pack_part(corpus, whole, 0, 1)
    pack_part(corpus, out, 1, 2)
    pack_part(corpus, out, 0, 2)
    (out / DATASET).unlink()
    write_json, nested = write.write_json, []

    def other_first(path: Path, value: object) -> None:
        if not nested:
            nested.append(path)
            pack_part(corpus, out, 1, 2)
            assert tree(out) == tree(whole)
        write_json(path, value)

    monkeypatch.setattr(write, "write_json", other_first)
    pack_part(corpus, out, 0, 2)
    assert nested
    assert tree(out) == tree(whole)


def test_a_part_leaves_the_others_half_written_files_alone(
    tmp_path: Path, corpus: list, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole part is packed while another one is in the middle of a tar."""
    whole, out = tmp_path / "whole", tmp_path / "parts"
    pack_part(corpus, whole, 0, 1)
    decode, nested = audio.decode, []

    def other_first(*arguments: object) -> object:
        if not nested:
            nested.extend(out.glob("*/.*.tmp"))
            assert nested
            pack_part(corpus, out, 1, 2)
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(audio, "decode", other_first)
    pack_part(corpus, out, 0, 2)
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_packing_at_once_and_in_parts_exclude_each_other(
    tmp_path: Path, corpus: list, monkeypatch: pytest.MonkeyPatch, part: tuple[int, int]
) -> None:
    monkeypatch.setattr(out_folder, "_LOCK_WAIT_SECONDS", 0.0)
    out = out_folder.lock_output(tmp_path / "out", shared=part == (0, 1))
    with out, pytest.raises(UserError, match="another process is packing"):
        pack_part(corpus, tmp_path / "out", *part)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_changed_annotations_are_packed_anew_and_no_part_takes_the_old_ones(
    tmp_path: Path, corpus: list, tree: Tree, order: tuple[int, ...]
) -> None:
    """A finished dataset is none any more from the first part on; a session that is gone goes too."""
    whole, out = tmp_path / "whole", tmp_path / "parts"
    pack_part(corpus, out, 0, 1)
    changed = [replace(u, emotion="other") for u in corpus[:-2]]
    pack_part(changed, whole, 0, 1)
    for number in order[:-1]:
        pack_part(changed, out, number, 3)
        assert not (out / DATASET).exists()
    pack_part(changed, out, order[-1], 3)
    assert tree(out) == tree(whole)


def test_a_new_bad_clip_reaches_the_report_of_a_finished_dataset(tmp_path: Path, corpus: list, tree: Tree) -> None:
    whole, out = tmp_path / "whole", tmp_path / "parts"
    for folder in (out, whole):
        pack_part(corpus, folder, 0, 1)
    bad = replace(corpus[1], utterance_id="bad", audio_path=corpus[1].audio_path.with_name("bad.wav"))
    for number in (0, 1):
        pack_part([*corpus, bad], out, number, 2)
    pack_part([*corpus, bad], whole, 0, 1)
    assert tree(out) == tree(whole)


def test_bad_clips_stop_their_part_and_the_dataset_waits_for_it(tmp_path: Path, make_corpus: Callable, tree: Tree) -> None:
    """Found while decoding. Once mended, that part completes the dataset."""
    utterances = make_corpus(sessions=3, clips=2)
    good = utterances[2]
    spoil(utterances, 2)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=utterances[2].audio_path.name):
        pack(utterances, out, workers=1, part=(1, 3))
    pack(utterances, out, workers=1, part=(0, 3))
    with pytest.raises(UserError, match=utterances[2].audio_path.name):  # the last one looks at all
        pack(utterances, out, workers=1, part=(2, 3))
    assert not (out / DATASET).exists()
    utterances[2] = good
    pack(utterances, out, workers=1, part=(1, 3))
    pack(utterances, tmp_path / "whole", workers=1)
    assert tree(out) == tree(tmp_path / "whole")


def test_the_batch_script_packs_as_array_tasks(tmp_path: Path, corpus: list, tree: Tree) -> None:
    """As Slurm starts it; the arguments of the pack command, its options too, come through."""
    arguments = ["csv", str(table(tmp_path, corpus)), str(tmp_path / "parts"), *ON]
    said = []
    for task in ("1", "0"):
        slurm = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        path = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", SCRIPT, *arguments], env=os.environ | path | slurm, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-1])
    assert said[0] == "part 1/2: others are still to be packed; the last one completes the dataset"
    assert said[1] == "part 0/2: all parts are packed"
    main([*arguments[:2], str(tmp_path / "whole"), *ON, "--workers", "1"])
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


@pytest.mark.parametrize("part", ["2/2", "-1/2", "1", "a/b", "0/0", "1/", "0/2/1"])
def test_a_part_that_does_not_exist_is_refused(tmp_path: Path, corpus: list, part: str) -> None:
    """As when one task of an array is submitted alone: --array=3 is a part 3 of 1."""
    with pytest.raises(UserError, match=r"write K/N .*--array=0-7"):
        main(["csv", str(table(tmp_path, corpus)), str(tmp_path / "out"), f"--part={part}"])
    assert not (tmp_path / "out").exists()
