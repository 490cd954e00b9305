"""Any audio -> 16 kHz FLAC in WebDataset tars with an index: packed once, read by offset, verified.

write, assignment, shard_file   packing: which clip goes into which shard, and one shard, whole or not at all
audio, recording, containers/   any sound file, decoded; what its header says is not believed
quality                         what can be wrong with a clip, and what becomes of it
index, read, storage            where every clip lies; clips at random, from a disk or a store

It knows nothing of labels' meaning, of ranks and of torch.
"""
