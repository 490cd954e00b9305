"""Packing any audio into WebDataset tars of 16 kHz FLAC with an index, reading clips by their offset, verifying them.

write, assignment, shard_file   packing: which clip goes into which shard, and one shard, whole or not at all
audio, recording, containers/   decoding of any sound file; headers are checked against the file
quality                         kinds of findings about a clip, and the policy for each
index, read, storage            where every clip lies; random access to clips, on a disk or in an object store

It knows nothing of labels' meaning, of ranks and of torch.
"""

RATE = 16_000  # Hz, of every clip that is packed
