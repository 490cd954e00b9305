"""Where trials stand, and what people see while they run and when they fail.

trial_status     what Slurm says of a trial, held against what its attempts wrote down
logs             the line of a log that tells why
status_screen, local_progress, poll   what is shown, once or as it goes on

It knows nothing of tensors.
"""
