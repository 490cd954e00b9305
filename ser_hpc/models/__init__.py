"""Turn ragged batches into logits: encoders on packed clips, without padding, and heads. A clip's score is its own.

classifier       a front, an encoder and a head, built from the settings
packed, norms    clips laid one after another; norms that see each clip alone
encoders/        transformers' models and the 3-D convolutional recurrent network
heads/           pooling and classifier, one file each

It knows nothing of ranks, of corpora and of a run's files.
"""
