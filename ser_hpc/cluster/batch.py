"""Shell lines of a batch script that start its job again when a trial asks for it; before the line that starts the ranks.

ser_hpc.train's exit codes 0, 2 and 3 are final. Anything else asks for another start, if the job ended by itself: what the user
cancels stays cancelled, and what is preempted or loses its node Slurm starts again without us. A job that the time limit ended
(its ranks did not manage to save) is started again too. The array element, never the array.

With several ranks srun does not give a final code: the first to leave has the others killed, and their signal counts more. So
it is also written down, into the file named by SER_HPC_FINAL.

    python -m ser_hpc.cluster.batch RUN 120      what slurm/train.sbatch evaluates: these lines, and which code its array runs
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

# The ranks are sent a signal some time before the end; at half of that they stop even if it never came.
_TEXT = """\
unset SER_HPC_START SER_HPC_LAUNCH TORCHELASTIC_RUN_ID  # marks of launchers, if the job was submitted from under one
ser_id=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
ser_end=${SLURM_JOB_END_TIME:-}
if [ -z "$ser_end" ]; then
  ser_end=$(squeue -h -j "$ser_id" -o %e 2>/dev/null || true)
  case $ser_end in *T*:*) ser_end=$(date -d "$ser_end" +%s || true) ;; *) ser_end= ;; esac
fi
[ -z "$ser_end" ] || export SER_HPC_STOP_TIME=$((ser_end - MARGIN))
ser_quick=FOLDER/.quick-$ser_id
export SER_HPC_FINAL=FOLDER/.final-$ser_id-${SLURM_RESTART_COUNT:-0}
ser_start_again() {
  code=$?
  trap '' TERM
  [ ! -s "$SER_HPC_FINAL" ] || code=$(cat "$SER_HPC_FINAL")
  rm -f "$SER_HPC_FINAL"
  for _ in $(seq 60); do  # the controller may be away for a while
    said=$(scontrol show job -o "$ser_id" 2>&1) && break
    command -v scontrol >/dev/null || break
    sleep 10
  done
  now=$(grep -o -E 'JobState=RUNNING|Reason=TimeLimit' <<<"$said" | head -n 1 || true)
  case $code:$now in
    *:Reason=TimeLimit) ;;
    0:*|2:*|3:*) exit $code ;;
    *:JobState=RUNNING) ;;
    *) command -v scontrol >/dev/null || echo "ser_hpc: no scontrol here: submit again to go on"; exit $code ;;
  esac
  # A Python that does not even come to the trial would go round for ever; a signal, or being asked to stop, is no such thing.
  if [ $SECONDS -lt 10 ] && [ $code -lt 128 ] && [ $code -ne 75 ]; then
    echo $code >>"$ser_quick"
    if [ "$(wc -l <"$ser_quick")" -ge 4 ]; then
      echo "ser_hpc: exit code $code at once, 4 times in a row: it is not tried any more"
      rm -f "$ser_quick"
      exit $code
    fi
  else
    rm -f "$ser_quick"
  fi
  echo "ser_hpc: exit code $code: job $ser_id is started again"
  scontrol requeue "$ser_id"
  exit $code
}
trap ser_start_again EXIT"""


def start_again(stop_before_end_s: int, folder: Path) -> str:
    """`stop_before_end_s`: when the ranks are signalled; `folder`: on a disk that all nodes see, for the ranks' last word."""
    return _TEXT.replace("MARGIN", str(-(-stop_before_end_s // 2))).replace("FOLDER", shlex.quote(str(folder.resolve())))


def exports(environment: Mapping[str, str]) -> list[str]:
    """Shell lines that set variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def main(run_path: str, stop_before_end_s: str) -> int:
    import os

    from ser_hpc.cluster import code, inherited, jobs
    from ser_hpc.results.run_dir import RunDir

    run = RunDir(Path(run_path))
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    digest = next((told.code for told in jobs.submissions(run) if told.array == array and told.code), None)
    if digest is not None:
        print(*exports(code.environment(code.Code(run.code.resolve() / digest))), sep="\n")
    print(*inherited.shell(), sep="\n")
    print(start_again(int(stop_before_end_s), run.jobs))
    return 0


if __name__ == "__main__":
    from ser_hpc import console

    console.run(lambda: main(*sys.argv[1:]))
