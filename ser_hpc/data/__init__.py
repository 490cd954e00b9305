"""Turn a fold into batches: which clip comes when is a pure function of (seed, epoch, step).

sampler          the order of clips; steps, cut into micro-batches and dealt to ranks
prefetch         clips read, decoded, cut and augmented ahead of training, by worker processes where that pays
cache            decoded clips kept in memory where there is room
augmentation     the chain of transforms
batches          ragged batches, never padded
staging          shards on the node's own disk

It knows nothing of the model, and of where folds came from.
"""
