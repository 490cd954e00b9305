"""Profiles: who wins, what is refused, and that a dry run prints the very scripts that are submitted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ser_hpc.config.cluster import ClusterSettings, expand_path, slurm_minutes
from ser_hpc.config.load import dump_settings, find_config, load_settings
from ser_hpc.config.schema import identity
from ser_hpc.core.atomic_io import file_lock
from ser_hpc.core.errors import ConfigError, UserError
from ser_hpc.launchers.slurm import pack_jobs, submit
from ser_hpc.launchers.slurm.submit import batch_scripts, submit_report, submit_trials
from ser_hpc.run.run_dir import RunDir, Trial

PROFILES = ("local", "generic", "pace_ice")


def cluster(*overrides: str) -> ClusterSettings:
    return load_settings(None, [f"cluster.{override}" for override in overrides]).cluster


@pytest.mark.parametrize("name", PROFILES)
def test_every_shipped_profile_loads_and_jobs_need_it_no_more(tmp_path: Path, name: str) -> None:
    """The resolved settings, which jobs read, say what the profile said without naming it."""
    settings = load_settings(None, [f"cluster.profile={name}", "cluster.time_min=5"])
    assert settings.cluster.kind == ("local" if name == "local" else "slurm")
    (tmp_path / "resolved.yaml").write_text(dump_settings(settings))
    back = load_settings(tmp_path / "resolved.yaml", [])
    assert back.cluster == settings.cluster.model_copy(update={"profile": None})
    assert identity(back) == identity(settings) == identity(load_settings(None, [])) == {}


def test_default_then_profile_then_file_then_command_line(tmp_path: Path) -> None:
    profile, file = tmp_path / "site.yaml", tmp_path / "experiment.yaml"
    profile.write_text("kind: slurm\ncpus_per_gpu: 7\nmem_gb_per_gpu: 70\nqos: night\npartitions: {gpu: a, cpu: c}\n")
    file.write_text(f"cluster: {{profile: {profile}, mem_gb_per_gpu: 50, qos: day, partitions: {{gpu: b}}}}\n")
    found = load_settings(file, ["cluster.qos=noon"]).cluster
    assert (found.nodes, found.cpus_per_gpu, found.mem_gb_per_gpu, found.qos) == (1, 7, 50, "noon")
    assert found.partitions == {"gpu": "b", "cpu": "c"} and found.kind == "slurm"


def test_a_profile_named_on_the_command_line_decides_where_trials_run(tmp_path: Path) -> None:
    """`--cluster local` means here, although the file was written for Slurm; without it the file has its way."""
    file = tmp_path / "experiment.yaml"
    file.write_text("cluster: {profile: pace_ice, kind: slurm}\n")
    assert load_settings(file, []).cluster.partition == "gpu"
    here = load_settings(file, ["cluster.profile=local"]).cluster
    assert (here.kind, here.partition) == ("local", None)
    assert load_settings(file, ["cluster.profile=local", "cluster.kind=auto"]).cluster.kind == "auto"


@pytest.mark.parametrize(
    ("word", "profile", "kind"), [("slurm", "generic", "slurm"), ("auto", None, "auto"), ("local", "local", "local")]
)
def test_plain_words_for_where_to_run(word: str, profile: str | None, kind: str) -> None:
    found = cluster(f"profile={word}")
    assert (found.profile, found.kind) == (profile, kind)


def test_mistakes_of_profiles_are_told_with_all_others(tmp_path: Path) -> None:
    bad, nested = tmp_path / "bad.yaml", tmp_path / "nested.yaml"
    bad.write_text("partitoin: gpu\ntime_min: soon\n")
    nested.write_text("profile: generic\n")
    with pytest.raises(ConfigError, match=r"pace_ise.*generic, local, pace_ice") as caught:
        load_settings(None, ["cluster.profile=pace_ise", "train.lrr=1"])
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError) as caught:
        load_settings(None, [f"cluster.profile={bad}", "cluster.nodes=0"])
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "in the cluster profile, cluster.partitoin: unknown key; did you mean cluster.partition?" in text
    assert "in the cluster profile, cluster.time_min: write minutes" in text and "  cluster.nodes:" in text
    with pytest.raises(ConfigError, match="names another profile, generic"):
        load_settings(None, [f"cluster.profile={nested}"])


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_times_mean_what_slurm_means(days: int, hours: int, minutes: int, seconds: int) -> None:
    whole = -(-(hours * 3600 + minutes * 60 + seconds) // 60)
    assert slurm_minutes(f"{hours}:{minutes}:{seconds}") == whole
    assert slurm_minutes(f"{days}-{hours}:{minutes}:{seconds}") == days * 1440 + whole
    assert slurm_minutes(f"{days}-{hours}:{minutes}") == days * 1440 + hours * 60 + minutes
    assert slurm_minutes(f"{days}-{hours}") == days * 1440 + hours * 60
    assert slurm_minutes(f"{minutes}:{seconds}") == minutes + -(-seconds // 60)
    assert slurm_minutes(f"{minutes}") == minutes


@pytest.mark.parametrize(
    ("written", "minutes"),
    [("90", 90), ("4:00:00", 240), ("04:00:00", 240), ("90:00", 90), ("'4:00:00'", 240), ("1-12:00:00", 2160), ("0:30:00", 30)],
)
def test_a_time_means_the_same_in_a_file_and_on_the_command_line(tmp_path: Path, written: str, minutes: int) -> None:
    """YAML 1.1 reads 4:00:00 as the number 14400: ten days of minutes."""
    file = tmp_path / "experiment.yaml"
    file.write_text(f"cluster: {{time_min: {written}}}\n")
    assert load_settings(file, []).cluster.time_min == cluster(f"time_min={written}").time_min == minutes


@pytest.mark.parametrize("written", ["0", "4h", "1:2:3:4", "-5", "1.5", "UNLIMITED", "1-", "''"])
def test_other_times_are_refused(written: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.time_min"):
        cluster(f"time_min={written}")


def test_folders_are_expanded_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set must not become a folder called $TMPDIR."""
    monkeypatch.setenv("SOMEWHERE", "/disk")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expand_path("$SOMEWHERE/x") == Path("/disk/x") and expand_path("~").is_absolute()
    with pytest.raises(UserError, match=r"\$NOWHERE/x"):
        expand_path("$NOWHERE/x")


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that keeps what it was given as 1.sh, 2.sh ... in this folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    keep = f'n=$(ls {folder}/*.sh 2>/dev/null | wc -l); n=$((n + 1)); cp "$2" {folder}/$n.sh; echo $n'
    for name, script in (("sbatch", keep), ("srun", "exit 1")):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize("count", [1, 5])
def test_the_printed_scripts_are_the_submitted_ones(tmp_path: Path, sbatch: Path, count: int) -> None:
    run = RunDir(tmp_path / "runs" / "ser-01234567")
    site = cluster("profile=pace_ice", "exclude=[n1, n2]", "setup=module load x", "python=apptainer exec a.sif python")
    environment = {"PYTHONPATH": "/a folder", "SER_HPC_CODE": "0123"}
    printed = batch_scripts(run, count, site, environment)
    assert not run.path.exists()
    run.path.mkdir(parents=True)
    with file_lock(run.lock) as lock:
        made = submit_trials(run, [[Trial(0, fold)] for fold in range(count)], site, environment, lock)
        report = submit_report(run, [str(made.job)], site, environment, lock)
    assert (made.job, report.job, made.code, len(made.elements)) == ("1", "2", "0123", count)
    for number, known, (_, text) in zip((1, 2), (made, report), printed, strict=True):
        expected = text.replace("afterany:ARRAY_JOB_ID", "afterany:1").replace("THE_MARK", str(known.mark))
        assert (sbatch / f"{number}.sh").read_text() == expected


def flags(text: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")}


def test_what_jobs_ask_for_is_stated(tmp_path: Path, sbatch: Path) -> None:
    """Partition through the profile; memory, cores, signal, requeue always; the report needs no GPU and none of its nodes."""
    site = cluster(
        "profile=pace_ice", "gpus_per_node=2", "nodes=2", "max_parallel_trials=3", "time_min=4:00:00", "exclude=n7", "setup=one"
    )
    (_, trials), (_, report) = batch_scripts(RunDir(tmp_path / "run"), 5, site, {"TWO": "2 2"})
    assert flags(trials) >= {
        *("--partition=ice-gpu", "--gres=gpu:2", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=8", "--mem=128G"),
        *("--time=240", "--requeue", "--open-mode=append", "--signal=USR2@120", "--exclude=n7", "--constraint=nvidia-gpu"),
        "--array=0-4%3",
    }
    assert (
        "\none\nser_setup $? one\nser_line=\nexport TWO='2 2'\n" in trials
        and "--kill-on-bad-exit=1 --cpus-per-task=8" in trials
    )
    assert flags(report) >= {"--partition=ice-cpu", "--mem=4G", "--dependency=afterany:ARRAY_JOB_ID", "--exclude=n7"}
    assert "\none\nser_setup $? one\nser_line=\nexport TWO='2 2'\n" in report and not [
        flag for flag in flags(report) if "gpu" in flag or "constraint" in flag
    ]


@pytest.mark.parametrize(
    ("overrides", "flag"),
    [
        (["gpus_per_node=2"], "--gpus-per-node=2"),
        (["gpus_per_node=2", "gpu_type=h100"], "--gpus-per-node=h100:2"),
        (["gpu_type=h100", "gpu_request=gres"], "--gres=gpu:h100:1"),
        (["gpus_per_node=0", "gpu_type=h100"], None),
        (["partition=elsewhere", "partitions={gpu: ice-gpu}"], "--partition=elsewhere"),
        (["account=lab"], "--account=lab"),
        (["qos=night"], "--qos=night"),
    ],
)
def test_how_it_is_asked_for(tmp_path: Path, sbatch: Path, overrides: list[str], flag: str | None) -> None:
    found = flags(batch_scripts(RunDir(tmp_path / "run"), 2, cluster(*overrides), {})[0][1])
    assert flag in found if flag else not [word for word in found if "gpu" in word or "gres" in word]


def test_what_a_site_needs_and_no_setting_says(tmp_path: Path, sbatch: Path) -> None:
    """Options reach the scripts as written; the report is not given what asks for hardware; a wckey only if there is one."""
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "kind: slurm\npartition: gpu\npython: python\nsrun_args: ['--container-image=/a b.sqsh', '--container-writable']\n"
        "sbatch: {comment: my thesis, mail_type: END, licenses: 'x:1', reservation: class, exclusive: true, nice: 5}\n"
    )
    site = cluster(f"profile={profile}", "sbatch={nice: null, wckey: mine, --begin: false}")
    (_, trials), (_, report) = batch_scripts(RunDir(tmp_path / "run"), 2, site, {})
    both = {"--comment='my thesis'", "--mail-type=END", "--reservation=class", "--wckey=mine", "--requeue"}
    assert flags(trials) >= both | {"--licenses=x:1", "--exclusive"} and flags(report) >= both
    for word in ("nice", "begin", "None", "False"):
        assert word not in trials + report
    assert "licenses" not in report and "exclusive" not in report
    for text in (trials, report):
        assert "'--container-image=/a b.sqsh' --container-writable" in text
    elsewhere = site.model_copy(update={"report_partition": "cpu"})
    assert "reservation" not in batch_scripts(RunDir(tmp_path / "run"), 2, elsewhere, {})[1][1]  # which is of other nodes
    assert not [text for _, text in batch_scripts(RunDir(tmp_path / "run"), 2, cluster(), {}) if "wckey" in text]


def test_packing_jobs_are_given_them_as_the_report_is(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("kind: slurm\nsbatch: {comment: x, gres: 'disk:1'}\nsrun_args: --label\n")
    given = submit.trial_parameters(pack_jobs.packing_settings({"profile": str(tmp_path / "site.yaml")}, 2))
    assert given["additional_parameters"] == {"requeue": True, "comment": "x"} and "--label" in given["srun_args"]


def test_resources_other_than_gpus_stand_beside_them(tmp_path: Path, sbatch: Path) -> None:
    for request, expected in (("gres", {"--gres=gpu:1,disk:100"}), ("gpus-per-node", {"--gres=disk:100", "--gpus-per-node=1"})):
        site = cluster(f"gpu_request={request}", "sbatch={gres: disk:100}")
        assert {
            flag for flag in flags(batch_scripts(RunDir(tmp_path / "run"), 2, site, {})[0][1]) if "g" in flag[:4]
        } == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sbatch={requeue: false}", "requeue cannot be given: jobs are always queued again"),
        ("sbatch={array: 0-3}", "array cannot be given: one element for each trial: see cluster.max_parallel_trials"),
        ("sbatch={output: x}", "output cannot be given: logs lie in the run"),
        ("sbatch={job_name: x}", "job-name cannot be given: see run.name"),
        ("sbatch={--time: 5}", "time cannot be given: see cluster.time_min"),
        ("sbatch={signal: USR1}", "see cluster.stop_before_end_s"),
        ("sbatch={ntasks-per-node: 2}", "see cluster.gpus_per_node and cluster.nodes"),
        ("sbatch={chdir: /, dependency: 'afterok:1', nodes: 1, open-mode: append}", "dependency cannot be given"),
        ("sbatch={C: a100}", "'C' is no option of sbatch: write its long name"),
        ("sbatch={gres: 'gpu:1'}", "gres=gpu:1 names GPUs"),
        ('sbatch={comment: "a\\nb"}', "one line"),
        ("sbatch={comment: [1]}", "cluster.sbatch"),
        ("sbatch=[comment]", "cluster.sbatch"),
        ("srun_args=[--cpus-per-task=3]", "--cpus-per-task=3 cannot be given: see cluster.cpus_per_gpu"),
        ("srun_args=['--output=/dev/null']", "logs lie in the run"),
        ("srun_args=[-n2]", "long names"),
        ("gpu_type=[]", "cluster.gpu_type"),
    ],
)
def test_options_that_settings_serve_are_refused_with_their_names(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cluster(override)
    assert words in str(caught.value)


def test_label_sets_and_configurations_are_still_found() -> None:
    with pytest.raises(UserError, match="cluster profiles: generic, local, pace_ice"):
        find_config("nowhere", "cluster")
    with pytest.raises(UserError, match="label sets: "):
        find_config("nowhere", "labels")
