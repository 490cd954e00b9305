"""Slurm: asked before, told what to do, asked what became of it. Arrays are submitted through submitit."""
