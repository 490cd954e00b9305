"""Where trials stand, and what people see while they run and when they fail.

trial_status     Slurm's state of a trial, compared with what its attempts have written
logs             the line of a log that names the cause
status_screen, local_progress, poll   what is shown, once or as it goes on

It knows nothing of tensors.
"""
