"""Long recordings need little memory: their sound at 16 kHz, 115 MB an hour, or less where clips are pieces of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from odd_sounds import as_int16, speech, wav, with_sizes

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import encode
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.read import ShardReader
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack

RATE = 48_000
MINUTES = 20
PACK = """
import resource, sys
from pathlib import Path
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards.write import pack
small, long, out, pieces = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
def clip(path, at=None):
    return Utterance("mini", f"{path.stem}{at or 0}", path, "ann", "joy", start_s=at, end_s=at and at + 2)
pack([clip(small)], out / "small", workers=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pack([clip(long, 600 + at) for at in range(pieces)] or [clip(long)], out / "long", workers=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two seconds, and 20 minutes that are silent but for two seconds in the middle (a sparse file), of unknown size."""
    folder = tmp_path_factory.mktemp("hours")
    small, long = folder / "small.wav", folder / "long.wav"
    sound = as_int16(np.stack([speech(2.0, RATE, seed) for seed in (0, 1)], axis=1))
    small.write_bytes(wav(sound, rate=RATE))
    with long.open("wb") as file:
        file.write(with_sizes(wav(sound[:0], rate=RATE), riff=36, data=0))
        file.write(b"\1\0")  # no chunk
        file.truncate(44 + MINUTES * 60 * RATE * 4)
        file.seek(44 + 600 * RATE * 4)
        file.write(sound.astype("<i2").tobytes() * 2)
    return small, long


@pytest.mark.parametrize(("pieces", "most_mb"), [(0, 70), (2, 30)], ids=["whole", "pieces"])
def test_long_recordings_in_stereo_add_little_memory(
    tmp_path: Path, recordings: tuple[Path, Path], pieces: int, most_mb: int
) -> None:
    command = [sys.executable, "-c", PACK, *map(str, (*recordings, tmp_path, pieces))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < most_mb * 1024


def test_a_clip_too_long_for_memory_is_packed_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.wav"
    sound = as_int16(speech(2.0))
    soundfile.write(path, sound, 16_000)
    clip = Utterance("mini", "clip", path, "ann", "joy")
    pack([clip], tmp_path / "in_memory", workers=1)
    monkeypatch.setattr(encode, "_IN_MEMORY", 1000)
    pack([clip], tmp_path / "on_disk", workers=1)
    tars = [next((tmp_path / name).rglob("*.tar")).read_bytes() for name in ("in_memory", "on_disk")]
    assert tars[0] == tars[1]
    assert verify(tmp_path / "on_disk") == []
    with ShardReader(ShardIndex.load(tmp_path / "on_disk")) as reader:
        np.testing.assert_array_equal(reader.read(0), sound)
    names = [
        sorted(file.relative_to(tmp_path / name) for file in (tmp_path / name).rglob("*")) for name in ("in_memory", "on_disk")
    ]
    assert names[0] == names[1]
