"""Shell lines of a batch script that start its job again when a trial asks for it; before the line that starts the ranks.

    eval "$(python -m ser_hpc.cluster.batch 120)"        in slurm/train.sbatch; 120: seconds before the job's end to stop at

ser_hpc.train's exit codes 0, 2 and 3 are final. Anything else asks for another start, if the job ended by itself: what the user
cancels stays cancelled, and what is preempted or loses its node Slurm starts again without us. A job that the time limit ended
(its ranks did not manage to save) is started again too. The array element, never the array.
"""

from __future__ import annotations

import sys

# The ranks are sent a signal `stop_before_end_s` before the end; at half of that they stop even if it never came.
_TEXT = """\
ser_id=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
ser_end=${SLURM_JOB_END_TIME:-$(date -d "$(squeue -h -j "$ser_id" -o %e)" +%s 2>/dev/null)}
[ -z "$ser_end" ] || export SER_HPC_STOP_TIME=$((ser_end - MARGIN))
ser_start_again() {
  code=$?
  trap '' TERM
  for _ in $(seq 60); do  # the controller may be away for a while
    said=$(scontrol show job -o "$ser_id" 2>&1) && break
    command -v scontrol >/dev/null || break
    sleep 10
  done
  now=$(grep -o -E 'JobState=RUNNING|Reason=TimeLimit' <<<"$said" | head -n 1)
  case $code:$now in
    *:Reason=TimeLimit) ;;
    0:*|2:*|3:*) exit $code ;;
    *:JobState=RUNNING) ;;
    *) command -v scontrol >/dev/null || echo "ser_hpc: no scontrol here: submit again to go on"; exit $code ;;
  esac
  echo "ser_hpc: exit code $code: job $ser_id is started again"
  scontrol requeue "$ser_id"
  exit $code
}
trap ser_start_again EXIT"""


def start_again(stop_before_end_s: int) -> str:
    return _TEXT.replace("MARGIN", str(-(-stop_before_end_s // 2)))


if __name__ == "__main__":
    print(start_again(int(sys.argv[1])))
