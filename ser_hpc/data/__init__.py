"""Turn a fold into batches: which clip comes when is a pure function of (seed, epoch, step).

sampler          the order of clips; steps, cut into micro-batches and dealt to ranks
decode, cache    clips from shards, cut and augmented; kept in memory where there is room
prefetch         workers that decode ahead
batches          ragged batches, never padded
staging          shards on the node's own disk

It knows nothing of the model, and of where folds came from.
"""
