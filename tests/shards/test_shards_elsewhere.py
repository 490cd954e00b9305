"""Shards are plain WebDataset tars: `tar`, webdataset and wids find the keys, metadata and sound that our reader finds."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset
import wids

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards.assignment import describe_utterance
from ser_hpc.shards.index import ShardIndex
from ser_hpc.shards.write import pack

Clips = Iterator[tuple[str, bytes, dict[str, Any]]]


def by_tar(root: Path, index: ShardIndex) -> Clips:
    """GNU tar lists and extracts them."""
    for shard in index.shards:
        listed = subprocess.run(["tar", "-tf", root / shard.path], capture_output=True, text=True, check=True).stdout.split()
        folder = root.parent / "unpacked" / shard.group
        folder.mkdir(parents=True)
        subprocess.run(["tar", "-xf", root / shard.path, "-C", folder], check=True)
        for flac, described in zip(listed[::2], listed[1::2], strict=True):
            yield flac.removesuffix(".flac"), (folder / flac).read_bytes(), json.loads((folder / described).read_text())


def by_webdataset(root: Path, index: ShardIndex) -> Clips:
    for sample in webdataset.WebDataset([str(root / shard.path) for shard in index.shards], shardshuffle=False):
        yield sample["__key__"], sample["flac"], json.loads(sample["json"])


def by_wids(root: Path, index: ShardIndex) -> Clips:
    """Any clip by its number."""
    shards = [{"url": str(root / s.path), "nsamples": s.clips, "filesize": s.bytes} for s in index.shards]
    dataset = wids.ShardListDataset(shards, localname=str, transformations=[], keep=True)
    for position in range(len(dataset)):
        sample = dataset[position]
        yield sample["__key__"], sample[".flac"].read(), json.loads(sample[".json"].read())


@pytest.mark.parametrize("reader", [by_tar, by_webdataset, by_wids])
def test_others_find_the_same_clips(tmp_path: Path, make_corpus: Callable, reader: Callable[[Path, ShardIndex], Clips]) -> None:
    utterances: list[Utterance] = make_corpus(gender="female", text_id="t1", arousal=0.25, extra={"age": "30", "word": "ü"})
    root = tmp_path / "out"
    pack(utterances, root, workers=1)
    sources = {utterance.key: utterance for utterance in utterances}
    index = ShardIndex.load(root)
    found = list(reader(root, index))
    assert [key for key, _, _ in found] == [index.key(i) for i in range(len(index.metadata))] == sorted(sources)
    for key, flac, described in found:
        expected, rate = soundfile.read(sources[key].audio_path, dtype="int16")
        samples, packed_rate = soundfile.read(io.BytesIO(flac), dtype="int16")
        np.testing.assert_array_equal(samples, expected)
        assert rate == packed_rate == described["rate_hz"] and described["num_samples"] == len(expected)
        assert {name: described[name] for name in described.keys() - {"rate_hz", "num_samples", "sound"}} == describe_utterance(
            sources[key]
        )
