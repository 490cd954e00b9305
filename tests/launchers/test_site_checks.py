"""The preflight says in words what a site would refuse, all of it at once, and never refuses for want of an answer.

Answers are those of a Slurm 22.05.8 with accounting, recorded; those of df, quota and lfs are written after their manuals.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ser_hpc.config.cluster import ClusterSettings
from ser_hpc.config.load import load_settings
from ser_hpc.core.errors import UserError
from ser_hpc.launchers.slurm import slurm_info
from ser_hpc.launchers.slurm.site_checks import check_packing_jobs, check_trial_jobs, choose_gpus
from ser_hpc.launchers.slurm.slurm_info import FileSystem, Reply, gpus_by_type, quota_left
from ser_hpc.launchers.slurm.submit import trial_parameters
from ser_hpc.launchers.slurm.user_limits import max_array_size, submit_room

SINFO = """\
gpu*|up|16:00:00|1-2|8|64000|gpu:h100:2(S:0-1)|nvidia-gpu,h100|2|mixed
gpu*|up|16:00:00|1-2|64|32000|gpu:a40:1|nvidia-gpu,a40|1|idle
cpu|up|1-12:00:00|1-infinite|4|16000|(null)|cpuonly|1|allocated
big|down|infinite|1-infinite|8|64000|gpu:2|(null)|2|idle
"""
CONFIG = """\
Configuration data as of 2026-11-21T14:58:59
AccountingStorageEnforce = associations,limits,qos
AccountingStoreFlags    = (null)
ClusterName             = test
MaxArraySize            = 1001
SchedulerParameters     = a=1,b
Slurmctld(primary) at vm is UP
"""
ASSOCIATIONS = """\
test|lab|lab|long,normal|normal|||||1000|500
test|lab|course|normal||cpu|||||
test|lab|thesis|long,normal|long||1-00:00:00|gres/gpu=2|gres/gpu=600||
test|lab|class|normal||||gres/gpu:h100=0|||
other|x|x|normal|||||||
"""
QOS = {
    "normal": "normal|||||\n",
    "part": "part|12:00:00||||\n",
    "long": "long|2-00:00:00|gres/gpu=4|cpu=40,gres/gpu=6,mem=1T|gres/gpu=960|10\n",
}
DF = "      Avail Source     Type Mounted on\n72859238400 nfs:/home  nfs4 /my home\n"
STARTS = "sbatch: Job 14 to start at 2026-11-21T14:59:00 using 6 processors on nodes n1 in partition gpu\n"
SCRIPTS = (("trials", "#!/bin/bash\n#SBATCH --time=1\nsrun x\n"), ("report", "#!/bin/bash\n#SBATCH --dependency=afterany:X\n"))


class Site:
    """Answers as recorded; `given` (by the name of the command) in place of it. Keeps what sbatch was given."""

    def __init__(self, **given: Reply) -> None:
        self.given, self.tested = given, []

    def __call__(self, command: Sequence[str], stdin: str) -> Reply:
        if command[0] == "sbatch":
            self.tested.append(stdin)
        if command[0] in self.given:
            return self.given[command[0]]
        if command[:3] == ("scontrol", "--oneliner", "show"):
            return Reply(0, f"PartitionName={command[4]} QoS={'part' if command[4] == 'cpu' else 'N/A'} MaxTime=1\n")
        if command[0] == "sacctmgr":
            return Reply(0, QOS[command[5]] if command[4] == "qos" else ASSOCIATIONS)
        known = {"sinfo": Reply(0, SINFO), "scontrol": Reply(0, CONFIG), "df": Reply(0, DF), "sbatch": Reply(0, err=STARTS)}
        return known.get(command[0], Reply(127))


def settings(*overrides: str) -> ClusterSettings:
    return load_settings(None, ["cluster.profile=generic", *(f"cluster.{override}" for override in overrides)]).cluster


def preflight(site: Site, *overrides: str, disk: float = 1e6, own_test: bool = True) -> list[str]:
    return check_trial_jobs(settings(*overrides), Path("runs"), disk, SCRIPTS, site, own_test=own_test)


def refused(*overrides: str, disk: float = 1e6, site: Site | None = None) -> list[str]:
    """The problems that were told, one each."""
    with pytest.raises(UserError) as caught:
        preflight(site or Site(), *overrides, disk=disk)
    head, *problems = str(caught.value).splitlines()
    assert "nothing was submitted" in head
    return [problem.strip() for problem in problems]


def test_what_a_site_takes_passes_with_slurms_own_words() -> None:
    site = Site()
    notes = preflight(
        site, "partition=gpu", "gpu_type=h100", "gpus_per_node=2", "cpus_per_gpu=4", "mem_gb_per_gpu=31", "nodes=2"
    )
    assert notes == [f"Slurm's own test of the {name} script: {STARTS[8:-1]}" for name in ("trials", "report")]
    assert site.tested[0] == SCRIPTS[0][1] and site.tested[1] == "#!/bin/bash\n"  # nothing to wait for yet


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["partition=gpus"], "cluster.partition=gpus: no such partition here; there are big, cpu, gpu"),
        (["report_partition=cpus"], "cluster.report_partition=cpus: no such partition here; there are big, cpu, gpu"),
        (["partitions={gpu: ice}", "partition=gpu"], "cluster.partition=ice: no such partition"),
        (["time_min=16:01:00"], "cluster.time_min=961: partition gpu allows 960 minutes"),
        (
            ["time_min=2"],
            "cluster.time_min=2 leaves no time to train: of its 120 s a trial needs about 30 to start, and is asked",
        ),
        (["stop_before_end_s=14400"], "to stop 14400 before the end (cluster.stop_before_end_s)"),
        (["stop_before_end_s=57600", "time_min=20:00:00"], "a partition that allows 960 min leaves no time to train"),
        (["gpu_type=H100"], "cluster.gpu_type=H100: partition gpu has GPUs a40, h100"),
        (
            ["gpus_per_node=3", "cpus_per_gpu=1", "mem_gb_per_gpu=1"],
            "cluster.gpus_per_node=3: a node of partition gpu has 2 GPUs",
        ),
        (["gpus_per_node=2", "gpu_type=a40", "mem_gb_per_gpu=1"], "a node of partition gpu has 1 a40 at most"),
        (["partition=cpu", "cpus_per_gpu=1", "mem_gb_per_gpu=1"], "cluster.gpus_per_node=1: partition cpu has no GPUs"),
        (["cpus_per_gpu=65"], "65 CPU cores per node (cluster.cpus_per_gpu for each GPU): partition gpu has 64 at most"),
        (["mem_gb_per_gpu=63"], "63 GB of memory per node (cluster.mem_gb_per_gpu for each GPU): partition gpu has 62.5 GB"),
        (["constraint=b200"], "cluster.constraint=b200: partition gpu has nodes with a40, h100, nvidia-gpu"),
        (["cpus_per_gpu=9"], "1 GPUs, 9 CPU cores, 32 GB: no node of partition gpu has all of these at once"),
        (["constraint=a40", "gpu_type=h100"], "the feature a40: no node of partition gpu has all of these at once"),
        (["nodes=3", "gpu_type=h100"], "cluster.nodes=3: partition gpu has 2 such nodes"),
        (["nodes=3", "mem_gb_per_gpu=8"], "cluster.nodes=3: partition gpu allows 2 nodes a job"),
        (["account=physics"], "cluster.account=physics: not an account of"),
        (["account=course"], "there are class, course (partition cpu), lab"),
        (["account=class", "gpu_type=h100"], "1 GPUs (gres/gpu:h100) for each trial's job: account class allows a job 0"),
        (["account=thesis", "qos=normal", "time_min=25:00:00", "partition=big"], "1500: account thesis allows 1440 minutes"),
        (
            ["account=thesis", "qos=normal", "nodes=3", "partition=gpu"],
            "3 GPUs (gres/gpu) for each trial's job: account thesis",
        ),
        (["account=thesis", "qos=normal", "time_min=11:00:00"], "account thesis allows a job 10.0, so cluster.time_min=600"),
        (["gpus_per_node=0", "partition=cpu", "time_min=13:00:00"], "cluster.time_min=780: QOS part allows 720 minutes"),
        (["qos=night"], "cluster.qos=night: account lab may use long, normal"),
        (["qos=long", "time_min=49:00:00", "partition=big"], "cluster.time_min=2940: QOS long allows 2880 minutes"),
        (
            ["qos=long", "gpus_per_node=2", "nodes=2", "time_min=5:00:00", "partition=big"],
            "are 20.0 hours of them: QOS long allows",
        ),
        (["qos=long", "gpus_per_node=2", "nodes=2", "time_min=5:00:00", "partition=big"], "cluster.time_min=240 at most"),
        (["qos=long", "nodes=7", "gpus_per_node=1"], "7 GPUs (gres/gpu) for each trial's job: QOS long allows a job 4"),
        (["qos=long", "nodes=7", "gpus_per_node=1"], "42 CPU cores for each trial's job: QOS long allows a user 40"),
    ],
)
def test_what_was_asked_what_there_is_and_where_to_change_it(overrides: list[str], words: str) -> None:
    assert any(words in problem for problem in refused(*overrides)), refused(*overrides)


def test_a_limit_that_leaves_a_little_time_passes() -> None:
    preflight(Site(), "time_min=3", "stop_before_end_s=149")


def test_every_problem_at_once_and_slurms_own_words_last() -> None:
    no = Reply(1, err="allocation failure: Invalid qos specification\n")
    problems = refused("time_min=17:00:00", "gpu_type=b200", "qos=night", disk=1e12, site=Site(sbatch=no))
    for words in ("1020", "b200", "night", "1000.0 GB are needed", "72.9 GB are free"):
        assert sum(words in problem for problem in problems) == 1
    assert problems[-1] == "Slurm's own test of the report script: allocation failure: Invalid qos specification"
    assert len(problems) == 6


def test_of_two_limits_of_a_kind_slurm_goes_by_the_first_in_its_order() -> None:
    """The QOS of a partition before that of the job before the association: 30 hours are over thesis' 24, and allowed."""
    assert preflight(Site(), "account=thesis", "qos=long", "time_min=30:00:00", "partition=big", "gpus_per_node=0")
    with pytest.raises(UserError, match="QOS part allows 720"):
        preflight(Site(), "qos=long", "time_min=13:00:00", "partition=cpu", "gpus_per_node=0")


NOW = [("lab", "long", "gpu")] * 4 + [("lab", "normal", "gpu,big")] * 3 + [("thesis", "long", "gpu")] * 2


@pytest.mark.parametrize(
    ("overrides", "room"),
    [
        (["account=lab"], 500 - 7),  # the less of MaxSubmitJobs and GrpSubmitJobs, less what the queue has of the account
        (["account=lab", "qos=long"], 10 - 6),  # the QOS', whose jobs may be of any account
        (["account=thesis"], 10 - 6),
        (["account=class"], None),
        (["account=nobody"], None),
    ],
)
def test_how_many_more_jobs_may_be_submitted(overrides: list[str], room: int | None) -> None:
    queue = Reply(0, "CLUSTER: test\n" + "".join("|".join(job) + "\n" for job in NOW))
    assert submit_room(settings(*overrides), Site(squeue=queue)) == room


def test_no_room_is_none_at_all_and_what_is_not_known_limits_nothing() -> None:
    full = Reply(0, "lab|long|gpu\n" * 12)
    assert submit_room(settings("account=lab", "qos=long"), Site(squeue=full)) == 0
    assert submit_room(settings("account=lab", "qos=long"), Site(squeue=Reply(124))) is None
    assert submit_room(settings("account=lab"), Site(squeue=full, sacctmgr=Reply(1))) is None


def test_how_long_an_array_may_be() -> None:
    assert max_array_size(Site()) == 1001
    fewer = CONFIG.replace("SchedulerParameters     = a=1,b", "SchedulerParameters = a=1,max_array_tasks=300,b")
    assert max_array_size(Site(scontrol=Reply(0, fewer))) == 300
    assert max_array_size(Site(scontrol=Reply(127))) is None


NOT_NOW = Reply(1, err="allocation failure: Requested node configuration is not available\n")
DRAINED = Reply(0, SINFO.replace("|mixed", "|drained").replace("a40|1|idle", "a40|1|down*"))


def test_nodes_that_are_away_are_waited_for(tmp_path: Path) -> None:
    """Slurm's test refuses what plain sbatch queues; so it does what no node will ever run, in the same words."""
    notes = preflight(Site(sinfo=DRAINED, sbatch=NOT_NOW), "partition=gpu")
    assert "trials: will be queued, to wait until nodes come back that are down, drained or reserved now" in notes
    told = refused("partition=gpu", site=Site(sbatch=NOT_NOW))
    assert "Requested node configuration" in told[0] and "--queue-anyway" in told[-1]
    part = Reply(0, SINFO.replace("|mixed", "|drained"))  # an a40 is there, and would do
    too_small = Reply(0, part.out.replace("|64|32000|", "|64|2000|"))  # of the a40, even for the report
    assert (
        "--queue-anyway"
        in refused("partition=gpu", "cpus_per_gpu=1", "mem_gb_per_gpu=1", site=Site(sinfo=part, sbatch=NOT_NOW))[-1]
    )
    assert any("queued" in note for note in preflight(Site(sinfo=too_small, sbatch=NOT_NOW), "partition=gpu", "gpu_type=h100"))
    assert "b200" in refused("partition=gpu", "gpu_type=b200", site=Site(sinfo=DRAINED, sbatch=NOT_NOW))[0]
    invalid = Reply(1, err="allocation failure: Invalid qos specification\n")
    assert "Invalid qos" in refused("partition=gpu", site=Site(sinfo=DRAINED, sbatch=invalid))[0]
    assert preflight(Site(sbatch=NOT_NOW), "partition=gpu", own_test=False) == []


@pytest.mark.parametrize("state", ["idle", "mixed", "allocated", "planned", "completing", "idle~", "allocated#", "mixed-"])
def test_states_in_which_a_node_takes_jobs(state: str) -> None:
    assert slurm_info.node_kinds(SINFO.replace("mixed", state))[0].is_there


@pytest.mark.parametrize(
    "state", ["down", "down*", "drained", "draining", "idle*", "maint", "reserved", "idle$", "inval", "fail"]
)
def test_states_in_which_it_does_not(state: str) -> None:
    assert not slurm_info.node_kinds(SINFO.replace("mixed", state))[0].is_there


@pytest.mark.parametrize(
    ("types", "more", "sinfo", "chosen"),
    [
        ("[b200, h100, a40]", [], SINFO, "h100"),  # the first that there is
        ("[a40, h100]", [], SINFO, "h100"),  # the a40's node has too little memory
        ("[a40, h100]", ["mem_gb_per_gpu=8"], SINFO, "a40"),
        ("[h100, a40]", ["mem_gb_per_gpu=8"], DRAINED.out.replace("down*", "idle"), "a40"),  # the h100's nodes are drained
        ("[h100, a40]", ["mem_gb_per_gpu=8"], DRAINED.out, "h100"),
        ("[h100, a40]", ["mem_gb_per_gpu=8", "account=class"], SINFO, "a40"),  # h100 is not permitted
        ("[b200, b100]", [], SINFO, "b200"),
    ],
)
def test_of_several_types_of_gpu_the_first_that_will_do(types: str, more: list[str], sinfo: str, chosen: str) -> None:
    site = Site(sinfo=Reply(0, sinfo))
    found, notes = choose_gpus(settings(f"gpu_type={types}", "partition=gpu", *more), site)
    assert found.gpu_type == chosen and notes == [f"cluster.gpu_type: {chosen}, of {types[1:-1]}"]
    assert "gpus_per_node" in trial_parameters(found) and trial_parameters(found)["gpus_per_node"] == f"{chosen}:1"


def test_one_type_is_taken_as_it_is_without_asking() -> None:
    nobody = Site(sinfo=Reply(127))
    for given in ("h100", "[h100]"):
        found, notes = choose_gpus(settings(f"gpu_type={given}"), nobody)
        assert found.gpu_type == "h100" and not notes
    assert choose_gpus(settings(), nobody) == (settings(), [])
    assert "cannot be asked" in choose_gpus(settings("gpu_type=[h100, a40]"), nobody)[1][0]


@pytest.mark.parametrize("name", ["a%jb", "50%", "a\\b"])
def test_paths_that_slurm_would_read_otherwise_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found on a real Slurm: %j is filled in, and backslashes go, so that logs lie elsewhere; other signs are left alone."""
    for folder in (tmp_path / name, tmp_path / "a b'$[1];#é"):
        folder.mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert f"run.root: Slurm would read {'%' if '%' in name else chr(92)} in" in refused()[0]
    with pytest.raises(UserError, match="OUT: Slurm would read"):
        check_packing_jobs(settings("gpus_per_node=0"), 1, Path("out.jobs"), SCRIPTS[0][1], Site())
    monkeypatch.chdir(tmp_path / "a b'$[1];#é")
    assert preflight(Site())


def test_packing_is_refused_beyond_the_limits() -> None:
    cluster = settings("account=lab", "gpus_per_node=0", "partition=gpu", "qos=long")
    with pytest.raises(UserError, match=r"--jobs 1002: an array holds 1001 here") as caught:
        check_packing_jobs(cluster, 1002, Path("out.jobs"), SCRIPTS[0][1], Site(squeue=Reply(0, "lab|long|gpu\n" * 3)))
    assert "--jobs 1002: your limits allow 7 more at the moment" in str(caught.value)
    assert check_packing_jobs(cluster, 7, Path("out.jobs"), SCRIPTS[0][1], Site(squeue=Reply(0, "lab|long|gpu\n" * 3)))


def test_a_user_without_an_account() -> None:
    assert "has no account in Slurm here" in refused(site=Site(sacctmgr=Reply(0, "other|x|x|normal|||||||\n")))[0]
    unenforced = Site(sacctmgr=Reply(0), scontrol=Reply(0, CONFIG.replace("associations,limits,qos", "none")))
    assert preflight(unenforced)  # accounts are recorded there, and never asked for


def test_what_cannot_be_asked_is_noted_and_never_refused() -> None:
    """Sites hide commands, accounting goes away for an hour, and formats change."""
    nothing = {name: Reply(127, err=f"{name}: No such file") for name in ("sinfo", "scontrol", "sacctmgr", "df", "sbatch")}
    notes = preflight(Site(**nothing), "partition=any", disk=1e15)
    assert len(notes) == 6 and all("not" in note for note in notes)
    down = Reply(1, err="sacctmgr: error: Sending PersistInit msg: Connection refused\n")
    assert "accounts and QOS: not checked (sacctmgr: error" in preflight(Site(sacctmgr=down))[0]
    assert "not understood" in preflight(Site(sinfo=Reply(0, "PARTITION AVAIL\n")))[0]


def test_a_user_id_without_a_name_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container. Nor is USER believed, which may be anybody's."""

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert preflight(Site())[0] == f"accounts and QOS: not checked (the user id {os.getuid()} has no name here)"
    monkeypatch.setenv("USER", "root")
    assert "has no name here" in preflight(Site())[0]


def test_jobs_that_wait_for_a_partition_are_told_of() -> None:
    assert any("partition big is not up" in note for note in preflight(Site(), "partition=big"))
    assert "no partition here is the default" in refused(site=Site(sinfo=Reply(0, SINFO.replace("gpu*", "gpu"))))[0]


def test_files_outside_scratch_are_told_of(tmp_path: Path) -> None:
    assert any(f"run.root={tmp_path}/runs" in note for note in preflight(Site(), f"scratch={tmp_path}"))
    assert not any("large files" in note for note in preflight(Site(), "scratch=/"))
    assert any("not set" in note for note in preflight(Site(), "scratch=$NOWHERE_AT_ALL/x"))


def test_a_user_without_a_home_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    assert any("home directory" in note for note in preflight(Site(), "scratch=~nobody_at_all/x"))


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:h100:2(S:0-1)", {"h100": 2}),
        ("gpu:2", {"": 2}),
        ("gpu:2(S:0)", {"": 2}),
        ("(null)", {}),
        ("gpu:h100:2(S:0,2),gpu:a100:4(S:1),craynetwork:4", {"h100": 2, "a100": 4}),
        ("mps:200,gpu:h100_1g.10gb:7(S:0)", {"h100_1g.10gb": 7}),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: dict[str, int]) -> None:
    assert gpus_by_type(gres) == gpus


HOME = FileSystem(10**12, "nfs:/home", "nfs4", "/home")
USED_UP = """\
Disk quotas for user ann (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
      nfs:/home  {used} 15000000 16000000       0   21033       0       0       0
"""


def test_a_quota_is_less_than_the_free_disk() -> None:
    assert quota_left(USED_UP.format(used="14000000"), HOME) == 2_000_000 * 1024
    assert quota_left(USED_UP.format(used="17000000*"), HOME) == 0
    assert quota_left(USED_UP.format(used="1"), replace(HOME, source="nfs:/scratch")) is None
    scratch = replace(HOME, kind="lustre", mount="/scratch")
    assert quota_left("       /scratch  1000  0  301000  -  7  0  0  -\n", scratch) == 300_000 * 1024
    site = Site(quota=Reply(1, USED_UP.format(used="14000000")))
    assert "2.0 GB are left of the quota" in refused(disk=3e9, site=site)[0] and preflight(site, disk=1e9)


def test_a_command_that_hangs_or_is_not_there_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_info, "_ASK_S", 0.05)
    assert slurm_info.run_query((sys.executable, "-c", "import time; time.sleep(60)"), "").code == 124
    assert slurm_info.run_query(("no-such-command-here",), "").code == 127
    monkeypatch.setattr(slurm_info, "_ASK_S", 60)
    assert slurm_info.run_query(("cat",), "script").out == "script"


def test_shell_that_bash_cannot_read_and_options_that_srun_does_not_know_are_told_before_any_trial_meets_them() -> None:
    """Three starts on three nodes, each of every trial, would find it out."""
    site = Site(
        bash=Reply(2, err="bash: line 1: unexpected EOF while looking for matching `\"'"), srun=Reply(1, err="srun: foo?")
    )
    said = refused('setup=["echo \\"a"]', "srun_args=--foo", site=site)
    assert any("cluster.setup: bash cannot read" in line and "unexpected EOF" in line for line in said)
    assert any("cluster.srun_args: srun does not take --foo" in line for line in said)
