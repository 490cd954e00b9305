"""Make and read the demo corpus: synthetic speech, so that everything from wav to report runs without a real corpus.

Layout   ROOT/wav/ses1F-angry-00.wav ...: 16 kHz, 16 bit, 0.8 to 1.8 s; ROOT/demo.json, written last, marks it complete.
Counts   5 sessions x 2 speakers (a woman and a man) x 4 emotions x `clips_per_speaker_and_emotion`.
Code     Each emotion is a combination of cues, and each cue divides the four into two and two:

             emotion   pitch and its range   level   tempo   voice
             angry     high, wide            loud    slow    pressed     (cold, emphatic anger)
             happy     high, wide            loud    fast    breathy
             neutral   low, narrow           soft    fast    pressed
             sad       low, narrow           soft    slow    breathy

         So no single cue can score over 0.5 UAR on clips without noise, and any two kinds (the first two columns go together)
         tell all four. The speakers' own pitch and vocal tract differ far more than the emotions do.
Method   Source and filter (Fant 1960): a pulse train with jitter and shimmer, tilted as the voice is pressed or breathy, and
         breath noise go through four formant resonators per vowel; syllables shape loudness and pitch. The level is in the
         samples, and a constant room noise keeps it audible to a model that normalises its input.

A score on it says that the machinery works, and nothing about speech.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import soundfile

from ser_hpc.core import cores
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError
from ser_hpc.corpora.parse_result import ParseResult, make_result, require_folder
from ser_hpc.corpora.utterance import Utterance

LAYOUT = "wav/ and demo.json, as synthetic.make writes them"
MARKER = "demo.json"
VERSION = 1  # raise it when the sound changes: corpora of another version are made anew
SAMPLE_RATE_HZ = 16_000
FFT_SIZE = 32_768  # the longest clip of 28,800 samples, and room for the filters to ring
ROOM_NOISE_DB = -69.0
NOISE_TILT_DB_PER_OCTAVE = -6.0  # of breath and of the room


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker: mean pitch, and formants relative to those of a vocal tract of 17 cm."""

    session: str
    gender: str
    pitch_hz: float
    formant_scale: float

    @property
    def name(self) -> str:
        """The speaker's name, as ses1F."""
        return self.session + self.gender[0].upper()


@dataclass(frozen=True, slots=True)
class Manner:
    """How an emotion is spoken. Pitch is a factor on the speaker's, levels are in dB of full scale (RMS of the voice)."""

    pitch_factor: float
    pitch_range_semitones: float
    level_db: float
    syllables_per_s: float
    tilt_db_per_octave: float
    breath_db: float  # breath noise relative to the voiced sound


VOICES = (
    Voice("ses1", "female", 205.0, 1.16),
    Voice("ses1", "male", 118.0, 0.97),
    Voice("ses2", "female", 178.0, 1.10),
    Voice("ses2", "male", 96.0, 0.90),
    Voice("ses3", "female", 240.0, 1.22),
    Voice("ses3", "male", 134.0, 1.02),
    Voice("ses4", "female", 190.0, 1.19),
    Voice("ses4", "male", 104.0, 0.93),
    Voice("ses5", "female", 222.0, 1.13),
    Voice("ses5", "male", 126.0, 0.99),
)
MANNERS = {
    "angry": Manner(1.22, 5.0, -30.0, 3.0, -3.0, -30.0),
    "happy": Manner(1.28, 6.0, -30.0, 6.0, -12.0, -10.0),
    "neutral": Manner(1.0, 1.5, -42.0, 6.0, -3.0, -30.0),
    "sad": Manner(0.96, 1.5, -42.0, 3.0, -12.0, -10.0),
}
VOWELS_HZ = np.array(  # formants of a, i and u for a vocal tract of 17 cm
    [
        [730, 1090, 2440, 3500],
        [270, 2290, 3010, 3700],
        [300, 870, 2240, 3300],
    ],
    dtype=np.float64,
)
BANDWIDTHS_HZ = np.array([80.0, 100.0, 140.0, 220.0])
FREQUENCIES_HZ = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE_HZ)
DELAY = np.exp(-2j * np.pi * FREQUENCIES_HZ / SAMPLE_RATE_HZ)  # of one sample: 1/z on the unit circle
OCTAVES_ABOVE_300_HZ = 0.5 * np.log2(1 + (FREQUENCIES_HZ / 300.0) ** 2)


def make_demo_corpus(root: Path, clips_per_speaker_and_emotion: int = 10, seed: int = 0) -> ParseResult:
    """Write the corpus into `root`, unless it is there already with these settings. Same settings, same bytes.

    Clip k sounds the same however many there are. A corpus whose making was interrupted is made again.
    Raises UserError where there are not 1 to 100 clips.
    """
    if not 1 <= clips_per_speaker_and_emotion <= 100:
        raise UserError(f"clips per speaker and emotion must be 1 to 100, but is {clips_per_speaker_and_emotion}")
    settings = {"version": VERSION, "seed": seed, "clips_per_speaker_and_emotion": clips_per_speaker_and_emotion}
    if _settings_of_complete(root) != settings:
        (root / MARKER).unlink(missing_ok=True)
        (root / "wav").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(cores.process_share(os.environ).cores) as pool:  # most of it is numpy's, which takes no lock
            clips = _utterances(root, clips_per_speaker_and_emotion)
            list(pool.map(lambda clip: _write_wav(clip.audio_path, _speak(clip, seed)), clips))
        write_json(root / MARKER, settings | {"bytes": _num_bytes(root, clips_per_speaker_and_emotion)})
    return parse(root)


def parse(root: Path) -> ParseResult:
    """Return the clips that `make_demo_corpus` wrote into `root`.

    Raises UserError where it did not finish, or where files have changed since.
    """
    require_folder(root, LAYOUT)
    settings = _settings_of_complete(root)
    if settings is None:
        raise UserError(f"{root} is not a complete demo corpus: {MARKER} is missing, or files have changed; make it again")
    clips = _utterances(root, settings["clips_per_speaker_and_emotion"])
    ours = {clip.audio_path for clip in clips}
    others = [(path, "not a clip of this corpus") for path in sorted((root / "wav").iterdir()) if path not in ours]
    return make_result(root, LAYOUT, clips, others)


def _settings_of_complete(root: Path) -> dict[str, int] | None:
    """Return the settings that the corpus in `root` was made with; None if it is not complete."""
    try:
        settings: dict[str, int] = read_json(root / MARKER)
        num_bytes = settings.pop("bytes")
        complete = num_bytes == _num_bytes(root, settings["clips_per_speaker_and_emotion"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return settings if complete else None


def _num_bytes(root: Path, num_clips: int) -> int:
    return sum(clip.audio_path.stat().st_size for clip in _utterances(root, num_clips))


def _utterances(root: Path, num_clips: int) -> list[Utterance]:
    """List every clip of the corpus, whether written yet or not; `num_clips` per speaker and emotion."""
    return [
        Utterance(
            corpus="demo",
            utterance_id=(name := f"{voice.name}-{emotion}-{number:02d}"),
            audio_path=root / "wav" / f"{name}.wav",
            speaker=voice.name,
            emotion=emotion,
            session=voice.session,
            gender=voice.gender,
        )
        for voice, emotion, number in product(VOICES, MANNERS, range(num_clips))
    ]


def _write_wav(path: Path, samples: np.ndarray) -> None:
    """Write a 16-bit wav, aside and then renamed; not synced, as the demo is cheap to make again."""
    temporary = path.with_name(f".{path.name}.tmp")
    soundfile.write(temporary, samples, SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    temporary.replace(path)


def _speak(clip: Utterance, seed: int) -> np.ndarray:
    """Synthesise a clip: float64 samples (num_samples,) within -1 and 1."""
    voice = next(voice for voice in VOICES if voice.name == clip.speaker)
    manner = MANNERS[clip.emotion]
    random = np.random.default_rng([seed, *clip.utterance_id.encode()])
    num_samples = int(SAMPLE_RATE_HZ * random.uniform(0.8, 1.8))

    vowels, loudness = _syllables(num_samples, manner, random)
    pulses = _pulses(_pitch_contour(loudness, voice, manner, random), random)
    breath, room = (_filtered(noise, _tilt(NOISE_TILT_DB_PER_OCTAVE)) for noise in random.standard_normal((2, num_samples)))
    voiced = _filtered(pulses, _tilt(manner.tilt_db_per_octave + random.normal(0.0, 1.5)))
    source = loudness * (voiced + _gain(manner.breath_db + random.normal(0.0, 2.0)) * breath * _rms(voiced) / _rms(breath))
    tract_scale = voice.formant_scale * random.normal(1.0, 0.03)
    spectrum = np.zeros(len(FREQUENCIES_HZ), dtype=np.complex128)
    for vowel in set(vowels.tolist()):
        spectrum += np.fft.rfft(source * (vowels == vowel), FFT_SIZE) * _vocal_tract(VOWELS_HZ[vowel] * tract_scale)
    sound = np.fft.irfft(spectrum, FFT_SIZE)[:num_samples]
    sound *= _gain(manner.level_db + random.normal(0.0, 1.5)) / _rms(sound)
    sound += _gain(ROOM_NOISE_DB) * room / _rms(room)
    assert np.abs(sound).max() < 1.0, f"{clip.utterance_id} would be clipped"
    return sound


def _syllables(num_samples: int, manner: Manner, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the vowel (row of VOWELS_HZ) and the loudness (0 to 1) of each sample; both (num_samples,)."""
    rate = manner.syllables_per_s * random.normal(1.0, 0.06)
    num_syllables = int(np.ceil(num_samples / SAMPLE_RATE_HZ * rate)) + 2
    ends_s = np.cumsum(random.normal(1.0, 0.1, num_syllables).clip(0.7, 1.3)) / rate - random.uniform(0.0, 1.0) / rate
    time_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    syllable = np.searchsorted(ends_s, time_s, side="right").clip(max=num_syllables - 1)
    starts_s = np.concatenate([[ends_s[0] - 1 / rate], ends_s[:-1]])
    place = (time_s - starts_s[syllable]) / (ends_s - starts_s)[syllable]
    accent = random.uniform(0.7, 1.0, num_syllables)
    vowel = random.integers(len(VOWELS_HZ), size=num_syllables)
    return vowel[syllable], accent[syllable] * np.sin(np.pi * place.clip(0.0, 1.0)) ** 1.5


def _pitch_contour(loudness: np.ndarray, voice: Voice, manner: Manner, random: np.random.Generator) -> np.ndarray:
    """Return each sample's fundamental frequency in Hz (num_samples,): declining, with a slow wave and a rise per syllable."""
    place = np.linspace(0.0, 1.0, len(loudness))
    wave = np.sin(2 * np.pi * (random.uniform(0.8, 1.6) * place + random.uniform()))
    semitones = manner.pitch_range_semitones * (0.4 * wave + 0.5 * (loudness - 0.5) - 0.4 * (place - 0.5))
    return voice.pitch_hz * manner.pitch_factor * random.normal(1.0, 0.04) * 2 ** (semitones / 12)


def _pulses(pitch_hz: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return one impulse a period, with 1 % jitter in time and 5 % shimmer in height; (num_samples,)."""
    phase = np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    times = np.interp(np.arange(1.0, np.floor(phase[-1])), phase, np.arange(len(phase)))
    times += random.normal(0.0, 0.01, len(times)) * SAMPLE_RATE_HZ / pitch_hz[times.astype(int)]
    heights = random.normal(1.0, 0.05, len(times))
    before = times.clip(0, len(phase) - 2).astype(int)
    after = (times - before).clip(0.0, 1.0)  # an impulse between two samples is shared by both
    pulses = np.zeros(len(phase))
    np.add.at(pulses, before, heights * (1 - after))
    np.add.at(pulses, before + 1, heights * after)
    return pulses


def _tilt(db_per_octave: float) -> np.ndarray:
    """Return the gain of a spectral slope above 300 Hz, (FFT_SIZE / 2 + 1,)."""
    return np.asarray(_gain(db_per_octave * OCTAVES_ABOVE_300_HZ))


def _vocal_tract(formants_hz: np.ndarray) -> np.ndarray:
    """Return the complex response of four resonators in series, each 1 at 0 Hz (Klatt 1980), (FFT_SIZE / 2 + 1,)."""
    response = np.ones(len(DELAY), dtype=np.complex128)
    for formant_hz, bandwidth_hz in zip(formants_hz, BANDWIDTHS_HZ, strict=True):
        radius = np.exp(-np.pi * bandwidth_hz / SAMPLE_RATE_HZ)
        b = 2 * radius * np.cos(2 * np.pi * formant_hz / SAMPLE_RATE_HZ)
        response *= (1 - b + radius**2) / (1 - DELAY * (b - radius**2 * DELAY))
    return response


def _filtered(sound: np.ndarray, response: np.ndarray) -> np.ndarray:
    return np.fft.irfft(np.fft.rfft(sound, FFT_SIZE) * response, FFT_SIZE)[: len(sound)]


def _rms(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(sound**2)))


def _gain(decibels: float | np.ndarray) -> float | np.ndarray:
    return 10 ** (decibels / 20)
