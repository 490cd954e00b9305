"""How near packing comes to what decoding, resampling and encoding cost alone.

    python tools/bench/pack_speed.py tools/bench/results/pack_speed.json --emodb /data/emodb --workers 1 --repeats 3

The limit: soundfile.read, soxr.resample, soundfile.write (FLAC) of every clip, and nothing else: no headers read beforehand, no
checks, hashes, measures, tars, indices or syncing to disk. Limit and packing take turns, on the same cores; the first turn of
each warms up and is not counted. A ratio of 1 would be packing for nothing. Seconds are of the wall clock and of the CPU: where
they differ, the disk was waited for, or another program ran. In a third turn packing makes no acoustic fingerprints.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from ser_hpc.core import cli
from ser_hpc.core.atomic_io import write_json
from ser_hpc.corpora.parsers import emodb
from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards import RATE
from ser_hpc.shards.task_pool import TaskPool
from ser_hpc.shards.write import pack

CLIPS, SECONDS, SYNTHETIC_RATE = 480, 4.0, 44_100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file for the results")
    parser.add_argument("--emodb", type=Path, help="Emo-DB, to measure on real recordings too")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns of each (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))], help="processes")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(dir=options.out.absolute().parent) as folder:
        corpora = {f"synthetic, {CLIPS} clips of {SECONDS:g} s at {SYNTHETIC_RATE} Hz": synthetic(Path(folder) / "clips")}
        if options.emodb:
            corpora["Emo-DB"] = list(emodb.parse(options.emodb).utterances)
        for name, utterances in corpora.items():
            for workers in dict.fromkeys(options.workers):
                result = {"corpus": name} | compare(utterances, workers, options.repeats, Path(folder) / "out")
                print(f"{name}, {workers} workers: {result['ratio']}", flush=True)
                results.append(result)
    write_json(
        options.out,
        {
            "command": command(options),
            "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
            "packages": {name: version(name) for name in ("numpy", "soundfile", "soxr", "pyarrow")},
            "results": results,
        },
    )
    return 0


def command(options: argparse.Namespace) -> str:
    """The command as the pages have it: with the folders' names there."""
    emodb_too = " --emodb /data/emodb" * bool(options.emodb)
    workers = " ".join(map(str, options.workers))
    return (
        f"python tools/bench/pack_speed.py tools/bench/results/pack_speed.json{emodb_too} --workers {workers} "
        f"--repeats {options.repeats}"
    )


def compare(utterances: Sequence[Utterance], workers: int, repeats: int, out: Path) -> dict[str, Any]:
    """Seconds of each turn; the ratio is of neighbouring turns, limit over packing, with acoustic fingerprints and without."""
    limits, packs, without = [], [], []
    for turn in range(repeats + 1):
        limit = timed(lambda: alone(utterances, workers))
        shutil.rmtree(out, ignore_errors=True)
        packed = timed(lambda: pack(utterances, out, workers=workers))
        shutil.rmtree(out)
        plain = timed(lambda: pack(utterances, out, workers=workers, fingerprinted=False))
        if turn:
            limits.append(limit)
            packs.append(packed)
            without.append(plain)
    spoken = sum(soundfile.info(utterance.audio_path).duration for utterance in utterances)
    return {
        "workers": workers,
        "clips": len(utterances),
        "audio_seconds": round(spoken, 1),
        "ratio": spread([limit[0] / packed[0] for limit, packed in zip(limits, packs, strict=True)]),
        "ratio_cpu": spread([limit[1] / packed[1] for limit, packed in zip(limits, packs, strict=True)]),
        "ratio_without_fingerprints": spread([limit[0] / plain[0] for limit, plain in zip(limits, without, strict=True)]),
        "ratio_cpu_without_fingerprints": spread([limit[1] / plain[1] for limit, plain in zip(limits, without, strict=True)]),
        "fingerprints_cpu_s_per_audio_minute": spread(
            [60 * (packed[1] - plain[1]) / spoken for packed, plain in zip(packs, without, strict=True)]
        ),
        "limit_s": [round(limit[0], 3) for limit in limits],
        "pack_s": [round(packed[0], 3) for packed in packs],
        "pack_without_fingerprints_s": [round(plain[0], 3) for plain in without],
        "packed_audio_seconds_per_second": round(spoken / statistics.median(packed[0] for packed in packs)),
    }


def alone(utterances: Sequence[Utterance], workers: int) -> None:
    """The limit, with the clips dealt to processes that packing would use, started in this time as there."""
    chunks = [([u.audio_path for u in utterances[at : at + 48]],) for at in range(0, len(utterances), 48)]
    with TaskPool(workers) as pool:
        for _ in pool.run(transcode, chunks):
            pass


def transcode(paths: Sequence[Path]) -> int:
    encoded = 0
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32")
        if rate != RATE:
            samples = soxr.resample(samples, rate, RATE, quality="HQ")
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
        encoded += len(buffer.getvalue())
    return encoded


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds, and CPU seconds of this process and of children that have ended."""
    began, used = time.perf_counter(), sum(os.times()[:4])
    function()
    return time.perf_counter() - began, sum(os.times()[:4]) - used


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def synthetic(folder: Path) -> list[Utterance]:
    """Noise with the spectrum and the rises and falls of speech, so that FLAC has as much to do; four speakers."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    samples = round(SECONDS * SYNTHETIC_RATE)
    shape = 1 / np.maximum(np.fft.rfftfreq(samples, 1 / SYNTHETIC_RATE), 120.0)
    utterances = []
    for clip in range(CLIPS):
        noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * shape, samples)
        syllables = np.interp(np.linspace(0, 16, samples), np.arange(17), rng.uniform(0, 1, 17) ** 2)
        path = folder / f"c{clip:04d}.wav"
        soundfile.write(path, 0.5 * noise * syllables / np.abs(noise).max(), SYNTHETIC_RATE, subtype="PCM_16")
        utterances.append(Utterance("synthetic", path.stem, path, f"s{clip % 4}", "none"))
    return utterances


if __name__ == "__main__":
    cli.run_main(main)
