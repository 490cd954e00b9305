"""Survive what goes wrong while training: checkpoints, preemption, hangs, corrupt clips, bad nodes."""
