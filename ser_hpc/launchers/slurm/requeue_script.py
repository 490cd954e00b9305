"""Write the shell lines by which a batch script starts its job again when a trial asks for it; they precede the ranks' start.

Only what our own code wrote into SER_HPC_FINAL is final (ser_hpc.run.start_marks): a node without Python ends with codes like
ours. Anything else asks for another start, if the job ended by itself or at its time limit: what the user cancels stays
cancelled, and what is preempted or loses its node Slurm starts again without us. The array element, never the array.

So that a trial which cannot start, or gets no further, does not eat the queue for ever, each start that ends in our asking for
another is a line of FOLDER/.starts-JOB (ser_hpc.launchers.slurm.starts reads them); after several in a row that came no further
than those before them, the job is given up with exit code 2. A node on which our code was not even reached is left out from
then on.

    python -m ser_hpc.launchers.slurm.requeue_script RUN 120
        what slurm/train.sbatch evaluates: these lines, and which code its array runs
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.launchers.slurm.submissions import TRIALS, VOID

_TEXT = r"""ser_log=$(readlink /proc/$$/fd/1 || true)
ser_log_before=$( (wc -c <"$ser_log") 2>/dev/null || echo 0)  # of earlier starts
# Marks of launchers, if the job was submitted from under one:
unset SER_HPC_START SER_HPC_LAUNCH TORCHELASTIC_RUN_ID
ser_id=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
ser_end=${SLURM_JOB_END_TIME:-}
if [ -z "$ser_end" ]; then
  ser_end=$(squeue -h -j "$ser_id" -o %e 2>/dev/null || true)
  case $ser_end in *T*:*) ser_end=$(date -d "$ser_end" +%s || true) ;; *) ser_end= ;; esac
fi
# The ranks are sent a signal some time before the end; at half of that they stop even if it never came.
[ -z "$ser_end" ] || export SER_HPC_STOP_TIME=$((ser_end - ser_warning / 2))
ser_starts=$ser_folder/.starts-$ser_id
export SER_HPC_FINAL=$ser_folder/.final-$ser_id-${SLURM_RESTART_COUNT:-0}
export SER_HPC_MARK=$ser_folder/.mark-$ser_id-${SLURM_RESTART_COUNT:-0}

ser_said() {  # the log's lines since this start
  [ ! -f "$ser_log" ] || tail -c +$((ser_log_before + 1)) "$ser_log" 2>/dev/null
}

ser_aftermath='error: [^ ]+: tasks? |Terminating |Job step aborted|Force Terminated|launch/|got SIG'
ser_why() {  # the last of them that is not an account of who ended whom
  [ -z "${ser_bad:-}" ] || echo "$ser_bad"
  [ -z "${ser_line:-}" ] || echo "cluster.setup left the shell at: $ser_line"
  ser_said | grep -a -v -E "^ *$|^(slurmstepd|submitit|ser_hpc)\b|^Try |^srun: ($ser_aftermath)" |
    sed -E 's#^[^ ]*/slurm_script: line [0-9]+: ##' | tail -n 1 | sed -E 's/\r$//; s/.*\r//' | cut -c 1-300
}

ser_note() {  # a line for ser_hpc.launchers.slurm.starts: when, where, exit code, what became of it, why
  echo "$(date +%s) ${SLURMD_NODENAME:-?} $code $1 $why" 2>/dev/null >>"$ser_starts"
}

ser_not_here() {  # not to this node again; but where none of its kind were left, the job would wait for ever
  bad=$(ser_said | sed -n -E 's/^srun: error: ([^][ :,]+): task.*/\1/p' | head -n 1)  # of several nodes, the first to fail
  bad=${bad:-${SLURMD_NODENAME:-}}
  others=$(sed -n -E 's/.* ExcNodeList=([^ (]+).*/\1/p' <<<"$said")
  kind=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -n "$bad" -o '%G %f.' | head -n 1)
  left=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -t idle,mixed,allocated,completing -o '%N %G %f.' | grep -F " $kind" |
    cut -d ' ' -f 1 | grep -c -v -x -F "$bad${others:+$'\n'$(scontrol show hostnames "$others")}")
  [ "${left:-0}" -ge "${SLURM_JOB_NUM_NODES:-1}" ] &&
    scontrol update JobId="$ser_id" ExcNodeList="${others:+$others,}$bad" &&
    echo "ser_hpc: not on $bad, where this project's code was not even reached"
}

ser_done() {  # said nothing, but complete: code of an earlier version, or an ended write
  [ -n "${ser_trials:-}" ] || return 1
  for trial in $ser_trials; do
    [ -e "${ser_folder%/jobs}/seed_${trial%:*}/fold_${trial#*:}/done.json" ] || return 1
  done
}

ser_start_again() {
  code=$?
  set +eu
  trap '' TERM
  outcome=absent  # our code was not reached
  [ ! -e "$SER_HPC_MARK" ] || outcome=stuck
  [ ! -s "$SER_HPC_MARK" ] || outcome=further
  [ "$ser_marks" = yes ] || outcome=further  # the run's own code, of an earlier version, leaves none
  final=$(cat "$SER_HPC_FINAL" 2>/dev/null)
  rm -f "$ser_folder/.mark-$ser_id-"* "$ser_folder/.final-$ser_id-"*
  [ -z "$final" ] || exit "$final"
  [ $code -ne 0 ] || ! ser_done || exit 0
  for _ in $(seq 60); do  # the controller may be away for a while
    said=$(scontrol show job -o "$ser_id" 2>&1) && break
    command -v scontrol >/dev/null || break
    sleep 10
  done
  why="exit code $code"
  [ $code -ne 0 ] || code=1  # without a word of ours: whatever ended well, it was not the trial
  case $said in
    *Reason=TimeLimit*) why="the time limit" ;;
    *JobState=RUNNING*) ;;
    *) command -v scontrol >/dev/null || echo "ser_hpc: no scontrol here: submit again to go on"; exit $code ;;
  esac
  why="$why: $(ser_why | paste -s -d ' ')"
  # Killed, or so near the end that it was asked to stop, it may just not have come so far: no fault of the node.
  [ "$(date +%s)" -lt $((${SER_HPC_STOP_TIME:-9999999999} - ser_warning / 2 - 60)) ] || outcome=${outcome/absent/stuck}
  case $code in 130|137|138|140|143) outcome=${outcome/absent/stuck} ;; esac
  in_vain=0
  if grep -q -E ' PreemptTime=[0-9]' <<<"$said"; then
    outcome=preempted  # within its time of grace: it does not count, as what Slurm ends and starts again by itself does not
  elif ser_note $outcome; then
    in_vain=$(tail -n "$ser_most" "$ser_starts" | grep -a -c -E '^[0-9]+ [^ ]+ [0-9]+ (absent|stuck) ')
  else
    in_vain=$((${SLURM_RESTART_COUNT:-0} + 1))  # they cannot be counted here, and still must end
  fi
  if [ "$in_vain" -ge "$ser_most" ]; then
    why="given up after $ser_most starts in a row without a new step; the last: $why"
    ser_note given-up
    echo "ser_hpc: $why"
    exit 2
  fi
  echo "ser_hpc: $why"
  echo "ser_hpc: job $ser_id is started again"
  scontrol requeue "$ser_id" && [ $outcome = absent ] && ser_not_here
  exit $code
}
trap ser_start_again EXIT"""


def requeue_lines(stop_before_end_s: int, folder: Path, *, max_starts: int | None = None, leaves_marks: bool = True) -> str:
    """Return the lines. `stop_before_end_s`: when the ranks are signalled; `folder`: on a disk that all nodes see, for what
    ranks and starts leave behind; `max_starts`: in a row without progress (None: the setting's default); `leaves_marks`:
    whether the code that the job runs knows of SER_HPC_MARK."""
    most = ClusterSettings().max_starts_without_progress if max_starts is None else max_starts
    counts = f"ser_warning={stop_before_end_s} ser_most={most} ser_marks={'yes' if leaves_marks else 'no'}"
    values = f"ser_folder={shlex.quote(str(folder.resolve()))} {counts}"
    return f"{values}\n{_TEXT}"


def checked(setup: Sequence[str]) -> list[str]:
    """Return the profile's own lines of shell, each followed by a check of its exit status alone, not of what happens inside.

    `refused()`, to be put after everything, ends the job if one failed.
    """
    note = (
        "ser_bad=\n"
        'ser_setup() { [ $1 -eq 0 ] || ser_bad=${ser_bad:-"cluster.setup: exit code $1 of: $2"}; }  # the first one counts'
    )
    lines = (f"ser_line={shlex.quote(line)}\n{line}\nser_setup $? {shlex.quote(line)}" for line in setup)
    return [note, *lines, "ser_line="] if setup else []


def refused(setup: Sequence[str]) -> list[str]:
    """Return the line that ends the job if a `checked` line failed; it follows them and the trap of `requeue_lines`."""
    return ['[ -z "$ser_bad" ] || { echo "ser_hpc: $ser_bad"; exit 1; }'] if setup else []


def element(folder: Path) -> list[str]:
    """Return the lines that read from the submission's folder what an element runs and where its logs are."""
    given_up = "this submission was given up before Slurm answered, and its trials were submitted anew: nothing to do here"
    return [
        f"ser_submission={shlex.quote(str(folder))}",
        f'[ ! -e "$ser_submission/{VOID}" ] || {{ echo "ser_hpc: {given_up}"; exit 0; }}',
        f'ser_trials=$(cat "$ser_submission/$SLURM_ARRAY_TASK_ID/{TRIALS}")',
        'export SER_HPC_LOG="$ser_submission/$SLURM_ARRAY_TASK_ID/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_%t_log.out"',
    ]


def export_lines(environment: Mapping[str, str]) -> list[str]:
    """Return shell lines that set variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def main(run_path: str, stop_before_end_s: str) -> int:
    """Print what slurm/train.sbatch evaluates."""
    import os

    from ser_hpc.launchers.slurm import inherited_variables, jobs
    from ser_hpc.launchers.slurm.submissions import read_submissions
    from ser_hpc.run import snapshot
    from ser_hpc.run.run_dir import RunDir

    run = RunDir(Path(run_path))
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), int(os.environ.get("SLURM_ARRAY_TASK_ID", "-1"))
    trial = dict(enumerate(run.trials())).get(element)
    if array and trial and (job := jobs.find_older_job(run, trial, array)) is not None:
        print(f"trap - EXIT; echo 'ser_hpc: {trial} is queued or running as job {job.job}: it is left to that'; exit 0")
        return 0
    digest = next((known.code for known in read_submissions(run) if known.job == array and known.code), None)
    if digest is not None:
        print(*export_lines(snapshot.snapshot_environment(snapshot.CodeSnapshot(run.code.resolve() / digest))), sep="\n")
    print(*inherited_variables.unset_lines(), sep="\n")
    if trial:
        print(f"ser_trials={trial.seed}:{trial.fold}")
    print(requeue_lines(int(stop_before_end_s), run.jobs, leaves_marks=snapshot.leaves_marks(run, digest)))
    return 0


if __name__ == "__main__":
    from ser_hpc.core import cli

    cli.run_main(lambda: main(*sys.argv[1:]))
