"""Who trains, who chooses the epoch, who is tested: folds, and the checks that nothing leaks between them.

clip_table       the clips that have a class, in an order of their own
dispatch         a protocol by name; leave_one_out, cross_corpus, official_splits: one family a file
leakage          names, sounds and overlaps on two sides
folds            the plan: folds as positions and in words, with a digest

It knows nothing of torch, of shards' bytes and of ranks.
"""
