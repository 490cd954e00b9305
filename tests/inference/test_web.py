"""The local page: it says what predict says, is served to this machine alone, and asks nothing of another."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from inference.made import fine_tuned
from inference.test_predict import wavs

import ser_hpc
from ser_hpc import web
from ser_hpc.core import cli
from ser_hpc.core.errors import UserError
from ser_hpc.inference.page import chart, listen
from ser_hpc.inference.predictor import Predictor
from ser_hpc.shards import RATE

pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def model(base: Path) -> Predictor:
    return ser_hpc.load(fine_tuned(base).path, fold=0)


@pytest.fixture(scope="module")
def talk(base: Path) -> Path:
    """12 s of clips one after another."""
    sounds = np.concatenate([soundfile.read(path)[0] for path in wavs(base)[:40]])
    soundfile.write(base / "talk of 12 s.wav", sounds[: 12 * RATE], RATE)
    return base / "talk of 12 s.wav"


def test_a_clip_is_predicted_as_by_predict(model: Predictor, base: Path) -> None:
    heard, (wanted,) = listen(model, wavs(base)[0]), model.predict(wavs(base)[0])
    assert heard.probabilities == pytest.approx(wanted.probabilities, abs=1e-6)
    assert f"**{wanted.label}**" in heard.remark and not heard.windows and chart(heard.windows) == ""


def test_a_long_one_is_drawn_over_its_whole_time(model: Predictor, talk: Path) -> None:
    heard = listen(model, talk)
    windows = model.predict(talk, window_s=4, hop_s=1)
    assert [(each.start_s, each.label) for each in heard.windows] == [(each.start_s, each.label) for each in windows]
    assert len(windows) == 9
    mean = {name: np.mean([each.probabilities[name] for each in windows]) for name in model.classes}
    assert heard.probabilities == pytest.approx(mean, abs=1e-6)
    drawn = chart(heard.windows)
    assert drawn.count("<svg") == 3 and drawn.count("<rect") == 27 and "0:12" in drawn
    for row in re.findall(r"<svg.*?</svg>", drawn):
        assert sum(float(width) for width in re.findall(r'width="([\d.]+)"', row)) == pytest.approx(12, abs=0.01)


def test_what_is_no_sound_is_told_in_words(model: Predictor, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("no sound at all")
    os.mkfifo(tmp_path / "pipe.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "long.flac", np.zeros(3601 * RATE, np.int16), RATE)
    for name, words in {
        "notes.wav": "the recording",
        "pipe.wav": "pipe",
        "empty.wav": "no sound",
        "long.flac": "60 minutes",
        "none.wav": "does not exist",
    }.items():
        with pytest.raises(UserError, match=words):
            listen(model, tmp_path / name)


@pytest.fixture(scope="module")
def served(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The page's address, and the folder in which its server makes its temporary ones: empty again at the end."""
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "ser_hpc.web", str(fine_tuned(base).path), "--fold", "0", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)})
    try:
        assert server.stderr is not None
        found = None
        while found is None and (line := server.stderr.readline()):
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, "it ended before it served"
        for _ in range(600):  # the socket is open before the server is
            try:
                urllib.request.urlopen(found[0], timeout=60).close()
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield found[0], temporary
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 143
        assert not list(temporary.glob("ser_hpc-web-*")), "what was recorded is not kept"
    finally:
        server.kill()
        server.wait()


def test_the_server_answers_for_this_machine_and_asks_no_other(served: tuple[str, Path]) -> None:
    address, _ = served
    with urllib.request.urlopen(address, timeout=60) as answer:
        page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](https?://[^\"']*)", page)
    assert not loaded
    assert '"analytics_enabled":false' in page.replace(" ", "")
    other = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(other, timeout=60)


def test_a_clip_that_is_sent_is_answered(served: tuple[str, Path], model: Predictor, base: Path) -> None:
    """And a file of this machine that was not sent is not to be had by its path."""
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(served[0], verbose=False, httpx_kwargs={"timeout": 300})
    (wanted,) = model.predict(wavs(base)[0])
    label, remark, _ = client.predict(gradio_client.handle_file(str(wavs(base)[0])), api_name="/listen")
    assert label["value"]["label"] == wanted.label and wanted.label in remark
    with pytest.raises(Exception, match=r"."):  # whatever Gradio makes of it
        client.predict({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, api_name="/listen")


def test_what_cannot_be_served_is_told(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(fine_tuned(base).path)
    with web._listening("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert cli.run_to_exit_code(lambda: web.main([run, "--port", port])) == 2
        assert "another --port" in capsys.readouterr().err
    assert cli.run_to_exit_code(lambda: web.main([run, "--port", "700000"])) == 2
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.run_to_exit_code(lambda: web.main([run, "--fold", "0", "--port", "0"])) == 2
    assert "pip install 'ser_hpc[web]'" in capsys.readouterr().err
