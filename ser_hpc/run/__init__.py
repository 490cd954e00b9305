"""A run directory and all its files: its identity, its plan, and what every attempt of a trial recorded.

run_dir                  the one owner of a run's file names
experiment, create_run   settings with all that they stand for; the run directory, written
identity                 what the run's name is a hash of
plan                     plan.json as it is made, with what binds predictions to it, and as it is read
snapshot                 the code that its jobs run
planned_clips            the clips of a run as planned, for what is no job; shared_folder: what runs on the same shards share
init_source              the trained model that trials start from, and whom it has heard
attempt, attempt_end     one start of a trial, and how it ended; rank: which of its ranks this process is

It knows nothing of how training works.
"""
