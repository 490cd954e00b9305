"""Turn ragged batches into each task's outputs: encoders on packed clips, and heads. A clip's score is its own.

classifier       a front, an encoder and a head for each task, built from the settings
frontend         what runs an encoder on clips: samples in, frames out
adapters, losses what of an encoder is trained; how far outputs are from targets
quantised, initial  four-bit layers under an adapter; weights of a trained model taken over
packed, norms    clips laid one after another; norms that see each clip alone
encoders/        transformers' models, packed or padded; the 3-D convolutional recurrent network; a log-Mel CNN
heads/           poolings and heads, one file each

It knows nothing of ranks, of corpora and of a run's files.
"""
