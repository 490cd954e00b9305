"""Where trials run: on this machine, or as jobs of Slurm.

detect         is there a Slurm that answers, and what has this machine got?
trial_checks   what all trials need is looked for before any is started
local, slurm/  the two launchers
plan_screen    what would run, and what it would cost

It knows nothing of tensors: a login node needs no torch.
"""
