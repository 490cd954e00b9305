"""The one owner of every file name of a sweep, which several processes on several nodes work on at a time.

RUNS/sweeps/<name>-<8 hex of what is searched>/      RUNS: run.root, where the run of each configuration is too
  sweep.json                   what is searched, and in what order of trials
  settings.yaml                all other settings, as each configuration has them
  configurations/0007.json     what was tried: the values, and the name of its run; written once, by whoever took the number
  configurations/0007.lock     held by the process that trains it
  configurations/0007.end      how it ended: done, pruned or failed, with its dev scores; none: it is not done yet
  journal                      Optuna's, where that searches; made to say what these files say
  table.json  table.md         all that was tried, the best first
  code/<12 hex>/  jobs/        as of a run: the code that its jobs run, and what was submitted

A number is taken under the sweep's lock, so none is taken twice; a lock goes with its process, however that ends, so what a
killed one has begun the next one finds and goes on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ser_hpc.core.atomic_io import UNREADABLE, file_lock, read_json, write_json, write_json_once
from ser_hpc.core.errors import UserError
from ser_hpc.run.run_dir import RunDir, Trial

State = Literal["done", "pruned", "failed"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One that is tried. `values`: of each setting that is searched, by its path."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """How a configuration ended. `run`: the name of its run, None where it could not be planned; `dev`: the dev UAR of each of
    its trials that is done; `seconds`: that its trials took, all together; `error`: of one that failed."""

    state: State
    run: str | None
    dev: Mapping[Trial, float]
    seconds: float = 0.0
    error: str | None = None

    @property
    def score(self) -> float | None:
        """Return the mean dev UAR of a configuration that is complete."""
        return sum(self.dev.values()) / len(self.dev) if self.state == "done" and self.dev else None


@dataclass(frozen=True, slots=True)
class SweepDir:
    """The folder of a sweep."""

    path: Path

    @property
    def sweep(self) -> Path:
        return self.path / "sweep.json"

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def table_json(self) -> Path:
        return self.path / "table.json"

    @property
    def table_md(self) -> Path:
        return self.path / "table.md"

    @property
    def runs(self) -> Path:
        """Return the folder of the runs."""
        return self.path.absolute().parents[1]

    @property
    def as_run(self) -> RunDir:
        """Return it as a run directory, of which only the code and the jobs are used."""
        return RunDir(self.path)

    def run(self, name: str) -> RunDir:
        return RunDir(self.runs / name)

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the sweep's lock: for taking a number, never while training."""
        self.path.mkdir(parents=True, exist_ok=True)
        with file_lock(self.path / ".lock") as descriptor:
            yield descriptor

    def read(self) -> dict[str, Any]:
        """Read what is searched. Raises UserError if this is no sweep."""
        try:
            return dict(read_json(self.sweep))
        except UNREADABLE as error:
            raise UserError(f"{self.path} is not the folder of a sweep ({error}); give the sweep's command again") from error

    def configurations(self) -> list[Configuration]:
        """List all that were taken, by number. Raises UserError for a file that is damaged."""
        found = []
        for path in sorted((self.path / "configurations").glob("*.json")):
            try:
                found.append(Configuration(int(path.stem), dict(read_json(path)["values"])))
            except UNREADABLE as error:
                raise UserError(f"{path} is damaged ({error}): delete it, and its values are tried again") from error
        return found

    def take(self, number: int, values: Mapping[str, Any]) -> Configuration:
        """Take a number. The caller holds the lock."""
        path = self._path(number, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not write_json_once(path, {"number": number, "values": dict(values)}):
            raise UserError(f"{path} is there already, though nobody else may take a number: does {self.path} have locks?")
        return Configuration(number, values)

    @contextmanager
    def training(self, configuration: Configuration) -> Iterator[bool]:
        """Be the one that trains it; yields False if another process is."""
        with ExitStack() as held:
            try:
                held.enter_context(file_lock(self._path(configuration.number, "lock"), wait=False))
            except BlockingIOError:
                yield False
                return
            yield True

    def is_trained(self, configuration: Configuration) -> bool:
        """Tell whether some process trains it now."""
        with self.training(configuration) as mine:
            return not mine

    def end(self, configuration: Configuration) -> End | None:
        """Read how it ended; None: it has not."""
        path = self._path(configuration.number, "end")
        try:
            found = read_json(path)
            dev = {Trial(seed, fold): float(uar) for seed, fold, uar in found["dev"]}
            return End(found["state"], found["run"], dev, float(found["seconds"]), found["error"])
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            raise UserError(f"{path} is damaged ({error}): delete it, and it is made again from the run") from error

    def write_end(self, configuration: Configuration, end: End) -> None:
        dev = [[trial.seed, trial.fold, uar] for trial, uar in sorted(end.dev.items())]
        content = {"state": end.state, "run": end.run, "dev": dev, "seconds": round(end.seconds, 1), "error": end.error}
        write_json(self._path(configuration.number, "end"), content)

    def forget_end(self, configuration: Configuration) -> None:
        """Have it tried again."""
        self._path(configuration.number, "end").unlink(missing_ok=True)

    def _path(self, number: int, ending: str) -> Path:
        return self.path / "configurations" / f"{number:04d}.{ending}"
