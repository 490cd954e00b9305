"""The batch script's last words: which jobs are started again. A real bash; Slurm's commands are stand-ins that note calls."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ser_hpc.launchers.slurm import starts
from ser_hpc.launchers.slurm.requeue_script import checked, refused, requeue_lines
from ser_hpc.run.run_dir import RunDir

Ran = tuple[int, str, str]
ELEMENT = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
ON_N1 = ELEMENT | {"SLURMD_NODENAME": "n1", "SLURM_JOB_PARTITION": "gpu"}
RUNNING = "JobState=RUNNING Reason=None"
REACHED, FURTHER = 'touch "$SER_HPC_MARK"', 'echo further > "$SER_HPC_MARK"'
TOOLS = ("date", "seq", "grep", "head", "tail", "sleep", "cat", "cut", "rm", "wc", "readlink", "sed", "paste", "touch")


def run(
    folder: Path,
    code: int,
    state: str | None,
    last: str = ":",
    end: str = "2099-11-21T12:00:00",
    setup: Sequence[str] = (),
    nodes: Sequence[str] = ("n1 gpu:2 a", "n2 gpu:2 a", "n3 gpu:2 a"),
    **environment: str,
) -> Ran:
    """A batch script whose ranks end with `code`, of a job in `state`; its exit code, output and the calls of scontrol.

    `last`: a line of shell before the ranks end, for what one of them leaves behind; `nodes`: name, GPUs and features.
    """
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name in TOOLS:
        if not (tools / name).exists():
            (tools / name).symlink_to(f"/usr/bin/{name}")
    write(tools / "squeue", f"echo {end}")
    listed = "\n".join(nodes)
    write(
        tools / "sinfo",
        f'while read -r n kind; do case "$*" in *"-n "*) [ $n = "$6" ] && echo $kind. ;; *) echo $n $kind. ;; '
        f"esac; done <<'E'\n{listed}\nE",
    )
    if state is not None:
        hostnames = '[ "$2" != hostnames ] || { echo "$3" | tr , "\\n"; exit; }'
        write(tools / "scontrol", f'{hostnames}\necho "$@" >> {folder}/calls\n[ "$1" != show ] || echo "JobId=9 {state} End=0"')
    script, log = folder / "job.sh", folder / "log"
    (tools / "tr").exists() or (tools / "tr").symlink_to("/usr/bin/tr")
    lines = [
        requeue_lines(120, folder),
        *checked(setup),
        *refused(setup),
        "echo stop at $SER_HPC_STOP_TIME",
        last,
        f"(exit {code})",
    ]
    write(script, "\n".join(lines))
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as out:
        done = subprocess.run(
            ["/bin/bash", script], env={"PATH": str(tools)} | environment, stdout=out, stderr=subprocess.STDOUT, check=False
        )
    calls = folder / "calls"
    return done.returncode, log.read_bytes()[before:].decode(), calls.read_text() if calls.exists() else ""


def write(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("code", [75, 1, 137, 143, 139])
def test_what_asks_for_another_start_gets_it(tmp_path: Path, code: int) -> None:
    """Stopped, failed or killed: the array element goes back into the queue, not the array; the code stays visible."""
    returned, said, calls = run(tmp_path, code, RUNNING, REACHED, **ELEMENT)
    assert calls.splitlines()[-1] == "requeue 7_3" and returned == code and "started again" in said


@pytest.mark.parametrize("code", [0, 2, 3])
def test_what_our_code_called_final_stays_final(tmp_path: Path, code: int) -> None:
    """Done, a mistake, superseded."""
    returned, _, calls = run(tmp_path, code, RUNNING, f'echo {code} > "$SER_HPC_FINAL"', **ELEMENT)
    assert "requeue" not in calls and returned == code


@pytest.mark.parametrize("code", [0, 2, 3, 126, 127])
def test_the_same_codes_without_our_word_are_the_nodes_fault(tmp_path: Path, code: int) -> None:
    """Python that is not there, or whose disk is not: another start, not on that node."""
    returned, said, calls = run(tmp_path, code, f"{RUNNING} ExcNodeList=(null)", **ON_N1)
    assert calls.splitlines()[-2:] == ["requeue 7_3", "update JobId=7_3 ExcNodeList=n1"]
    assert returned == (code or 1) and "not on n1" in said
    assert starts.unreached_nodes(of(tmp_path), "7_3") == {"n1"}


def of(folder: Path) -> RunDir:
    """A run of which `folder` is the jobs' own."""
    place = folder / "run"
    place.mkdir(exist_ok=True)
    if not (place / "jobs").exists():
        (place / "jobs").symlink_to(folder)
    return RunDir(place)


def test_nodes_left_out_before_stay_left_out(tmp_path: Path) -> None:
    assert "ExcNodeList=n2,n1" in run(tmp_path, 127, f"{RUNNING} ExcNodeList=n2", **ON_N1)[2]


@pytest.mark.parametrize(
    ("nodes", "excluded", "number"),
    [
        (["n1 gpu:2 a", "n2 gpu:4 a", "n3 gpu:2 b", "n4 gpu:2 ab"], "(null)", "1"),
        (["n1 gpu:2 a", "n2 gpu:2 a"], "n2", "1"),
        (["n1 gpu:2 a", "n2 gpu:2 a"], "(null)", "2"),
    ],
    ids=["alone of its kind", "the last one left", "two are needed"],
)
def test_no_node_is_left_out_where_the_job_could_then_never_start(
    tmp_path: Path, nodes: list[str], excluded: str, number: str
) -> None:
    """Slurm would keep it pending for ever (BadConstraints)."""
    more = ON_N1 | {"SLURM_JOB_NUM_NODES": number}
    calls = run(tmp_path, 127, f"{RUNNING} ExcNodeList={excluded}", nodes=nodes, **more)[2]
    assert calls.splitlines()[-1] == "requeue 7_3"


def test_of_several_nodes_the_one_that_failed_is_left_out(tmp_path: Path) -> None:
    said = "echo 'srun: error: n2: task 1: Exited with exit code 127'"
    assert "ExcNodeList=n2" in run(tmp_path, 127, f"{RUNNING} ExcNodeList=(null)", said, **ON_N1)[2]


@pytest.mark.parametrize("code", [1, 137, 143])
def test_a_node_is_not_to_blame_for_what_our_code_failed_in_or_was_killed_in(tmp_path: Path, code: int) -> None:
    assert "ExcNodeList" not in run(tmp_path, code, RUNNING, REACHED if code == 1 else ":", **ON_N1)[2]


def test_what_is_cancelled_stays_cancelled(tmp_path: Path) -> None:
    """Its ranks end with 75 as well; and what Slurm itself requeues (preempted, node lost) looks like this, too."""
    assert "requeue" not in run(tmp_path, 75, "JobState=COMPLETING Reason=None", **ELEMENT)[2]


def test_what_ran_into_the_time_limit_is_started_again(tmp_path: Path) -> None:
    """Its ranks did not manage to stop in time; bash's own code is then no help."""
    assert "requeue 7_3" in run(tmp_path, 0, "JobState=COMPLETING Reason=TimeLimit", **ELEMENT)[2]


def test_a_job_that_is_no_array(tmp_path: Path) -> None:
    assert "requeue 9" in run(tmp_path, 75, RUNNING, REACHED, SLURM_JOB_ID="9")[2].splitlines()


def test_without_scontrol_it_says_what_to_do(tmp_path: Path) -> None:
    returned, said, _ = run(tmp_path, 75, None, **ELEMENT)
    assert returned == 75 and "no scontrol here: submit again to go on" in said


def test_ranks_are_told_when_to_stop(tmp_path: Path) -> None:
    """Half of the time between signal and end is left to them; Slurm's own word on the end comes before squeue's."""
    told = ELEMENT | {"SLURM_JOB_END_TIME": "1000000", "TZ": "UTC"}
    assert "stop at 999940" in run(tmp_path, 0, "JobState=RUNNING", **told)[1]


def test_without_that_word_squeue_is_asked(tmp_path: Path) -> None:
    told = ELEMENT | {"TZ": "UTC"}
    expected = int(subprocess.check_output(["date", "-d", "2099-11-21T12:00:00", "+%s"], env=os.environ | {"TZ": "UTC"})) - 60
    assert f"stop at {expected}" in run(tmp_path, 0, "JobState=RUNNING", **told)[1]


def test_without_any_word_on_the_end_there_is_no_stop_time(tmp_path: Path) -> None:
    """An empty date is today's midnight to `date`: every start would stop after one step."""
    for answer in ("NONE", ""):
        folder = tmp_path / f"with-{answer or 'nothing'}"
        folder.mkdir()
        assert "stop at\n" in run(folder, 0, "JobState=RUNNING", end=answer, **ELEMENT)[1]


def test_a_ranks_last_word_counts_more_than_the_signal_that_ended_the_others(tmp_path: Path) -> None:
    """srun says 137 when one of several ranks gives up for good and the others are killed."""
    returned, _, calls = run(tmp_path, 137, RUNNING, 'echo 2 > "$SER_HPC_FINAL"', **ELEMENT)
    assert returned == 2 and "requeue" not in calls
    assert not [*tmp_path.glob(".final-*"), *tmp_path.glob(".mark-*")]


@pytest.mark.parametrize("late", [0, 20], ids=["at once", "after a while"])
@pytest.mark.parametrize(
    ("code", "last"),
    [(255, ":"), (127, ":"), (137, ":"), (1, REACHED), (139, REACHED), (75, REACHED), (0, ":")],
    ids=["no image", "no Python", "killed", "fails", "crashes", "stops", "not us"],
)
def test_what_comes_no_further_is_given_up_with_its_reason(tmp_path: Path, code: int, last: str, late: int) -> None:
    """However it ends, and however long it takes. A start that comes further begins the count anew."""
    reason = "FATAL: no such image"
    last = f"SECONDS={late}; {last}\necho 'something else'\necho 'srun: error: n1: task 0: Exited'"
    outcomes = [FURTHER, last, last, FURTHER, last, last, last]
    for number, lines in enumerate(outcomes, start=1):
        returned, said, calls = run(tmp_path, code, RUNNING, f"{lines}\nprintf '10 %%\\r{reason}\\r\\n'", **ELEMENT)
        assert calls.count("requeue") == min(number, 6)
        assert ("given up" in said) == (number == 7)
    assert returned == 2
    why = f"given up after 3 starts in a row without a new step; the last: exit code {code}: {reason}"
    assert f"ser_hpc: {why}\n" in said and starts.given_up_reason(of(tmp_path), "7_3") == why


def test_a_time_limit_that_leaves_no_step_is_given_up(tmp_path: Path) -> None:
    for number in range(1, 4):
        returned, said, calls = run(tmp_path, 0, "JobState=COMPLETING Reason=TimeLimit", REACHED, **ON_N1)
        assert calls.count("requeue") == min(number, 2) and ("the last: the time limit" in said) == (number == 3)
    assert returned == 2


def test_what_slurm_preempts_is_never_given_up_for_it(tmp_path: Path) -> None:
    """Before its first step, time and again; in its time of grace the job still runs, and we ask for the next start."""
    for _ in range(6):
        run(tmp_path, 75, "JobState=COMPLETING Reason=None", REACHED, **ON_N1)
        _, said, calls = run(tmp_path, 143, f"{RUNNING} PreemptTime=2099-11-21T12:00:00", **ON_N1)
    assert "given up" not in said and calls.count("requeue") == 6 and "ExcNodeList" not in calls


def test_starts_that_cannot_be_counted_come_to_an_end(tmp_path: Path) -> None:
    (tmp_path / ".starts-7_3").mkdir()
    for restarts, again in (("1", 1), ("2", 1)):
        returned, said, calls = run(tmp_path, 1, RUNNING, REACHED, SLURM_RESTART_COUNT=restarts, **ELEMENT)
        assert calls.count("requeue") == again
    assert returned == 2 and "given up" in said


def test_a_line_of_setup_that_fails_ends_the_job_with_its_text(tmp_path: Path) -> None:
    """Another node may do better; what is tried in vain there too is given up, as everything is."""
    setup = ["unset NOTHING; : ${NOTHING}; false; true", "# a remark", "module load nothing", "export AFTER=1"]
    for number in range(1, 4):
        returned, said, calls = run(tmp_path, 0, RUNNING, "echo trains", setup=setup, **ON_N1)
        assert "trains" not in said and "cluster.setup: exit code 127 of: module load nothing" in said
        assert calls.count("requeue") == min(number, 2)
    assert returned == 2 and "module: command not found" in said.splitlines()[-1]


def test_lines_of_setup_may_fail_inside_and_span_several(tmp_path: Path) -> None:
    setup = ["false || true", "if false; then", "exit 9", "fi", "export WORD='a b'", "source /dev/null"]
    assert "a b trains" in run(tmp_path, 0, RUNNING, 'echo "$WORD trains"', setup=setup, **ELEMENT)[1]


@pytest.mark.parametrize("word", [False, True], ids=["no Python here", "a mistake"])
def test_train_sbatch_before_it_has_python(tmp_path: Path, word: bool) -> None:
    """The node is to blame, until our own code has said that nothing can be done; for three starts."""
    tools = tmp_path / "bin"
    run(tmp_path, 0, RUNNING)  # makes the stand-ins
    write(tools / "python", f"{'echo 2 > $SER_HPC_FINAL' if word else ':'}\nexit {2 if word else 127}")
    script = Path(__file__).parents[2] / "slurm" / "train.sbatch"
    environment = {"PATH": str(tools), "SLURM_JOB_NAME": "ser"} | ON_N1
    (tmp_path / "calls").unlink()
    for number in (1, 2, 3):
        done = subprocess.run(["/bin/bash", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        assert done.returncode == (2 if word else 127), done.stderr
        assert sum(call == "requeue 7_3" for call in calls) == (0 if word else min(number, 2))
        assert ("update JobId=7_3 ExcNodeList=n1" in calls) != word
        assert ("given up after 3 starts" in done.stdout) == (number == 3 and not word)


@pytest.mark.parametrize("line", ["exit 1", "set -e; cd /no/such/folder", "set -u; echo $NOT_SET_ANYWHERE"])
def test_a_line_of_setup_that_leaves_the_shell_is_tried_on_another_node(tmp_path: Path, line: str) -> None:
    _, said, calls = run(tmp_path, 0, RUNNING, "echo trains", setup=["true", line], **ON_N1)
    assert "trains" not in said and f"cluster.setup left the shell at: {line}" in said
    assert "requeue 7_3" in calls and "ExcNodeList=n1" in calls


def test_code_of_an_earlier_version_is_known_by_what_it_leaves(tmp_path: Path) -> None:
    """It writes no last word where all is well, and no marks: its marker is there, and no start of it is in vain."""
    jobs = tmp_path / "run" / "jobs"
    jobs.mkdir(parents=True)
    done = f"ser_trials=0:2; ser_folder={jobs}; mkdir -p {tmp_path}/run/seed_0/fold_2"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mkdir").symlink_to("/usr/bin/mkdir")
    assert "requeue" in run(tmp_path, 0, RUNNING, done, **ELEMENT)[2]
    (tmp_path / "calls").unlink()
    assert run(tmp_path, 0, RUNNING, f"{done}; touch {tmp_path}/run/seed_0/fold_2/done.json", **ELEMENT)[0] == 0
    assert not (tmp_path / "calls").exists() or "requeue" not in (tmp_path / "calls").read_text()
    for _ in range(5):
        assert "requeue" in run(tmp_path, 75, RUNNING, f"{done}; ser_marks=no", **ELEMENT)[2]
