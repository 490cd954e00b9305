"""What README.md and docs/ say is so: every command in them is executed, every link leads somewhere, every setting exists.

A command of a bash block is run here, in a folder with small corpora under the paths that the pages use; or it is one of
ELSEWHERE, which names the test that executes it. A new command that is neither fails.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import slurm_here
import soundfile
import webdataset
import yaml
from documents import PAGES, README, ROOT, anchors, blocks, commands, links, text
from models.tiny import CONFIGS
from ranks import warm_ranks

from ser_hpc import __version__, compare, export, inspect, launch, pack, predict, report, status, sweep, track, web
from ser_hpc.config.load import load_settings
from ser_hpc.config.sweep import read_sweep
from ser_hpc.core import cli
from ser_hpc.corpora import labels
from ser_hpc.monitor.trial_states import STATES
from ser_hpc.shards.quality import DEFAULTS

LINES = 180
_ON_SLURM = "tests/launchers/test_documented_commands.py::test_"
_SCRIPT = "tests/launchers/test_faults.py::test_the_sbatch_script_alone"
_CLUSTER = _ON_SLURM + "a_slurm_on_one_machine_is_started_cut_mended_and_stopped"
_CONTAINER = "tests/launchers/test_container.py::test_"  # nothing here can build it: what its recipe says is tried
_TRAINS = "tests/launch/test_launch.py::test_trains_reports_resumes_and_grows"
_ADAPTER = "tests/inference/test_adapter_folder.py::test_it_predicts_as_its_run_over_its_base_alone"
_EMODB = "python -m ser_hpc.launch --config configs/emodb_acrnn.yaml"
_SHARDS = "data.shards=/scratch/shards/emodb"
ELSEWHERE = {
    # Of these, what they plan is tried here too.
    f"{_EMODB} --folds 5 --seeds 3 --partition gpu {_SHARDS} train.epochs=60": _TRAINS,
    f"{_EMODB} --folds 5 --seeds 2 --gpus-per-node 1 --cluster local {_SHARDS} train.epochs=60": _TRAINS,
    "python -m ser_hpc.launch --folds 5 --partition gpu --seeds 2 data.order=shards data.window_mb=1": (
        "tests/engine/test_data_side.py::test_augmented_training_goes_on_as_if_it_had_never_stopped"
    ),
    f"{_EMODB} {_SHARDS} --code saved": "tests/results/test_runs_of_before.py::test_its_own_code_goes_on_with_it",
    f"{_EMODB} --partition gpu {_SHARDS} --queue-anyway": _ON_SLURM + "jobs_are_submitted_shown_cancelled_and_submitted_again",
    f"{_EMODB} --partition gpu {_SHARDS} --wait": _ON_SLURM + "waiting_for_the_jobs_ends_with_the_report",
    f"{_EMODB} {_SHARDS} --ended CLUSTER": _ON_SLURM + "jobs_on_another_cluster_hold_their_trials_until_they_ended",
    f"python -m ser_hpc.launch --config configs/any_corpus_probe.yaml --folds 5 --cluster local {_SHARDS} data.labels=emodb_7 "
    "model.weights=/data/whisper-base": "tests/engine/test_probe.py::test_the_model_that_is_kept_predicts_the_same_from_sound",
    f"python -m ser_hpc.launch --folds 5 --cluster local folds.protocol=speaker_groups {_SHARDS} data.labels=emodb_7 "
    "model.weights=/data/whisper-base model.freeze=encoder model.layers=weighted train.lr=5e-3 train.epochs=40 "
    "train.class_weights=balanced": "tests/models/test_layer_sum.py::test_heads_learn_the_same_from_stored_features",
    f"python -m ser_hpc.launch --folds 5 --cluster local folds.protocol=speaker_groups {_SHARDS} data.labels=emodb_7 "
    "model.weights=/data/whisper-base model.num_layers=4 model.layers=weighted train.lr=1e-4 train.head_lr=1e-3 "
    "train.layer_decay=0.8 train.warmup=0.2 train.epochs=10 train.class_weights=balanced": (
        "tests/engine/test_recipe_parts.py::test_the_same_curve_and_weights_on_more_ranks"
    ),
    "python -m ser_hpc.launch --config any_corpus_finetune --folds 5 --seeds 3 --cluster pace_ice --partition gpu "
    "--time 4:00:00 --parallel 4 run.root=~/scratch/runs data.shards=~/scratch/shards/emodb data.labels=emodb_7 "
    "model.weights=~/scratch/weights/whisper-base cluster.gpu_type=[l40s,a100,h100]": (
        _ON_SLURM + "jobs_are_submitted_shown_cancelled_and_submitted_again"
    ),
    # These need a Slurm.
    f"{_EMODB} --folds 5 --seeds 3 --partition gpu --cluster mine.yaml --gpus-per-node 2 --strategy zero2 --time 4:00:00 "
    f"--parallel 8 {_SHARDS} --dry-run": _ON_SLURM + "a_dry_run_shows_what_the_site_says",
    "python tools/build_shards.py msp_podcast /data/MSP /scratch/shards/msp --partition cpu --jobs 20": (
        "tests/launchers/test_pack_jobs.py::test_an_array_packs_what_packing_here_packs"
    ),
    "python tools/build_shards.py msp_podcast ~/scratch/corpora/MSP ~/scratch/shards/msp --partition cpu --cluster pace_ice "
    "--jobs 8": ("tests/launchers/test_pack_jobs.py::test_an_array_packs_what_packing_here_packs"),
    "sbatch slurm/train.sbatch": _SCRIPT,
    f"sbatch --array=0-14 --gpus-per-node=h100:1 slurm/train.sbatch configs/emodb_acrnn.yaml seeds=3 {_SHARDS}": _SCRIPT,
    "python tools/slurm_here start /tmp/slurm": _CLUSTER,
    "python tools/slurm_here cut /tmp/slurm n2": _CLUSTER,
    "python tools/slurm_here mend /tmp/slurm n2": _CLUSTER,
    "python tools/slurm_here stop /tmp/slurm": _CLUSTER,
    "apptainer build ser_hpc.sif slurm/ser_hpc.def": _CONTAINER + "it_takes_what_a_build_of_the_project_needs",
    "apptainer test ser_hpc.sif": _CONTAINER + "its_shell_is_shell",
    "rsync ser_hpc.sif cluster:/scratch/images/": _CONTAINER + "its_shell_is_shell",
    "python -m ser_hpc.compare runs/emodb_acrnn-XXXXXXXX runs/emodb_acrnn-YYYYYYYY": (
        "tests/results/test_comparison.py::test_it_is_shown_for_80_columns"
    ),
    "python -m ser_hpc.compare runs/emodb_acrnn-XXXXXXXX runs/emodb_acrnn-YYYYYYYY --latex": (
        "tests/results/test_comparison_latex.py::test_a_row_holds_the_scores_of_its_system"
    ),
    "python -m ser_hpc.compare runs/emodb_acrnn-XXXXXXXX FOLDER/svm_training_train.csv FOLDER/svm_training_train_dev.csv "
    "FOLDER/svm_speaker_train.csv": "tests/results/test_comparison.py::test_a_run_and_its_own_table_do_not_differ",
    "python -m ser_hpc.compare runs/emodb_acrnn-XXXXXXXX predictions.csv --json": (
        "tests/results/test_comparison.py::test_a_run_and_its_own_table_do_not_differ"
    ),
    "python -m ser_hpc.track runs/emodb_acrnn-XXXXXXXX --to mlflow --url http://127.0.0.1:5000": (
        "tests/results/test_tracking.py::test_mlflow_keeps_each_number_once"
    ),
    "python -m ser_hpc.report --ensemble runs/emodb_acrnn-XXXXXXXX runs/emodb_acrnn-YYYYYYYY": (
        "tests/results/test_ensembles.py::test_it_is_the_mean_over_runs_of_the_mean_over_their_seeds"
    ),
    "python -m ser_hpc.report --ensemble runs/emodb_acrnn-XXXXXXXX runs/emodb_acrnn-YYYYYYYY --weighted --out runs/mixed": (
        "tests/results/test_ensembles.py::test_it_is_reported_and_compared_as_a_run"
    ),
    f"python -m ser_hpc.sweep sweep.yaml --config configs/any_corpus_finetune.yaml --folds 5 --partition gpu --parallel 8 "
    f"{_SHARDS}": "tests/launchers/test_sweep_jobs.py::test_two_of_its_jobs_are_killed_and_nothing_is_lost_or_doubled",
    f"python -m ser_hpc.launch --config any_corpus_finetune {_SHARDS} model.init_from=runs/crema-XXXXXXXX": (
        "tests/engine/test_init_from.py::test_each_fold_starts_from_the_trial_that_has_heard_nobody_of_it"
    ),
    "python -m ser_hpc.export runs/lora-XXXXXXXX adapter --adapter": _ADAPTER,
    "python -m ser_hpc.predict adapter /data/mine/wav --base facebook/wav2vec2-base": _ADAPTER,
    "python tools/bench/gpu_all.py --out FOLDER": (
        "tests/tools/test_gpu_all.py::test_killed_a_call_leaves_what_it_has_and_nobody_behind"
    ),
    "python -m ser_hpc.web runs/emodb_acrnn-XXXXXXXX": (
        "tests/inference/test_web.py::test_the_server_answers_for_this_machine_and_asks_no_other"
    ),
    "python -m ser_hpc.train --run-dir runs/emodb_acrnn-XXXXXXXX --fold 0 --seed 0": (
        "tests/engine/test_resume.py::test_done_is_done"
    ),
}
DEMO = "python -m ser_hpc.launch --folds 5 --partition gpu"
MAINS = {
    "compare": compare.main,
    "launch": launch.main,
    "status": status.main,
    "report": report.main,
    "inspect": inspect.main,
    "pack": pack.main,
    "predict": predict.main,
    "export": export.main,
    "track": track.main,
    "sweep": sweep.main,
    "web": web.main,
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout's, and in it data/ with small corpora, which the pages call /data."""
    place = tmp_path_factory.mktemp("documented")
    for name in ("configs", "tools", "slurm"):
        (place / name).symlink_to(ROOT / name)
    emodb = [
        f"{speaker}a01{emotion}a"
        for speaker in ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")
        for emotion in "FNWLEAT"
    ]
    acted = range(1, 9)
    names = {
        "emodb": [f"wav/{name}" for name in emodb],
        "RAVDESS": [f"Actor_{a:02}/03-01-{e:02}-01-01-01-{a:02}" for a in range(1, 13) for e in acted],
        "CREMA-D": [f"AudioWAV/{a}_IEO_{e}_XX" for a in range(1001, 1004) for e in ("ANG", "HAP", "NEU", "SAD")],
        "TESS": [f"{s}_{e}/{s}_back_{e}" for s in ("OAF", "YAF") for e in ("angry", "sad", "happy")],
        "mine": [f"wav/{number}" for number in range(6)],
    }
    rng = np.random.default_rng(0)
    for corpus, clips in names.items():
        for clip in clips:
            path = place / "data" / corpus / f"{clip}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, rng.uniform(-0.3, 0.3, 4000), 16_000)
    rows = "".join(f"wav/{number}.wav,{('happy', 'sad')[number % 2]},anna{number // 2}\n" for number in range(6))
    (place / "data" / "mine" / "all.csv").write_text("audio,emotion,speaker\n" + rows)
    weights = place / "data" / "whisper-base"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps(CONFIGS["whisper"] | {"encoder_layers": 6}))
    (weights / "model.safetensors").write_bytes(b"what they are is looked at when they are loaded")
    for number in range(2):
        write_talk(place / "data" / "talk" / f"train-{number:06}.tar", place / "data" / "mine" / "wav" / f"{number}.wav")
    return place


def write_talk(tar: Path, recording: Path) -> None:
    """A tar of one clip as docs/data.md shows it, by webdataset's own writer."""
    tar.parent.mkdir(exist_ok=True)
    (shown,) = [block for block in blocks(ROOT / "docs" / "data.md", "text") if "clip7.json" in block]
    said = re.search(r"\{.*\}", shown)
    assert said
    with webdataset.TarWriter(str(tar)) as writer:
        writer.write({"__key__": tar.stem, "wav": recording.read_bytes(), "json": json.loads(said[0])})


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "120")
    yield workplace


def run(command: str, place: Path) -> int:
    """The exit code of one of the project's own commands, its paths and its run's name those of `place`.

    What it launches is only planned, on this machine, but for the demo, which is trained for an epoch.
    """
    command = re.sub(r"~/scratch/(corpora|weights)/", "/data/", command)  # the folders of docs/pace.md
    command = command.replace("~/scratch/runs", "runs").replace("~/scratch/", "/scratch/")
    for given in ("/data/", "/scratch/"):
        command = command.replace(given, f"{place}{given}")
    if "XXXXXXXX" in command:
        (trained,) = (place / "runs").glob("demo-*")
        command = re.sub(r"runs/\w+-XXXXXXXX", str(trained), command)
    words = shlex.split(command)[1:]
    name, arguments = (words[1].removeprefix("ser_hpc."), words[2:]) if words[0] == "-m" else ("pack", words[1:])
    if name in ("launch", "sweep") and not {"--help", "--settings"} & {*arguments}:
        small = ["train.epochs=1", "--gpus-per-node", "1"] if command == DEMO else ["--dry-run"]
        arguments += [*small, "--cluster", "local"]
    try:
        with warm_ranks():
            return cli.run_to_exit_code(lambda: MAINS[name](arguments))
    except SystemExit as end:
        return int(end.code or 0)


def is_ours(command: str) -> bool:
    return bool(re.match(rf"python (-m ser_hpc\.({'|'.join(MAINS)})|tools/build_shards\.py)\b", command))


def test_the_projects_own_commands_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order in which a reader meets them, but for the demo, whose run is what the later ones look at."""
    # They need a Slurm, a server, two runs or one over pre-trained weights, or have no end.
    several = ("ser_hpc.compare", "--ensemble", "model.init_from", "--adapter", "--base", "ser_hpc.sweep")
    elsewhere = ("mine.yaml", "--partition cpu", "mlflow", "ser_hpc.web", *several)
    ours = [command for command in commands() if is_ours(command) and not any(word in command for word in elsewhere)]
    packed_first = sorted(ours, key=lambda command: (command != DEMO, "build_shards" not in command))
    assert packed_first[0] == DEMO and len(ours) > 25
    for command in packed_first:
        code = run(command, here)
        assert code == 0, f"{command}\n{capsys.readouterr()}"
    assert (here / "clip.wav").exists()
    report_of_it = json.loads(next((here / "runs").glob("demo-*/report.json")).read_text())
    assert len(report_of_it["folds"]) == 5 and not report_of_it["missing"]


def test_every_other_command_is_executed_by_a_test_that_is_there() -> None:
    said = commands()
    assert not [command for command in ELSEWHERE if command not in said], "no page says these any more"
    for command in said:
        trains = (
            is_ours(command)
            and re.search(r"\.(launch|sweep) ", command)
            and not {"--dry-run", "--settings", "--help"} & {*command.split()}
        )
        if command in ELSEWHERE:
            path, name = ELSEWHERE[command].split("::")
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), ELSEWHERE[command]
        else:
            checked = is_ours(command) and (not trains or command == DEMO)
            assert checked or command.split()[0] in TOOLS or command in BENCHMARKS, command


def _extras(command: str) -> bool:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return set(re.findall(r"\[(\w+)\]", command)) <= known.keys() and "install -e" in command


def _markers(command: str) -> bool:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    known = {marker.partition(":")[0] for marker in options["markers"]}
    return {word for words in shlex.split(command)[2:] for word in words.split()} <= known | {"or"}


def _continuous_integration(command: str) -> bool:
    return command in (ROOT / ".ci" / "run").read_text().splitlines()


TOOLS: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(("python3", ".", "ruff", "mypy"), _continuous_integration),
    "pip": _extras,
    "pytest": _markers,
    "apt-get": lambda command: set(command.split()[2:]) == slurm_here.PACKAGES.keys(),
}


@pytest.mark.parametrize("command", [command for command in commands() if command.split()[0] in TOOLS])
def test_what_is_installed_and_what_tests_are_called_exists(command: str) -> None:
    assert TOOLS[command.split()[0]](command)


BENCHMARKS = [command for command in commands() if command.startswith("python tools/bench/") and command not in ELSEWHERE]


@pytest.mark.parametrize("command", BENCHMARKS)
def test_benchmarks_take_what_the_pages_give_them(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read by the benchmark's own parser, and no more: what it measures takes minutes to hours."""

    class ReadError(Exception):
        pass

    def parse_and_stop(parser: argparse.ArgumentParser, *_: object) -> None:
        parse(parser)
        raise ReadError

    script, *arguments = shlex.split(command)[1:]
    for name, package in (("emodb_svm", "opensmile"), ("read_speed", "datasets")):
        if name in script:
            pytest.importorskip(package)
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(ReadError):
        runpy.run_path(str(ROOT / script))["main"]()


def test_measurements_stand_with_the_command_that_made_them() -> None:
    kept = [json.loads(path.read_text()).get("command") for path in (ROOT / "tools" / "bench" / "results").glob("*.json")]
    places = r"(?<= )(/data/emodb|/scratch/shards/emodb|runs/emodb_acrnn-XXXXXXXX|FOLDER|SHARDS|RUN)(?= |$)"
    said = {re.sub(places, "X", command) for command in commands()}
    assert not [command for command in kept if command and re.sub(places, "X", command) not in said]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_and_values_that_are_named_exist(page: Path) -> None:
    """`key=value` in running text and tables is taken by the settings; a key alone is one of them."""
    known = " ".join(_settings())
    for given in re.findall(
        r"`((?:data|folds|model|train|cluster|run)\.[a-z_0-9.]+)(=[^`]*)?`", re.sub(r"(?ms)^```.*?^```", "", text(page))
    ):
        key, value = given
        assert key in known.split() or key.endswith(".kind"), f"{key} is no setting"
        if value:
            kind = ["model.kind=acrnn"] if key in ("model.norm_group", "model.norm") else []
            load_settings(None, [*kind, *shlex.split(f"{key}{value}")])


FOREIGN = {"--nv", "--bind", "--gres", "--test-only"}  # of apptainer and sbatch


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_named_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main in MAINS.values():
        with pytest.raises(SystemExit):
            main(["--help"])
    known = {*re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)} | FOREIGN
    inline = re.findall(r"`(--[a-z][a-z-]*)", re.sub(r"(?ms)^```.*?^```", "", text(page)))
    assert not [option for option in inline if option not in known]


def _settings() -> list[str]:
    from ser_hpc.config.settings_help import settings_help

    return [line.split(" = ")[0].strip() for line in settings_help(120) if " = " in line] + ["model.config", "data.shards"]


def test_blocks_of_yaml_are_what_they_are_shown_as(tmp_path: Path) -> None:
    (label_set,) = blocks(ROOT / "docs" / "data.md", "yaml")
    (tmp_path / "mine_3.yaml").write_text(label_set)
    assert labels.load_label_set(tmp_path / "mine_3.yaml").classes == ("happy", "neutral", "sad")
    frozen, mixed, sweep, several = blocks(ROOT / "docs" / "training.md", "yaml")
    for number, block in enumerate((frozen, mixed, several)):
        (tmp_path / f"{number}.yaml").write_text(block)
        load_settings(tmp_path / f"{number}.yaml", [])
    (tmp_path / "sweep.yaml").write_text(sweep)
    assert read_sweep(tmp_path / "sweep.yaml", None, []).limit == 40
    (tmp_path / "several.yaml").write_text(several)
    kinds = {task.kind for task in load_settings(tmp_path / "several.yaml", []).tasks.values()}
    assert kinds == {"emotion", "classification", "distribution", "numbers"}
    profiles = blocks(ROOT / "docs" / "containers.md", "yaml")
    assert len(profiles) == 2
    (ice,) = blocks(ROOT / "docs" / "pace.md", "yaml")
    said, shipped = yaml.safe_load(ice), yaml.safe_load((ROOT / "configs" / "cluster" / "pace_ice.yaml").read_text())
    assert all(said[key] == shipped[key] for key in said.keys() & shipped.keys())
    (tmp_path / "ice.yaml").write_text(ice)
    assert load_settings(None, [f"cluster.profile={tmp_path / 'ice.yaml'}"]).cluster.account == "coc"
    for number, profile in enumerate(profiles):
        (tmp_path / f"site{number}.yaml").write_text("kind: slurm\n" + profile)
        settings = load_settings(None, [f"cluster.profile={tmp_path / f'site{number}.yaml'}"])
        assert settings.cluster.python == yaml.safe_load(profile)["python"]


def test_lists_of_the_pages_are_those_of_the_code() -> None:
    states = text(ROOT / "docs" / "clusters.md").partition("| state | means |")[2].partition("\n\n")[0]
    assert {name for line in states.splitlines()[2:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])} == {*STATES}
    found = set(re.findall(r"\(`(\w+)`\)", text(ROOT / "docs" / "data.md")))
    assert found and found <= {*DEFAULTS}


def test_readme_is_short_and_names_every_page() -> None:
    assert len(text(README).splitlines()) <= LINES
    assert {page.relative_to(ROOT).as_posix() for page in PAGES if page != README} <= {*links(README)}


def test_the_citation_is_of_this_version() -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= said.keys()
    assert (str(said["version"]), said["license"]) == (__version__, project["license"])
