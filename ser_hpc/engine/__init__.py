"""Train a trial: `loop.train_trial` reads from top to bottom; everything else here is one of its steps.

supervisor, step_metrics          what stops, saves and agrees between ranks; what is recorded of a step
objective, step, optim            the loss of all tasks; one update; the learning rate as a function of the step
evaluation, finish                a pass without gradients; predictions and the marker of a trial that is done
feature_cache, probe              a frozen encoder run once over each clip; the linear probe, which needs no loop
trackers                          where the numbers go besides a trial's own files
distributed/                      ranks: the world, DDP, ZeRO
memory/                           how much audio a micro-batch may hold
fault/                            checkpoints, preemption, hangs, corrupt clips

It knows nothing of Slurm, of corpora's names and of reports.
"""
