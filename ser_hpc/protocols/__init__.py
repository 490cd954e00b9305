"""Division of clips into folds (training, dev, test), and the checks that nothing leaks between these parts.

clip_table       the clips that have a class, as arrays sorted by name
leave_one_out, cross_corpus, official_splits   protocols, one family a file
leakage          speakers, sounds and overlaps on two sides
folds            the plan, by a protocol's name: folds as positions and descriptions, with a digest

It knows nothing of torch, of shards' bytes and of ranks.
"""
