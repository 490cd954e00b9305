"""Encoders and what feeds them: transformers' models run on packed clips, and a convolutional recurrent network."""
