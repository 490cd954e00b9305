"""The pack command as people meet it: what it prints, its exit codes, and bad input in words."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ser_hpc import console, pack
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
            console.run(lambda: pack.main([str(argument) for argument in arguments]))
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


def test_skipped_and_identical_clips_are_on_the_screen(tmp_path: Path, table: Path, command: Command) -> None:
    folder = tmp_path / "corpus"
    (folder / "s1c0.wav").write_bytes((folder / "s3c3.wav").read_bytes())
    (folder / "s2c2.wav").write_text("only words [bold]here[/bold]")
    code, _, err = command("csv", table, tmp_path / "out", "--workers", 1)
    assert code == 2
    assert "error: 1 clip cannot be packed" in err
    assert f"{folder / 's2c2.wav'}: is a text file" in err
    assert not (tmp_path / "out").exists()
    code, out, _ = command("csv", table, tmp_path / "out", "--workers", 1, "--skip-bad")
    assert code == 0
    assert f"1 skipped:\n  {folder / 's2c2.wav'}: is a text file, not audio (it begins 'only words [bold]here[/bold]')" in out
    assert re.search(r"identical sound:\n +mini-\S*s1c0, mini-\S*s3c3", out)


def test_bad_input_is_an_error_in_words(tmp_path: Path, table: Path, command: Command) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in [
        (("emobd", tmp_path, tmp_path / "out"), "did you mean emodb"),
        (("emodb", tmp_path / "nowhere", tmp_path / "out"), "does not exist"),
        (("emodb", tmp_path / "empty", tmp_path / "out"), "no utterance found"),
        (("csv", table, tmp_path / "corpus"), "not empty and holds no shards"),
        (("csv", table, tmp_path / "out", "--workers", 0), "at least 1"),
        (("csv", table, tmp_path / "out", "--shard-mb", 0), "at least 1"),
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
    for word in ("python -m ser_hpc.pack emodb", "--skip-bad", "--workers", "audio", "Exit code"):
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
