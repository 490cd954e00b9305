"""Ask Slurm what it allows, submit jobs, and find out what became of them.

launcher                             what Slurm does of the protocol that all launchers have
slurm_info, site_checks, user_limits what the site and this user may do, asked before anything is queued
submit, submit_once, submissions     submitit's batch scripts; one sbatch that is never lost or doubled; the record of them
enqueue                              a run's trials and their report, as many as fit into the queue
queue, jobs                          squeue and sacct; which jobs are the run's
requeue_script, starts               shell lines that start a job again, or give it up; what they noted
pack_jobs                            packing as an array
"""
