"""A clip becomes the same wherever it is augmented; what settings name wrongly is told before anything runs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_hpc.config.load import dump_settings, load_settings
from ser_hpc.config.schema import identity
from ser_hpc.config.transforms import PRESETS, Transform
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.data.augmentation import Augmentation, check_augmentation, sounds_digest

CLIP = (np.random.default_rng(0).standard_normal(24_000) * 3000).astype(np.int16)


def chain(value: str) -> tuple[Transform, ...]:
    return load_settings(None, [f"data.augment={value}"]).data.augment


@pytest.fixture
def noises(tmp_path: Path) -> Path:
    """Two folders of noise, made in an order that is not that of their names."""
    for name in ("b/2.wav", "b/1.wav", "a/3.wav"):
        path = tmp_path / "noises" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(len(str(path)) + ord(name[2])).standard_normal(16_000) * 0.1, 16_000)
    return tmp_path / "noises"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_run_are_told_in_full_and_depend_on_the_seed_alone(preset: str, noises: Path) -> None:
    transforms = chain(f"{{preset: {preset}, p: 0.7" + (f", sounds_path: {noises}}}" if "background" in preset else "}"))
    words = check_augmentation(transforms)
    assert [word.split("(")[0] for word in words] == [transform.name for transform in transforms]
    assert all("p=0.7" in word for word in words)
    augment = Augmentation(transforms)
    first = [augment(CLIP, seed) for seed in range(6)]
    again = pickle.loads(pickle.dumps(augment))  # in a worker, in another order, after other clips
    for seed in (3, 1, 5):
        np.testing.assert_array_equal(again(CLIP, seed), first[seed])
    assert len({sound.tobytes() for sound in first}) > 4
    assert all(sound.dtype == np.float32 and np.abs(sound).max() < 4 for sound in first)


def test_a_stretched_clip_keeps_all_its_sound() -> None:
    lengths = {len(Augmentation(chain("noise_pitch_stretch"))(CLIP, seed)) for seed in range(8)}
    assert len(lengths) > 2 and min(lengths) >= len(CLIP) / 1.26 and max(lengths) <= len(CLIP) / 0.79


def test_an_untouched_clip_is_what_the_model_makes_of_int16() -> None:
    np.testing.assert_array_equal(Augmentation(chain("[{name: Gain, p: 0}]"))(CLIP, 0), CLIP.astype(np.float32) / 32768)


def test_transforms_may_hold_others() -> None:
    augment = Augmentation(chain("[{name: OneOf, transforms: [{name: Gain, p: 1}, {name: PolarityInversion, p: 1}]}]"))
    inverted = [np.array_equal(augment(CLIP, seed), -CLIP.astype(np.float32) / 32768) for seed in range(12)]
    assert set(inverted) == {True, False}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("[{name: AddGausianNoise}]", "did you mean AddGaussianNoise"),
        ("[{name: Gain, min_gain: -3}]", "no argument 'min_gain'; did you mean min_gain_db"),
        ("[{name: Gain, min_gain_db: 5, max_gain_db: 1}]", "Gain refuses .* cannot be greater"),
        ("[{name: TimeStretch, min_rate: fast}]", "TimeStretch refuses"),
        ("[{name: AddBackgroundNoise, sounds_path: /no/such/folder}]", "there is no /no/such/folder"),
        ("[{name: OneOf, transforms: [{name: Gain}, {name: Revers}]}]", "did you mean Reverse"),
        ("[{name: Lambda}]", "no transform 'Lambda'"),
    ],
)
def test_what_audiomentations_does_not_have_is_told_in_words(given: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_augmentation(chain(given))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("noise_pitch", "no preset 'noise_pitch'.*did you mean noise_pitch_stretch"),
        ("noise_background_mask", "needs sounds_path"),
        ("{preset: noise_pitch_stretch, rate: 2}", "no transform of noise_pitch_stretch has 'rate'"),
        ("[{p: 0.5}]", r"data\.augment\.0\.name"),
    ],
)
def test_settings_that_make_no_chain_are_refused(given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        chain(given)


def test_what_a_chain_leaves_of_a_clip_must_be_sound() -> None:
    with pytest.raises(UserError, match="not finite"):
        Augmentation(chain("[{name: Gain, p: 1, min_gain_db: 900, max_gain_db: 900}]"))(CLIP, 0)


def test_the_chain_is_part_of_what_a_run_is_and_where_its_noises_lie_is_not(noises: Path, tmp_path: Path) -> None:
    """The noises themselves are: by their names and sizes."""
    moved = tmp_path / "elsewhere"
    here = load_settings(None, [f"data.augment={{preset: noise_background_mask, sounds_path: {noises}}}"])
    digest = sounds_digest(here.data.augment)
    noises.rename(moved)
    there = load_settings(None, [f"data.augment={{preset: noise_background_mask, sounds_path: {moved}}}"])
    assert identity(here) == identity(there)
    assert sounds_digest(there.data.augment) == digest
    (moved / "b" / "1.wav").unlink()
    assert sounds_digest(there.data.augment) != digest
    assert identity(here) != identity(load_settings(None, []))
    settings = tmp_path / "settings.yaml"
    settings.write_text(dump_settings(there))
    assert load_settings(settings, []) == there


def test_noises_are_drawn_alike_however_a_disk_lists_them(noises: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = chain(f"[{{name: AddBackgroundNoise, p: 1, sounds_path: {noises}}}]")
    expected = [Augmentation(transforms)(CLIP, seed) for seed in range(5)]
    import audiomentations.augmentations.add_background_noise as module

    real = module.find_audio_files_in_paths
    monkeypatch.setattr(module, "find_audio_files_in_paths", lambda *arguments: real(*arguments)[::-1])
    for seed in range(5):
        np.testing.assert_array_equal(Augmentation(transforms)(CLIP, seed), expected[seed])


def test_a_room_is_drawn_alike_and_leaves_length_and_loudness() -> None:
    """The package's own transform, by torchaudio: a clip comes out as long and as loud, and rings on behind it."""
    click = np.zeros(16_000, dtype=np.int16)
    click[2_000] = 20_000
    room = (Transform(name="RoomResponse", p=1.0, rt60_s=(0.4, 0.4), direct_to_reverberant_db=(0.0, 0.0)),)
    first, again, other = (Augmentation(room)(click, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len(first) == len(click)
    assert np.sqrt((first**2).mean()) == pytest.approx(np.sqrt(((click / 32768) ** 2).mean()), rel=1e-4)
    energy = np.array([(first[start : start + 800] ** 2).sum() for start in (2_100, 5_300)])  # 0.2 s apart: 30 dB
    assert 10 * np.log10(energy[0] / energy[1]) == pytest.approx(30, abs=4)
    assert not np.abs(first[:1_999]).max() > 1e-5, "nothing rings before it"
