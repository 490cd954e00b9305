"""The project's own Slurm, for the tests that need a real one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_here


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_here.Cluster]:
    """One cluster for the session, started when first asked for."""
    if why := slurm_here.missing():
        pytest.skip(why)
    cluster = slurm_here.start(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the sockets in it, as one of pytest's own does not."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        yield Path(folder)


@pytest.fixture
def slurm(slurm_cluster: slurm_here.Cluster) -> Iterator[slurm_here.Cluster]:
    """The session's cluster, whole and idle again after each test, whatever that did to its jobs and nodes."""
    yield slurm_cluster
    slurm_cluster.rest()
