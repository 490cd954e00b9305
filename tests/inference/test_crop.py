"""Clips cut to their middle: the same samples when packed clips are read, when recordings are predicted, and in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from inference.made import THREE_FOLDS, pretrained, train
from inference.test_predict import saved, wavs
from small import packed_tones, planned

import ser_hpc
from ser_hpc.config import schema
from ser_hpc.config.load import load_settings
from ser_hpc.core.errors import ConfigError
from ser_hpc.data.batches import BatchSource
from ser_hpc.data.prefetch import Crop
from ser_hpc.data.sampler import BatchSpec, evaluation_micro_batches
from ser_hpc.inference.export import export
from ser_hpc.inference.folder import read_model
from ser_hpc.inference.recordings import ArrayRecording
from ser_hpc.inference.register import SerHpcConfig, SerHpcForAudioClassification
from ser_hpc.inference.trials import RunModels
from ser_hpc.inference.windows import whole
from ser_hpc.run.run_dir import RunDir, Trial
from ser_hpc.shards import RATE
from ser_hpc.shards.audio import BadClipError
from ser_hpc.shards.index import ShardIndex
from ser_hpc.tasks.task import ClipTargets

MOST = 4000


@pytest.fixture(scope="module")
def cropped(base: Path) -> RunDir:
    """Fold 0 of a probe that hears the middle quarter of a second."""
    lines = (f"model.weights={pretrained(base)}", "model.freeze=encoder", "model.head={kind: probe, l2: [0.1]}")
    crop = (f"data.max_seconds={MOST / RATE}", "data.crop=center")
    return train(planned(base / "runs", packed_tones(base), *lines, *crop, *THREE_FOLDS, plain=True), Trial(0, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_middle_of_packed_clips_is_read(base: Path, workers: int) -> None:
    index = ShardIndex.load(packed_tones(base))
    positions = np.arange(0, len(index.metadata), 9)
    targets = ClipTargets.of_main(np.zeros(len(index.metadata)), np.ones(len(index.metadata)))
    micros = list(evaluation_micro_batches(positions, index.num_samples[positions], BatchSpec(1, 50_000), 0))

    def read(crop: Crop, workers: int = 0) -> list[np.ndarray]:
        with BatchSource(index, targets, crop=crop, workers=workers) as source:
            return [
                clip.numpy()
                for batch in source.prefetch(micros)
                for clip in torch.split(batch.samples, batch.offsets.diff().tolist())
            ]

    for clip, middle in zip(read(Crop()), read(Crop(MOST, center=True), workers), strict=True):
        start = max(0, len(clip) - MOST) // 2
        assert np.array_equal(middle, clip[start : start + MOST]) and len(middle) == min(MOST, len(clip))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("count", [1, MOST, MOST + 1, 3 * MOST + 2, 50 * MOST])
def test_a_recording_is_cut_as_a_clip(count: int, center: bool) -> None:
    """It is told that it was, and where what was heard lies."""
    sound, crop = np.arange(count).astype(np.int16), Crop(MOST, center)
    (found,) = whole(ArrayRecording("x", sound, RATE), crop)
    assert np.array_equal(found.samples, crop(sound)) and found.cut == (count > MOST)
    assert found.start_s == (max(0, count - MOST) // 2 / RATE if center else 0)


def test_the_middle_of_what_is_no_clip_is_not_looked_for() -> None:
    """Of a recording of any length memory would have to hold half; its beginning is there at once."""
    long = ArrayRecording("x", np.ones(301 * RATE, np.int16), RATE)
    assert next(whole(long, Crop(MOST))).cut
    with pytest.raises(BadClipError, match="longer than the 300 s"):
        next(whole(long, Crop(MOST, center=True)))


def test_a_model_hears_what_it_was_trained_on(base: Path, cropped: RunDir, tmp_path: Path) -> None:
    """From the run, from an exported folder, and as transformers' model, in a padded batch."""
    wanted = saved(cropped)
    export(RunModels.open(cropped), [Trial(0, 0)], tmp_path / "shipped")
    spec, ensemble = read_model(tmp_path / "shipped")
    theirs = SerHpcForAudioClassification(SerHpcConfig(ser_hpc=spec.as_json()), ensemble)
    paths = [path for path in wavs(base) if any(key.endswith(path.stem) for key in wanted)][:6]
    assert len(paths) == 6
    models = [ser_hpc.load(cropped.path, fold=0), ser_hpc.load(tmp_path / "shipped")]
    sounds = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(sound)) for sound in sounds], batch_first=True)
    with torch.no_grad():
        logits = theirs(torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True), mask).logits
    for path, chances in zip(paths, logits.softmax(-1), strict=True):
        found = [model.predict(path)[0] for model in models]
        key = next(key for key in wanted if key.endswith(path.stem))
        assert {p.label for p in found} == {wanted[key].predicted} and found[0].cut
        assert [*found[0].probabilities.values()] == pytest.approx([*found[1].probabilities.values()], abs=1e-5)
        assert [*found[0].probabilities.values()] == pytest.approx(chances.tolist(), abs=2e-3)


def test_a_crop_needs_a_length_and_is_another_run() -> None:
    with pytest.raises(ConfigError, match=r"data.crop=center cuts clips to data.max_seconds"):
        load_settings(None, ["data.crop=center"])
    start, center = ([f"data.crop={crop}", "data.max_seconds=8"] for crop in ("start", "center"))
    assert schema.identity(load_settings(None, start)) == {"data": {"max_seconds": 8.0}}
    assert schema.identity(load_settings(None, center)) == {"data": {"max_seconds": 8.0, "crop": "center"}}


def test_the_middle_is_what_onnx_hears_too(cropped: RunDir, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    export(RunModels.open(cropped), [Trial(0, 0)], tmp_path / "out", onnx=True)
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    sound = np.rint(np.random.default_rng(0).standard_normal(3 * MOST) * np.linspace(10, 3000, 3 * MOST)).astype(np.int16)
    (wanted,) = ser_hpc.load(cropped.path, fold=0).predict(sound)
    for samples in (sound, sound[MOST : 2 * MOST]):
        (found,) = session.run(["emotion"], {"samples": (samples / np.float32(32768))[None].astype(np.float32)})
        assert found[0] == pytest.approx(list(wanted.probabilities.values()), abs=1e-4)
