"""Ranks: how they meet, what they say to each other, and how they share a model (DDP, ZeRO)."""
