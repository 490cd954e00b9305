"""Headers as recorders really write them: what is there is read and told, what is missing is refused, nothing is silent."""

from __future__ import annotations

import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from odd_sounds import RATE, as_int16, chunk, piped_flac, speech, wav, with_sizes, written

from ser_hpc.shards import audio

SOUND = as_int16(speech(0.5))
WHOLE = wav(SOUND)
SIZE = len(WHOLE) - 44


def heard(path: Path, content: bytes) -> audio.DecodedClip:
    path.write_bytes(content)
    clip = audio.decode(path)
    assert audio.read_header(path) == audio.AudioHeader(len(clip.samples), clip.doubtful)
    return clip


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(audio.BadClipError) as caught:
        audio.read_header(path)
    return str(caught.value)


UNKNOWN = [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0x80000024, 0xFFFFFFFF, 0xFFFFFFFF - 44]
ODD_SIZES = {
    **{f"unknown {size:#x}": with_sizes(WHOLE, data=size, riff=0xFFFFFFFF) for size in UNKNOWN},
    "arecord to a pipe": with_sizes(WHOLE, riff=0x80000024, data=0x80000000),
    "crashed recorder": with_sizes(WHOLE, riff=36, data=0),
    "crashed recorder with a header of a page": with_sizes(wav(SOUND, before=chunk(b"JUNK", bytes(4044))), riff=4088, data=0),
    "crashed recorder, silent at first": with_sizes(wav(np.r_[np.zeros(9000, np.int16), SOUND]), riff=36, data=0),
    "16 more in both": with_sizes(WHOLE, more=16),
    "44 more in both": with_sizes(WHOLE, more=44),
    "44 more in the data alone": with_sizes(WHOLE, data=SIZE + 44),
    "any more in the data alone": with_sizes(WHOLE, data=SIZE + 12_345),
    "less in the data alone": with_sizes(WHOLE, data=SIZE // 3 & ~1),
}


@pytest.mark.parametrize("content", ODD_SIZES.values(), ids=ODD_SIZES)
def test_a_wrong_size_loses_no_sound_and_is_told(tmp_path: Path, content: bytes) -> None:
    clip = heard(tmp_path / "clip.wav", content)
    np.testing.assert_array_equal(clip.samples[-len(SOUND) :], SOUND)
    assert len(clip.samples) in (len(SOUND), len(SOUND) + 9000)
    assert "its header" in clip.doubtful
    np.testing.assert_array_equal(audio.decode(tmp_path / "clip.wav", 0.1, 0.3).samples, clip.samples[1600:4800])


@pytest.mark.parametrize("kind", ["RF64", "AIFF", "AU", "CAF", "W64", "RIFX"])
def test_other_formats_through_a_pipe_are_read_to_their_end_and_cut_ones_refused(tmp_path: Path, kind: str) -> None:
    """libsndfile refuses a CAF, reads nothing of an RF64, and what is left of every one that was cut."""
    big = kind == "RIFX"
    whole = bytearray(written(SOUND, kind="WAV" if big else kind, subtype="PCM_16", endian="BIG" if big else "FILE"))
    assert heard(tmp_path / "whole", bytes(whole)).doubtful == ""
    for keep in (0.99, 0.5):
        assert "is truncated" in refused(tmp_path / "cut", bytes(whole[: int(len(whole) * keep)]))
    unknown = {
        "RF64": (whole.find(b"ds64") + 16, bytes(8)),
        "AIFF": (whole.find(b"SSND") + 4, bytes(4)),
        "AU": (8, b"\xff" * 4),
        "CAF": (whole.find(b"data") + 4, b"\xff" * 8),
        "W64": (whole.find(b"data\xf3\xac") + 16, b"\xff" * 7 + b"\x7f"),
        "RIFX": (whole.find(b"data") + 4, bytes(4)),
    }
    at, size = unknown[kind]
    whole[at : at + len(size)] = size
    clip = heard(tmp_path / "piped", bytes(whole))
    np.testing.assert_array_equal(clip.samples, SOUND)
    assert "does not say how much sound" in clip.doubtful


def test_a_cut_nist_file_is_refused(tmp_path: Path) -> None:
    whole = written(SOUND, kind="NIST", subtype="PCM_16")
    np.testing.assert_array_equal(heard(tmp_path / "clip.wav", whole).samples, SOUND)
    assert "is truncated" in refused(tmp_path / "clip.wav", whole[:-500])


@pytest.mark.parametrize("lacking", [2, 100, 1000, SIZE // 2, SIZE - 2])
def test_a_wav_that_lacks_samples_is_truncated(tmp_path: Path, lacking: int) -> None:
    for content in (WHOLE, wav(SOUND, before=chunk(b"LIST", b"INFO"))):
        assert "is truncated: its header announces" in refused(tmp_path / "clip.wav", content[:-lacking])


@pytest.mark.parametrize(
    "after",
    [
        b"",
        chunk(b"LIST", b"INFOISFT\x04\0\0\0sox\0"),
        chunk(b"id3 ", b"x" * 31) + chunk(b"bext", bytes(602)),
        b"TAG" + bytes(125),
        bytes(500),
    ],
    ids=["nothing", "a list", "two chunks", "a player's tag", "padding"],
)
def test_what_may_stand_behind_the_sound_is_no_sound_and_no_finding(tmp_path: Path, after: bytes) -> None:
    for content in (WHOLE + after, wav(SOUND, after=after)):
        clip = heard(tmp_path / "clip.wav", content)
        np.testing.assert_array_equal(clip.samples, SOUND)
        assert clip.doubtful == ""


def test_bytes_behind_both_sizes_are_not_read_but_told(tmp_path: Path) -> None:
    clip = heard(tmp_path / "clip.wav", WHOLE + as_int16(speech(0.2, seed=1)).tobytes())
    np.testing.assert_array_equal(clip.samples, SOUND)
    assert "6400 bytes follow its sound" in clip.doubtful


def test_an_empty_wav_with_chunks_behind_is_empty(tmp_path: Path) -> None:
    empty = wav(np.zeros(0, np.int16), after=chunk(b"LIST", b"INFOISFT\x04\0\0\0sox\0"))
    assert "0 frames" in refused(tmp_path / "clip.wav", empty)


def test_a_chunk_of_odd_size_without_padding_is_passed_over(tmp_path: Path) -> None:
    odd = chunk(b"bext", b"x" * 11)[:-1]
    clip = heard(tmp_path / "clip.wav", wav(SOUND, before=odd))
    np.testing.assert_array_equal(clip.samples, SOUND)


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_a_rate_that_no_recording_has_is_a_damaged_header(tmp_path: Path, rate: int) -> None:
    assert f"it says {rate} Hz" in refused(tmp_path / "clip.wav", wav(SOUND, rate=rate))


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32"]
)
def test_every_encoding_in_wav_is_read_without_a_seek_and_without_doubt(tmp_path: Path, subtype: str) -> None:
    """GSM and G.721 cannot seek: not at the start, where nothing is to be sought, and not for a piece, which is read up to."""
    sound = speech(1.0, rate=8_000)
    clip = heard(tmp_path / "clip.wav", written(sound, 8_000, subtype=subtype))
    assert clip.doubtful == ""
    assert 16_000 <= len(clip.samples) <= 16_640  # a block more
    rough = np.corrcoef(clip.samples[:15_000:2], sound[:7500])[0, 1]
    assert rough > 0.4  # noise, of which GSM keeps little
    piece = audio.decode(tmp_path / "clip.wav", 0.25, 0.75).samples
    assert len(piece) == 8000
    np.testing.assert_allclose(piece[200:-200], clip.samples[4200:11_800], atol=40)


def struck(rng: np.random.Generator, whole: bytes, header: range) -> bytes:
    """One to three bytes of the header are others."""
    struck = bytearray(whole)
    for at in rng.choice(header, rng.integers(1, 4), replace=False):
        struck[at] ^= int(rng.integers(1, 256))
    return bytes(struck)


_STEREO = as_int16(np.stack([speech(0.4, seed=2), speech(0.4, seed=3)], axis=1))
_AIFF_RATE = {*range(28, 38)}  # told nowhere else in the file
CORRUPTED = {
    "wav": (WHOLE, range(44)),
    "wav, stereo, with a list": (wav(_STEREO, after=chunk(b"LIST", b"INFOISFT\x04\0\0\0sox\0")), range(44)),
    "wav of floats": (written(speech(0.4), subtype="FLOAT"), range(58)),
    "flac": (written(SOUND, kind="FLAC"), range(26)),
    "ogg": (written(speech(1.0), kind="OGG"), range(400)),
    "aiff": (written(SOUND, kind="AIFF"), [at for at in range(54) if at not in _AIFF_RATE]),
}


@pytest.mark.parametrize("name", CORRUPTED)
@pytest.mark.parametrize("seed", range(30))
def test_a_corrupted_header_is_read_right_or_told_or_refused(tmp_path: Path, name: str, seed: int) -> None:
    whole, header = CORRUPTED[name]
    right = heard(tmp_path / "right", whole).samples
    path = tmp_path / "clip"
    path.write_bytes(struck(np.random.default_rng(seed), whole, header))
    try:
        clip = audio.decode(path)
    except audio.BadClipError as error:
        assert any(
            word in str(error) for word in ("truncated", "damaged", "cannot be decoded", "holds no sound", "announces", "NaN")
        )
        return
    if not np.array_equal(clip.samples, right):
        assert clip.doubtful


def test_flac_says_rightly_what_it_holds(tmp_path: Path) -> None:
    sound = as_int16(speech(3.0))
    whole = written(sound, kind="FLAC")
    for total in (0, 1, 4096, len(sound) // 2, len(sound) - 1, len(sound) + 1, len(sound) + 100_000):
        clip = heard(tmp_path / "clip.flac", piped_flac(whole, total))
        np.testing.assert_array_equal(clip.samples, sound)
        assert "read to its end" in clip.doubtful
    assert heard(tmp_path / "clip.flac", whole).doubtful == ""
    clip = heard(tmp_path / "clip.flac", piped_flac(whole) + b"TAG" + bytes(125))
    np.testing.assert_array_equal(clip.samples, sound)


def flac_frames(whole: bytes) -> list[int]:
    """Where they begin: of 16 kHz, mono, 16 bits, each with a number of one byte."""
    starts: list[int] = []
    for match in re.finditer(rb"\xff\xf8.\x08(.)", whole, re.DOTALL):
        starts += [match.start()] if match[1][0] == len(starts) else []
    return starts


def test_flac_cut_anywhere_is_truncated(tmp_path: Path) -> None:
    """Also between two frames, where all that is left is whole; and whether its header tells a length or not."""
    whole = written(as_int16(speech(3.0)), kind="FLAC")
    starts = flac_frames(whole)
    assert len(starts) == 12
    np.testing.assert_array_equal(heard(tmp_path / "tagged", whole + b"APETAGEX" + bytes(70)).samples, as_int16(speech(3.0)))
    for cut in (starts[5], starts[-1], starts[6] + 1, starts[6] + 10, starts[6] + 1000, len(whole) - 1, len(whole) - 1000):
        path = tmp_path / "clip.flac"
        assert "is truncated" in refused(path, whole[:cut])
        if cut not in starts:
            assert "is truncated" in refused(path, piped_flac(whole)[:cut])


def crc(content: bytes, polynomial: int, degree: int) -> bytes:
    """As FLAC's headers (8 bits) and frames (16) end with it."""
    rest = int.from_bytes(content) << degree
    for bit in range(rest.bit_length() - 1, degree - 1, -1):
        rest ^= polynomial << bit - degree if rest >> bit & 1 else 0
    return rest.to_bytes(degree // 8)


def test_flac_of_frames_of_several_lengths_is_truncated_behind_a_short_one(tmp_path: Path) -> None:
    sound, frames, begin = as_int16(speech(1.0)), [], 0
    for size in (4096, 1000, 4096):
        frame = written(sound[begin : begin + size], kind="FLAC")
        frame = frame[re.search(rb"\xff\xf8.\x08\0", frame, re.DOTALL).start() :]  # type: ignore[union-attr]
        end = 5 + 2 * (frame[2] >> 4 == 7)  # of the header: its number, and its length if it has one
        header = b"\xff\xf9" + frame[2:4] + chr(begin).encode() + frame[5:end]
        content = header + crc(header, 0x107, 8) + frame[end + 1 : -2]
        frames.append(content + crc(content, 0x18005, 16))
        begin += size
    head = piped_flac(written(sound, kind="FLAC")[:42], begin)
    head = head[:4] + b"\x80" + head[5:26] + bytes(16)  # without other metadata, and of no known MD5
    np.testing.assert_array_equal(heard(tmp_path / "clip.flac", head + b"".join(frames)).samples, sound[:begin])
    assert "announces 9192 frames, the file holds 5096" in refused(tmp_path / "clip.flac", head + b"".join(frames[:2]))


@pytest.mark.parametrize("lengths", [(2, 2), (2, 3), (3, 2), (0.1, 0.1)])
@pytest.mark.parametrize("total", [None, 0])
def test_joined_flac_is_refused(tmp_path: Path, lengths: tuple[float, float], total: int | None) -> None:
    """As files, or as frames whose numbers begin anew: libsndfile reads the first, or none, and says nothing."""
    first, second = (written(as_int16(speech(seconds, seed=2)), kind="FLAC") for seconds in lengths)
    head = first if total is None else piped_flac(first)
    assert "several recordings" in refused(tmp_path / "clip.flac", head + second)
    if lengths[0] > 1:
        assert "several recordings" in refused(tmp_path / "clip.flac", head + second[flac_frames(second)[0] :])


def test_a_cut_flac_is_refused_at_once(tmp_path: Path) -> None:
    """A minute, and one of silence, of which a frame has a dozen bytes: no byte is looked at once for each frame."""
    path = tmp_path / "clip.flac"
    for sound in (as_int16(speech(60.0)), np.zeros(60 * RATE, np.int16)):
        whole = written(sound, kind="FLAC")
        began = time.process_time()
        assert "is truncated" in refused(path, whole[: -min(1000, len(whole) // 3) - 1])
        assert time.process_time() - began < 1  # 0.1 s


@pytest.mark.parametrize("kind", ["VOC", "IRCAM", "AVR", "PAF", "PVF", "MAT4", "MAT5", "SVX", "WVE", "XI", "SDS"])
def test_what_cannot_be_checked_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    """libsndfile reads what is left of these, and says nothing."""
    subtype = {"WVE": "ALAW", "XI": "DPCM_16"}.get(kind, "PCM_16")
    whole = written(SOUND, 8000 if kind == "WVE" else RATE, kind=kind, subtype=subtype)
    for content in (whole, whole[: len(whole) // 2 & ~1]):
        assert f"is {soundfile.available_formats()[kind]}, " in (reason := refused(tmp_path / "clip", content))
        assert "convert it to WAV or FLAC" in reason


def test_flac_behind_a_tag_is_looked_into_as_well(tmp_path: Path) -> None:
    whole = written(SOUND, kind="FLAC")
    for content in (whole, piped_flac(whole)):
        tagged = b"ID3\x04\0\0\0\0\0\x32" + bytes(50) + content
        np.testing.assert_array_equal(heard(tmp_path / "clip.flac", tagged).samples, SOUND)
        assert "is truncated" in refused(tmp_path / "clip.flac", tagged[:-500])


@pytest.mark.parametrize("kind", ["AU", "W64", "NIST"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_bytes_behind_the_sound_of_other_formats_are_not_read_but_told(tmp_path: Path, kind: str, subtype: str) -> None:
    """libsndfile reads them as sound. A player's tag and padding are passed over in silence, as behind WAV."""
    whole = written(SOUND, kind=kind, subtype=subtype)
    more = as_int16(speech(0.2, seed=1)).tobytes()
    for after, words in (
        (more, "6400 bytes follow its sound"),
        (b"TAG" + b"x" * 125, ""),
        (bytes(500), ""),
        (b"", ""),
    ):
        clip = heard(tmp_path / "clip", whole + after)
        np.testing.assert_array_equal(clip.samples, SOUND)
        assert words in clip.doubtful if words else not clip.doubtful
    if kind == "W64":
        chunk = b"levl" + bytes(12) + struct.pack("<Q", 40) + b"x" * 16
        assert heard(tmp_path / "clip", whole + bytes(-len(whole) % 8) + chunk).doubtful == ""
    if kind == "AU":
        short = whole[:8] + struct.pack(">I", 3000) + whole[12:]
        clip = heard(tmp_path / "clip", short)
        assert len(clip.samples) == (1500 if subtype == "PCM_16" else 1000) and "follow its sound" in clip.doubtful
