"""Sort and compare millions of texts as integers: a tenth of the time and memory that the texts themselves take."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_HASH = 0x9E3779B97F4A7C15
_BITS = 64


def text_bytes(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of the texts, int64 (num_texts + 1,), and the bytes of all, uint8, without a copy."""
    _, offsets, data = texts.buffers()
    at = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8) if len(texts) else np.zeros(1, np.int64)
    return at, np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)


def sort_words(texts: pa.LargeStringArray, first: np.ndarray, num_first: int) -> list[np.ndarray]:
    """Return integers that sort as (`first`, text) do, the most significant array first: uint64 (num_texts,) each.

    `first`: numbers below `num_first`, (num_texts,). At every place of a text the bytes that occur there are numbered in their
    order, and these numbers are put together with as few bits as they need: ids share most letters, so one word often suffices.
    """
    offsets, data = text_bytes(texts)
    length = np.diff(offsets)
    words, free = [first.astype(np.uint64)], _BITS - max(num_first - 1, 0).bit_length()
    for place in range(int(length.max(initial=0))):
        has = place < length
        byte = np.zeros(len(length), dtype=np.uint8)
        if has.all():
            byte = data[offsets[:-1] + place]
        else:
            byte[has] = data[offsets[:-1][has] + place]  # a text that has ended: before all others
        occurs = np.bincount(byte, minlength=256) > 0
        bits = int(occurs.sum() - 1).bit_length()
        if not bits:
            continue
        if bits > free:
            words, free = [*words, np.zeros(len(length), np.uint64)], _BITS
        number = (np.cumsum(occurs) - 1).astype(np.uint64)
        words[-1] <<= np.uint64(bits)
        words[-1] |= number[byte]
        free -= bits
    return words


def sorted_order(words: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the order that sorts the words, int64 (num_texts,), and a mask of the places whose words are those of the next."""
    order = np.argsort(words[0], kind="stable") if len(words) == 1 else np.lexsort(words[::-1])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for word in words:
        ordered = word[order]
        same &= ordered[1:] == ordered[:-1]
    return order, same


def text_hashes(texts: pa.LargeStringArray) -> np.ndarray:
    """Return a number for each text, uint64 (num_texts,): equal for equal texts, and rarely for others."""
    offsets, data = text_bytes(texts)
    length = np.diff(offsets)
    if len(length) and (length == length[0]).all() and length[0] and length[0] % 8 == 0:
        words = data[offsets[0] : offsets[-1]].view(np.uint64).reshape(len(length), -1)
        hashes = np.zeros(len(length), dtype=np.uint64)
        for column in words.T:
            hashes ^= column
            hashes *= np.uint64(_HASH)
            hashes ^= hashes >> np.uint64(32)
        return hashes
    at_once = 1 << 20
    parts = (texts[start : start + at_once].to_pylist() for start in range(0, len(texts), at_once))
    found = [np.fromiter(map(hash, part), np.int64, len(part)) for part in parts]
    return np.concatenate(found).view(np.uint64) if found else np.zeros(0, np.uint64)
