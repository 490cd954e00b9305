"""Where trials run: on this machine, as jobs of Slurm, or by a launcher from outside the package.

launcher, choose   what every launcher does; which one is asked to
detect             is there a Slurm that answers, and what has this machine got?
trial_checks       what all trials need is looked for before any is started
local_launcher     this machine: `local` runs the trials, `foreground` keeps others out
slurm/             jobs of Slurm
outside            launchers from outside
plan_screen        what would run, and what it would cost

It knows nothing of tensors: a login node needs no torch.
"""
