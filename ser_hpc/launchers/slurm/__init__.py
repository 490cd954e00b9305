"""Slurm: what it allows, how jobs are submitted, and what became of them. Arrays are submitted through submitit."""
