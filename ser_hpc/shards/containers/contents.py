"""The result that all modules of containers/ return, and what they share: announced sizes, players' tags."""

from __future__ import annotations

from dataclasses import dataclass

TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")  # what players and taggers put behind the sound of any format
RATES = 1_000, 1_000_000  # Hz that a recording may have
_HEADERS = (8, 16, 36, 44)  # bytes by which programs that count the header, or a part of it, as sound are out
_ABOUT = 1 << 16  # how near to 2^31 or 2^32 a size is that stands for "unknown"


class BadClipError(Exception):
    """Raised for a clip that cannot be packed. The message is the reason, without the path."""


@dataclass(frozen=True, slots=True)
class AudioContents:
    """Where sound lies in a file, for libsndfile to read, and what is wrong with what the file says of it.

    `head` and then bytes `start` to `end` of the file, without its `gaps` (from, to), are what libsndfile is given; with an
    empty `head`, the file as it is.
    `frames`: their number, where libsndfile would report another; None: as it reports. `doubt`: a message, "" if all is well.
    `sought`: the last frame that libsndfile finds by a seek, if so many frames are there (else it finds none); None: it finds
    all.
    """

    head: bytes = b""
    start: int = 0
    end: int = 0
    frames: int | None = None
    doubt: str = ""
    sought: tuple[int, int] | None = None
    gaps: tuple[tuple[int, int], ...] = ()


def is_unknown(size: int) -> bool:
    """Return whether a size is one that programs write when they cannot go back to the header (pipes, a crash)."""
    return size == 0 or abs(size - (1 << 31)) <= _ABOUT or abs(size - (1 << 32)) <= _ABOUT or size >= (1 << 63) - _ABOUT


def settle(announced: int, present: int, header: int, whole: bool = False) -> tuple[int, str]:
    """Return how many bytes of sound to read where so many are announced and so many present, and the doubt about it.

    `header`: bytes before the sound; `whole`: something else in the file says that nothing is missing. Raises BadClipError
    where sound is missing.
    """
    if present and is_unknown(announced) and announced != present:
        return (
            present,
            "its header does not say how much sound there is (written through a pipe, or by a crash): read to its end",
        )
    if announced <= present:
        return announced, ""
    excess = announced - present
    if whole or excess in _HEADERS or excess in (header, header - 8):
        return present, f"its header announces {excess} bytes of sound more than there are, but nothing is missing"
    raise BadClipError(f"is truncated: its header announces {announced} bytes of sound, the file holds {present}")


def behind_tag(content: bytes, at: int) -> int:
    """Return where a tag ends that begins at `at` with these bytes; `at` if none does."""
    if content[:3] == b"ID3" and len(content) >= 10:
        size = sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(content[6:10]))
        return at + 10 + size + 10 * (content[5] >> 4 & 1)
    if content[:8] == b"APETAGEX" and len(content) >= 32:
        size, is_header = int.from_bytes(content[12:16], "little"), content[23] >> 5 & 1
        return at + 32 + size * is_header
    if content[:11] == b"LYRICSBEGIN":
        ends = [place for word in (b"LYRICS200", b"LYRICSEND") if (place := content.find(word)) > 0]
        return at + min(ends) + 9 if ends else at
    if content[:3] == b"TAG":
        return at + (227 if content[:4] == b"TAG+" and content[227:230] == b"TAG" else 128)
    return at
