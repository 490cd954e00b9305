"""Train a trial: `loop.train_trial` reads from top to bottom; everything else here is one of its steps.

step, evaluation, losses, optim   one update; a pass without gradients
distributed/                      ranks: the world, DDP, ZeRO
memory/                           how much audio a micro-batch may hold
fault/                            checkpoints, preemption, hangs, corrupt clips

It knows nothing of Slurm, of corpora's names and of reports.
"""
