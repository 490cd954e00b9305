"""Copy the code that jobs run into their run when they are submitted, so that editing the checkout changes none of them.

RUN/code/<12 hex of its .py files>/   made aside and renamed: whole or not there
  ser_hpc/...                         the package, and the configurations that it ships (ser_hpc/_configs)
  origin.json                         commit, whether it differed from that, versions of what it ran with, when
  difference.patch                    `git apply` onto that commit gives this code; only where it differed

Every attempt of a trial names the code that ran it. Another code than now stands here is refused, unless asked for; but not
where only files differ that can change no result, such as messages on the terminal.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ser_hpc
from ser_hpc.config.load import configs_folder
from ser_hpc.core.atomic_io import read_json, write_json
from ser_hpc.core.errors import UserError, listed
from ser_hpc.core.versions import versions
from ser_hpc.run import start_marks
from ser_hpc.run.attempt_end import TrainedAttempt, trained_attempts
from ser_hpc.run.run_dir import RunDir, Trial

CodePolicy = Literal["refuse", "saved", "mixed"]

PACKAGE = Path(ser_hpc.__file__).resolve().parent
# What of the package can change no result: how trials are started and shown, packing, what a report says. But for planning.
_CANNOT_CHANGE_RESULTS = (
    *(f"inference/{name}.py" for name in ("adapter_folder", "card", "export", "load", "onnx_folder", "page", "pauses")),
    *(f"inference/{name}.py" for name in ("plain", "predictor", "recordings", "register", "results")),
    *(f"inference/{name}.py" for name in ("watch", "windows", "writers")),
    *("predict.py", "export.py", "track.py", "web.py", "results/tracking/", "engine/model_summary.py"),
    *("monitor/", "launchers/", "pack.py", "launch.py", "status.py", "report.py", "core/cli.py", "run/snapshot.py"),
    *("shards/pack_screen.py", "shards/inspect_screen.py", "shards/stats.py", "shards/fold_stream.py", "results/report_"),
    *("sweep.py", "config/sweep.py", "run/sweep_dir.py", "results/sweep_table.py", "results/ensembles.py"),
    *("run/demo_shards.py", "results/markdown.py", "results/cross_validation.py", "results/intervals.py"),
    *("results/page/", "results/figures/", "results/predictions_table.py", "results/comparison"),
    # in snapshots of before the rooms:
    *("cluster/", "console.py", "shards/show.py", "shards/inspect.py", "results/render.py", "results/text.py"),
)
_PLANNING = ("cluster/plan.py", "cluster/describe.py")  # of before the rooms


@dataclass(frozen=True, slots=True)
class CodeSnapshot:
    """A snapshot in a run: `path` is the folder to import `ser_hpc` from, absolute."""

    path: Path

    @property
    def digest(self) -> str:
        """Return 12 hex digits of the SHA-256 of its .py files."""
        return self.path.name

    @property
    def package(self) -> Path:
        return self.path / PACKAGE.name


def present_digest() -> str:
    """Return the digest of the code that runs here, be it a checkout, an installed package or a snapshot."""
    return _digest(_sources(PACKAGE))


def take_snapshot(run: RunDir) -> CodeSnapshot:
    """Copy the present code into the run; the same code is copied once.

    Raises UserError if it cannot be written, or a copy that is there has been edited.
    """
    sources = _sources(PACKAGE)
    code = _code(run, _digest(sources))
    if code.path.is_dir():
        return _unedited(code)
    temporary = code.path.with_name(f".{code.digest}.{uuid.uuid4().hex}.tmp")
    try:
        _write(temporary, sources)
        try:
            temporary.rename(code.path)
        except OSError:
            if not code.path.is_dir():  # else another launcher was faster, with the same code
                raise
    except OSError as error:
        raise UserError(f"the code cannot be copied into {code.path.parent}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return code


def snapshot_environment(code: CodeSnapshot) -> dict[str, str]:
    """Return variables under which `python -m ser_hpc.train` runs the snapshot, in any folder, whatever is installed.

    Raises UserError if the run's path cannot stand in PYTHONPATH.
    """
    if os.pathsep in str(code.path):
        raise UserError(f"{code.path} has a {os.pathsep!r} in it, so jobs cannot import from there; choose another run.root")
    before = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", str(code.path))]
    # Without a safe path, `python -m` looks into the current folder first: the checkout.
    return {"PYTHONPATH": os.pathsep.join([str(code.path), *before]), "PYTHONSAFEPATH": "1", "SER_HPC_CODE": code.digest}


def leaves_marks(run: RunDir, digest: str | None) -> bool:
    """Tell whether the run's code of that digest reports its progress to the batch script: earlier versions' did not."""
    path = run.code / (digest or "")
    return digest is None or not path.is_dir() or any(path.rglob(Path(start_marks.__file__).name))


def trains_in_turn(run: RunDir, digest: str | None) -> bool:
    """Tell whether one process of the run's code of that digest can train several trials: not in earlier versions."""
    path = run.code / (digest or "")
    return digest is None or not path.is_dir() or any(path.rglob("frozen_encoder.py"))


def digests_used(run: RunDir, attempts: Iterable[TrainedAttempt] | None = None) -> dict[str, list[Trial]]:
    """Return the trials that each code has run, by its digest; the code that was started last comes first.

    An attempt that ended before its first step left nothing of its code in the run and does not count. `attempts`: the run's,
    if the caller has read them.
    """
    trials: dict[str, set[Trial]] = defaultdict(set)
    started: dict[str, float] = {}
    for trial, about in trained_attempts(run) if attempts is None else attempts:
        with suppress(KeyError, TypeError, ValueError):
            if (digest := about["code"]) is not None:
                started[digest] = max(float(about["started"]), started.get(digest, 0.0))
                trials[digest].add(trial)
    return {digest: sorted(trials[digest]) for digest in sorted(started, key=lambda digest: -started[digest])}


def choose_code(run: RunDir, policy: CodePolicy, queued: Mapping[str, Sequence[Trial]] | None = None) -> CodeSnapshot:
    """Choose the code for the trials that are about to be submitted: what is here, or (`saved`) what the run has used last.

    `queued`: trials that will yet be run, by the code that they were submitted with.

    Raises UserError if trials were run by other code than is here and the policy is `refuse`, or if the saved code
    is not there any more.
    """
    before = digests_used(run)
    for digest, trials in (queued or {}).items():
        before[digest] = sorted({*before.get(digest, []), *trials})
    others = {
        digest: by for digest, by in before.items() if _relevant_digest(run, digest) != _relevant_digest(run, present_digest())
    }
    if policy == "mixed" or not others:
        return take_snapshot(run)
    latest = next(iter(before))
    if policy == "saved":
        code = _code(run, latest)
        if not code.path.is_dir():
            raise UserError(f"the run's own code is not in {code.path} any more; --code mixed goes on with what is here")
        return _unedited(code)
    each = [f"  {digest}: {listed(by)}{_changed_since(run, digest)}" for digest, by in others.items()]
    raise UserError(
        f"trials of {run.path} were run by other code than is here now:\n" + "\n".join(each) + "\n"
        "Say which code shall run the rest:\n"
        f"  --code saved   the run's own ({latest})\n"
        "  --code mixed   the code that is here, on purpose; the report will name the trials of each\n"
        "or give another run.name, for a run of its own."
    )


def mixture_note(run: RunDir, attempts: Iterable[TrainedAttempt] | None = None) -> str | None:
    """Return a sentence for the report if the trials were run by more than one code, else None. `attempts`: the run's."""
    alike: dict[str, dict[str, list[Trial]]] = defaultdict(dict)
    for digest, trials in digests_used(run, attempts).items():
        alike[_relevant_digest(run, digest)][digest] = trials
    if len(alike) < 2:
        return None
    versions = {next(iter(each)): sorted({trial for trials in each.values() for trial in trials}) for each in alike.values()}
    origins = "; ".join(f"{digest}{_describe_origin(run, digest)} ran {listed(by, 20)}" for digest, by in versions.items())
    return f"The trials were run by {len(versions)} versions of the code, so they may differ for that reason: {origins}."


def _relevant_digest(run: RunDir, digest: str) -> str:
    """Hash those files of a code that can change a result; where the code is not kept, return the digest of all of them."""
    package = PACKAGE if digest == present_digest() else _code(run, digest).package
    if not package.is_dir():
        return digest
    return _digest({name: content for name, content in _sources(package).items() if _can_change_results(name)})


def _can_change_results(name: str) -> bool:
    return name in _PLANNING or not name.startswith(_CANNOT_CHANGE_RESULTS)


def _code(run: RunDir, digest: str) -> CodeSnapshot:
    return CodeSnapshot(run.code.resolve() / digest)


def _sources(package: Path) -> dict[str, bytes]:
    """Read every .py file of a package, by its path below it."""
    paths = [path for path in package.rglob("[!.]*.py") if path.is_file()]
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in paths}


def _digest(sources: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(sources.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _unedited(code: CodeSnapshot) -> CodeSnapshot:
    if _digest(_sources(code.package)) != code.digest:
        raise UserError(
            f"{code.path} has been edited, or damaged, since it was copied: delete it when no job runs from it any more "
            "(the present code is copied anew), or give another run.name"
        )
    return code


def _write(folder: Path, sources: dict[str, bytes]) -> None:
    configs = configs_folder()
    shipped = {f"_configs/{path.relative_to(configs).as_posix()}": path.read_bytes() for path in configs.rglob("*.yaml")}
    for name, content in (sources | shipped).items():
        path = folder / PACKAGE.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)  # not synced one by one, which takes seconds: the digest is checked whenever it is used again
    commit, difference = _git_state()
    if difference:
        (folder / "difference.patch").write_bytes(difference)
    write_json(
        folder / "origin.json",
        {
            "version": ser_hpc.__version__,
            "commit": commit,
            "modified": bool(difference) if commit else None,
            "versions": {"python": platform.python_version()} | versions(),
            "copied_at": time.time(),
        },
    )


def _git_state() -> tuple[str | None, bytes]:
    """Return the package's commit and the patch from there; None where it is not part of a git checkout."""
    # A virtual environment, or a run, may lie inside a checkout without being part of it.
    if _git(PACKAGE, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, b""
    root, commit = _git(PACKAGE, "rev-parse", "--show-toplevel"), _git(PACKAGE, "rev-parse", "HEAD")
    if root is None or commit is None:
        return None, b""
    top = Path(os.fsdecode(root.rstrip(b"\n")))
    plain = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    difference = _git(PACKAGE, "diff", *plain, "--no-relative", "HEAD", "--", "*.py") or b""
    unknown = _git(PACKAGE, "ls-files", "--others", "--full-name", "-z", "--", "*.py") or b""
    for name in filter(None, unknown.split(b"\0")):
        difference += _git(top, "diff", *plain, "--no-index", "--", os.devnull, os.fsdecode(name), differs=1) or b""
    return commit.decode().strip(), difference


def _git(folder: Path, *arguments: str, differs: int = 0) -> bytes | None:
    """Return what git prints; None where there is no git, or it fails. Takes no lock: somebody may be committing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode in (0, differs) else None


def _changed_since(run: RunDir, digest: str) -> str:
    """Name the files that differ between a snapshot and the present code."""
    package = _code(run, digest).package
    if not package.is_dir():
        return " (its code is not kept)"
    then, now = _sources(package), _sources(PACKAGE)
    changed = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    names = [f"{PACKAGE.name}/{name}" for name in changed if _can_change_results(name)]
    return f"; since then other: {listed(names)}"


def is_modified(origin: Mapping[str, Any]) -> bool:
    """Tell whether a snapshot's origin.json says that its code differs from its commit."""
    return bool(origin.get("modified", origin.get("differs")))  # as it was called before


def _describe_origin(run: RunDir, digest: str) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        origin: dict[str, Any] = read_json(_code(run, digest).path / "origin.json")
        if origin["commit"]:
            return f" (commit {origin['commit'][:10]}{', changed' if is_modified(origin) else ''})"
    return ""
