"""Packing any audio into WebDataset tars of 16 kHz FLAC with an index, reading clips by their offset, verifying them.

write, assignment, shard_file   packing: which clip goes into which shard, and one shard, whole or not at all
audio, recording, containers/   decoding of any sound file; headers are checked against the file
source, plain_wav               a source is opened and read once; most WAV files need no decoder
quality                         kinds of findings about a clip, and the policy for each
shortcut_features, _table       what a clip gives away without being listened to, measured once
index, read, storage            where every clip lies; random access to clips, on a disk or in an object store

fold_stream                     a fold's clips for anyone's own training code: `from ser_hpc.shards import as_webdataset`

But for fold_stream it knows nothing of folds, labels' meaning and ranks; and nothing of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ser_hpc.shards.fold_stream import as_webdataset, pad_batch

__all__ = ["RATE", "as_webdataset", "pad_batch"]

RATE = 16_000  # Hz, of every clip that is packed


def __getattr__(name: str) -> Any:
    """Import what users call when they ask for it: whoever needs another module of this room does not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ser_hpc.shards import fold_stream

    return getattr(fold_stream, name)
