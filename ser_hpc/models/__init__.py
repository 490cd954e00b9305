"""Build models: clips in, logits out. Knows nothing of ranks, corpora or files of a run; see `classifier`."""
