"""Heads: a clip's frames to its logits, one file a head."""
