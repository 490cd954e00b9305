"""The pack command as people meet it: what it prints, its exit codes, and bad input in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ser_hpc import pack
from ser_hpc.core import cli
from ser_hpc.shards.index import DATASET, ShardIndex
from ser_hpc.shards.verify import verify

EMODB = Path(__file__).parents[3] / "shared" / "corpora" / "emodb"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`command(*arguments, columns=80)` -> exit code, stdout, stderr."""

    def run(*arguments: object, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as caught:
            cli.run_main(lambda: pack.main([str(argument) for argument in arguments]))
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, captured.out, captured.err

    return run


@pytest.fixture
def table(tmp_path: Path, make_corpus: Callable) -> Path:
    path = tmp_path / "mini.csv"
    rows = [f"{u.audio_path},{u.emotion},{u.speaker},{u.session}" for u in make_corpus(sessions=3, clips=4)]
    path.write_text("\n".join(["audio,emotion,speaker,session", *rows]) + "\n")
    return path


@pytest.mark.parametrize("columns", [60, 80, 128])
def test_tables_fit_the_terminal_and_say_the_counts(tmp_path: Path, table: Path, command: Command, columns: int) -> None:
    code, out, err = command("csv", table, tmp_path / "out", "--workers", 1, columns=columns)
    assert code == 0
    assert all(len(line) <= columns for line in out.splitlines() if not line.startswith(("shards:", "mini", "csv:", "packed")))
    assert re.search(r"anger +6 ", out)
    assert re.search(r"sp11 +2 ", out)
    assert "12 clips" in out
    assert "packing: 100 %" in err  # no terminal: lines instead of a bar
    assert "\x1b" not in out + err


def test_findings_are_on_the_screen_with_what_was_done(tmp_path: Path, table: Path, command: Command) -> None:
    folder = tmp_path / "corpus"
    (folder / "s1c0.wav").write_bytes((folder / "s3c3.wav").read_bytes())
    (folder / "s2c2.wav").write_text("only words [bold]here[/bold]")
    code, _, err = command("csv", table, tmp_path / "out", "--workers", 1)
    assert code == 2
    assert "error: 1 clip cannot be packed" in err
    assert f"{folder / 's2c2.wav'}: undecodable: is a text file" in err
    assert "--on undecodable=drop" in err
    assert not (tmp_path / "out").exists()
    code, out, _ = command("csv", table, tmp_path / "out", "--workers", 1, "--on", "undecodable=drop", columns=200)
    assert code == 0
    assert re.search(r"undecodable +left out +1 s2c2.wav \(is a text file.*\[bold\]here", out)
    assert re.search(r"contradiction +packed +2 s1c0.wav \(anger by sp10, but sounds exactly as mini-", out)
    assert "pack_report.json" in out


def test_several_corpora_in_one_command_and_a_bad_one_does_not_stop_the_others(
    tmp_path: Path, table: Path, command: Command, tree: Callable
) -> None:
    """Each into a folder of its own name, as if packed alone."""
    other, bad = tmp_path / "other.jsonl", tmp_path / "bad.csv"
    lines = [{"audio": str(tmp_path / f"corpus/s{i}c1.wav"), "emotion": "x", "speaker": f"a{i}"} for i in (1, 2, 3)]
    other.write_text("\n".join(map(json.dumps, lines)))
    bad.write_text("audio,emotion,speaker\nnowhere.wav,anger,ann\n")
    everything = ("csv", table, "csv", bad, "nonsense", tmp_path, "jsonl", other)
    code, out, err = command(*everything, tmp_path / "out", "--workers", 1, columns=400)
    assert code == 2
    assert "error: csv: " in err and "nowhere.wav" in err
    assert "error: nonsense: unknown corpus" in err
    assert err.splitlines()[-1] == "error: 2 of 4 corpora were not packed"
    assert re.search(r"other.jsonl +3 .*out/other", out) and out.count("not packed, see above") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mini", "other"]
    assert command("csv", table, tmp_path / "alone", "--workers", 1)[0] == 0
    assert tree(tmp_path / "out" / "mini") == tree(tmp_path / "alone")
    code, _, err = command("csv", table, "csv", table, tmp_path / "twice", "--workers", 1)
    assert code == 2 and "would both be packed into" in err


def test_bad_input_is_an_error_in_words(tmp_path: Path, table: Path, command: Command) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in [
        (("emobd", tmp_path, tmp_path / "out"), "did you mean emodb"),
        (("emodb", tmp_path / "nowhere", tmp_path / "out"), "does not exist"),
        (("emodb", tmp_path / "empty", tmp_path / "out"), "no utterance found"),
        (("csv", table, tmp_path / "corpus"), "not empty and holds no shards"),
        (("csv", table, tmp_path / "out", "--workers", 0), "at least 1"),
        (("csv", table, tmp_path / "out", "--shard-mb", 0), "at least 1"),
        (("csv", table), "give CORPUS ROOT"),
        (("csv", table, "emodb", tmp_path / "out"), "not 4 words"),
        (("csv", table, tmp_path / "out", "--on", "loud=drop"), "kinds: undecodable, too_short"),
        (("csv", table, tmp_path / "out", "--on", "silent"), "policies: drop, keep, fail"),
        (("csv", table, tmp_path / "out", "--on", "undecodable=keep"), "cannot be packed"),
        (("csv", table, tmp_path / "out", "--longest", 0), "--longest 0"),
        (("csv", table, tmp_path / "out", "--jobs", 3), "give --partition"),
    ]:
        code, out, err = command(*arguments)
        assert code == 2, err
        assert err.splitlines()[-1].startswith(("error: ", "reading"))
        assert words in err
        assert "shards:" not in out
        assert not (tmp_path / "out" / DATASET).exists()


def test_help_teaches_without_torch(tmp_path: Path) -> None:
    code = "import sys; from ser_hpc import pack; assert 'torch' not in sys.modules; pack.main(['--help'])"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    for word in ("python -m ser_hpc.pack emodb", "silent=drop", "--workers", "audio", "Exit code"):
        assert word in result.stdout


@pytest.mark.skipif(not EMODB.is_dir(), reason="Emo-DB is not here")
def test_emo_db_packs_whole(tmp_path: Path, command: Command) -> None:
    """Real recordings at another rate than ours."""
    code, out, _ = command("emodb", EMODB, tmp_path / "out", "--workers", 2)
    assert code == 0
    assert "packed 535 clips" in out
    index = ShardIndex.load(tmp_path / "out")
    assert len(index.metadata) == 535
    assert {shard.group for shard in index.shards} == set(index.metadata.speaker)
    assert verify(tmp_path / "out") == []
