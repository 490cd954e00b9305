"""Lengths that a decoder guesses, or believes: MP3 and Ogg are read to their end, whatever is announced."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import odd_sounds
import pytest
from odd_sounds import mp3, riff_mp3, speech, written

from ser_hpc.shards import audio, recording

RATE = 16_000
# Far more bytes a second at first than later, or the other way round: a guess from the first frame is wrong by as much.
RISING = np.r_[np.zeros(RATE), speech(3.0)]
FALLING = np.r_[speech(3.0), np.zeros(RATE)]
ID3 = b"ID3\x04\0\0\0\0\0\x32" + bytes(50)
DELAY = 1700  # samples at most that LAME puts in front, and a frame more


def likeness(samples: np.ndarray, sound: np.ndarray) -> float:
    """Correlation where they fit best."""
    size = min(len(sound), len(samples) - DELAY)
    shifts = range(DELAY)
    spectrum = np.fft.rfft(samples.astype(float), 1 << 18) * np.fft.rfft(sound[:size].astype(float), 1 << 18).conj()
    best = int(np.argmax(np.fft.irfft(spectrum)[: len(shifts)]))
    return float(np.corrcoef(samples[best : best + size], sound[:size])[0, 1])


def variants(sound: np.ndarray, rate: int = RATE) -> dict[str, bytes]:
    return {
        "variable rate": mp3(sound, rate, quality=0.9),
        "constant rate": mp3(sound, rate, mode="CONSTANT", quality=0.8),
        "with a tag": ID3 + mp3(sound, rate, quality=0.9),
        "with tags before and behind": ID3 + ID3 + mp3(sound, rate) + b"APETAGEX" + bytes(70) + b"TAG" + bytes(125),
        "in a WAV": riff_mp3(mp3(sound, rate, quality=0.9), rate),
        "in a WAV, at a constant rate": riff_mp3(mp3(sound, rate, mode="CONSTANT"), rate),
    }


@pytest.mark.parametrize("shape", ["rising", "falling"])
@pytest.mark.parametrize("name", variants(np.zeros(RATE)))
def test_mp3_that_does_not_say_its_length_is_read_whole(tmp_path: Path, name: str, shape: str) -> None:
    """libsndfile stops where it guesses the end from the size of the first frame, or knows no such file by its content."""
    sound = RISING if shape == "rising" else FALLING
    path = tmp_path / "clip.mp3"
    path.write_bytes(variants(sound)[name])
    clip = audio.decode(path)
    assert len(sound) <= len(clip.samples) <= len(sound) + DELAY
    assert likeness(clip.samples, sound) > 0.6  # noise at a few kbit/s
    assert audio.read_header(path) == audio.AudioHeader(len(clip.samples), "")
    piece = audio.decode(path, 2.0, 3.5)
    assert len(piece.samples) == 24_000
    settled = slice(4 * 576, None)  # frames borrow bits from those before
    np.testing.assert_allclose(piece.samples[settled], clip.samples[32_000:56_000][settled], atol=2)


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_mp3_of_other_rates_too(tmp_path: Path, rate: int) -> None:
    for channels in (1, 2):
        sound = np.repeat(speech(1.5, rate)[:, None], channels, axis=1)
        (tmp_path / "clip.mp3").write_bytes(mp3(sound, rate))
        assert 24_000 <= len(audio.decode(tmp_path / "clip.mp3").samples) <= 24_000 + DELAY


def test_mp3_that_says_its_length_is_read_as_it_says(tmp_path: Path) -> None:
    """Without the encoder's delay, which only its first frame tells; with a tag in front or not."""
    whole = mp3(FALLING, xing=True)
    for content in (whole, ID3 + whole):
        (tmp_path / "clip.mp3").write_bytes(content)
        clip = audio.decode(tmp_path / "clip.mp3")
        assert len(clip.samples) == len(FALLING) and clip.doubtful == ""


def told(frames: int, whole: bytes) -> bytes:
    at = whole.index(b"Xing") + 8
    return whole[:at] + struct.pack(">I", frames) + whole[at + 4 :]


def test_mp3_joined_behind_its_length_or_told_short_is_read_whole_and_told(tmp_path: Path) -> None:
    whole, more = mp3(FALLING, xing=True), mp3(RISING)
    frames = odd_sounds.mp3_frames(whole) - 1
    for content, seconds in ((whole + more, 8), (told(frames // 3, whole), 4), (told(frames + 1, whole), 4)):
        (tmp_path / "clip.mp3").write_bytes(content)
        clip = audio.decode(tmp_path / "clip.mp3")
        assert seconds * RATE <= len(clip.samples) <= seconds * RATE + 2 * DELAY
        assert "read to its end" in clip.doubtful


def test_mp3_that_lacks_frames_or_a_part_of_one_is_truncated(tmp_path: Path) -> None:
    for content in (mp3(FALLING, xing=True), mp3(FALLING), ID3 + mp3(FALLING, mode="CONSTANT"), riff_mp3(mp3(FALLING))):
        (tmp_path / "clip.mp3").write_bytes(content[: len(content) * 2 // 3 + 1])
        with pytest.raises(audio.BadClipError, match="is truncated"):
            audio.read_header(tmp_path / "clip.mp3")


def test_what_stands_between_mp3_frames_is_told(tmp_path: Path) -> None:
    whole = mp3(FALLING, mode="CONSTANT")
    middle = odd_sounds.mp3_frame_bytes(whole) * 40
    (tmp_path / "clip.mp3").write_bytes(ID3 + whole[:middle] + b"<html>404</html>" * 3 + whole[middle:])
    try:
        assert "48 bytes" in audio.decode(tmp_path / "clip.mp3").doubtful
    except audio.BadClipError as error:
        assert "truncated" in str(error)


def test_ogg_that_was_joined_cut_or_damaged_is_refused_or_told(tmp_path: Path) -> None:
    """libsndfile reads the first of joined recordings, the whole pages of a cut one, and passes over damaged ones."""
    path = tmp_path / "clip.ogg"
    for kind in ("VORBIS", "OPUS"):
        whole = written(speech(5.0), kind="OGG", subtype=kind)
        path.write_bytes(whole)
        assert audio.decode(path).doubtful == ""
        pages = [at for at in range(len(whole)) if whole.startswith(b"OggS\0", at)]
        damaged = bytearray(whole)
        damaged[(pages[-2] + pages[-1]) // 2] ^= 1
        for content, words in (
            (whole + whole, "several recordings"),
            (whole[: len(whole) * 2 // 3], "is truncated"),
            (bytes(damaged), "is damaged"),
        ):
            path.write_bytes(content)
            with pytest.raises(audio.BadClipError, match=words):
                audio.read_header(path)
        path.write_bytes(whole[: pages[-1]])
        assert "last page is not marked" in audio.decode(path).doubtful
        path.write_bytes(whole[: pages[-2]] + whole[pages[-1] :])
        try:
            assert "lacks pages" in audio.decode(path).doubtful
        except audio.BadClipError as error:
            assert "truncated" in str(error)


@pytest.mark.parametrize("seed", range(30))
def test_a_corrupted_mp3_is_read_right_or_told_or_refused(tmp_path: Path, seed: int) -> None:
    """In the tag and the headers of its first frames. What LAME says of its delay has no second place in the file."""
    rng = np.random.default_rng(seed)
    whole = ID3 + mp3(FALLING, xing=seed % 2 == 0)
    first = len(ID3)
    second = first + odd_sounds.mp3_frame_bytes(whole[first:])
    corrupted = bytearray(whole)
    for at in rng.choice([*range(10), *range(first, first + 2), *range(second, second + 2)], rng.integers(1, 3), replace=False):
        corrupted[at] ^= int(rng.integers(1, 256))
    path, right = tmp_path / "clip.mp3", tmp_path / "right.mp3"
    path.write_bytes(corrupted)
    right.write_bytes(whole)
    try:
        clip = audio.decode(path)
    except audio.BadClipError as error:
        assert any(word in str(error) for word in ("truncated", "damaged", "cannot be decoded", "announces"))
        return
    assert clip.doubtful or abs(len(clip.samples) - len(audio.decode(right).samples)) <= DELAY


def joined(between: bytes) -> bytes:
    return mp3(FALLING, quality=0.9) + between + mp3(RISING, quality=0.9)


ID3_LARGE = b"ID3\x04\0\0" + bytes((0, 1, 0x20, 0x10)) + bytes(8000) + b"\xff\xfb\x90\x00 a picture" + bytes(20_496 - 8014)
TAGS_BETWEEN = {
    "ID3v2": ID3,
    "ID3v2 with a picture": ID3_LARGE,
    "ID3v1": b"TAG" + b"x" * 125,
    "APE": b"APETAGEX" + struct.pack("<IIII8x", 2000, 2000, 1, 1 << 29) + b"x" * 1968 + b"APETAGEX" + bytes(24),
    "lyrics and ID3v1": b"LYRICSBEGIN" + b"la " * 50 + b"000161LYRICS200" + b"TAG" + b"x" * 125,
    "several": b"TAG" + b"x" * 125 + bytes(100) + ID3 + ID3_LARGE,
}


@pytest.mark.parametrize("between", TAGS_BETWEEN.values(), ids=TAGS_BETWEEN)
def test_joined_mp3_is_read_whole_whatever_tag_stands_between(tmp_path: Path, between: bytes) -> None:
    path, plain = tmp_path / "clip.mp3", tmp_path / "plain.mp3"
    plain.write_bytes(joined(b""))
    right = audio.decode(plain).samples
    assert len(right) >= 8 * RATE
    for content in (joined(between), ID3 + joined(between), riff_mp3(joined(between))):
        path.write_bytes(content)
        clip = audio.decode(path)
        np.testing.assert_array_equal(clip.samples, right)
        assert clip.doubtful == ""
    path.write_bytes(ID3 + mp3(FALLING, xing=True) + between + mp3(RISING, xing=True))
    assert "read to its end" in audio.decode(path).doubtful


@pytest.mark.parametrize("between", [b"", ID3, b"TAG" + bytes(125)], ids=["nothing", "ID3v2", "ID3v1"])
def test_joined_mp3_of_several_kinds_is_refused(tmp_path: Path, between: bytes) -> None:
    path, stereo = tmp_path / "clip.mp3", np.repeat(RISING[:, None], 2, axis=1)
    for other, words in ((mp3(RISING, 24_000), "24000 Hz, layer 3, mono"), (mp3(stereo), "16000 Hz, layer 3, stereo")):
        path.write_bytes(mp3(FALLING) + between + other)
        with pytest.raises(audio.BadClipError, match=f"frames of 16000 Hz, layer 3, mono, and then of {words}"):
            audio.read_header(path)


@pytest.mark.parametrize(("rate", "seconds"), [(RATE, 2.0), (RATE, 5.0), (48_000, 1.0), (RATE, 0.3)])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("kind", ["VORBIS", "OPUS"])
def test_pieces_of_an_ogg_file_are_where_they_are(tmp_path: Path, kind: str, rate: int, seconds: float, silent: bool) -> None:
    """libsndfile's seek into the last page of Vorbis is out by what its last packet has more than the recording."""
    path = tmp_path / "clip.ogg"
    rate = rate if kind != "OPUS" or rate in (RATE, 48_000) else 24_000
    sound = speech(seconds, rate) * np.where(np.arange(round(seconds * rate)) % (rate // 4) < 200, 1, 0 if silent else 1)
    path.write_bytes(written(sound, rate, kind="OGG", subtype=kind))
    with recording.open_recording(path) as opened:
        whole = np.concatenate(list(opened.blocks(0, opened.frames)))
    near = len(whole) - np.geomspace(8, len(whole), 20).astype(int)
    for first in [*near, *np.linspace(0, len(whole) - 1, 10).astype(int)]:
        with recording.open_recording(path) as opened:
            piece = np.concatenate(list(opened.blocks(int(first), opened.frames)))
        np.testing.assert_allclose(piece, whole[first:], atol=1e-6 if kind != "OPUS" else 2e-3)


def with_checksum(whole: bytes, shifted: bool) -> bytes:
    """The first frame, which tells the length, with a checksum: behind it, or where it stood."""
    size = odd_sounds.mp3_frame_bytes(whole)
    frame = bytearray(whole[:size])
    frame[1] &= 0xFE
    if shifted:
        frame[4:4] = b"\x12\x34"
    return bytes(frame[:size]) + whole[size:]


def test_mp3_that_says_its_length_behind_a_checksum_or_something_else_is_read_whole(tmp_path: Path) -> None:
    """mpg123 takes some of these frames for sound, and then guesses the length."""
    path = tmp_path / "clip.mp3"
    whole = mp3(FALLING, xing=True, quality=0.9)
    frames, at = odd_sounds.mp3_frames(whole) - 1, whole.index(b"Xing")
    busy = whole[:8] + b"\x55" * (at - 8) + whole[at:]
    for content in (with_checksum(whole, True), with_checksum(whole, False), busy):
        path.write_bytes(content)
        clip = audio.decode(path)
        assert clip.doubtful == ""
        assert len(clip.samples) in (len(FALLING), 576 * frames - 529)  # the decoder's own delay
        assert likeness(np.r_[clip.samples, np.zeros(DELAY)], FALLING) > 0.6
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(audio.BadClipError, match="is truncated"):
            audio.read_header(path)
