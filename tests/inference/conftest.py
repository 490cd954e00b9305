"""What the tests of this folder share: runs that are trained once."""

from __future__ import annotations

from pathlib import Path

import pytest
from inference.made import train_all


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs of `made`, all trained."""
    return train_all(tmp_path_factory.mktemp("inference"))
