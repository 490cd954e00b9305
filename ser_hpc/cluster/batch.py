"""Shell lines of a batch script that start its job again when a trial asks for it, before and after the ranks."""

from __future__ import annotations

# ser_hpc.train's exit codes 0, 2 and 3 are final. Anything else asks for another start, if the job ended by itself: what the
# user cancels stays cancelled, and what is preempted or lost its node Slurm starts again without us. A job that the time limit
# ended (its ranks did not manage to save) is started again too. The array element, never the array.
START_AGAIN = """\
ser_id=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
export SER_HPC_END_TIME=${SLURM_JOB_END_TIME:-$(date -d "$(squeue -h -j "$ser_id" -o %e)" +%s 2>/dev/null)}
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
