"""Make and pack the built-in demo corpus when it is first used."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from ser_hpc.core.atomic_io import file_lock
from ser_hpc.core.errors import counted
from ser_hpc.shards.index import DATASET


def make_demo_shards(shards: Path, out: Console) -> None:
    """Pack demo speech into `shards`, unless it is there."""
    shards.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(shards.parent / ".lock"):  # the tasks of an array may all arrive at once
        if (shards / DATASET).exists():
            return
        from ser_hpc.core import cores
        from ser_hpc.corpora import demo_speech
        from ser_hpc.shards.write import pack

        out.print("No data.shards given: making the built-in demo corpus (synthetic speech) ...")
        corpus = demo_speech.make_demo_corpus(shards.parent / "corpus")
        report = pack(corpus.utterances, shards, workers=cores.process_share(os.environ).cores)
        out.print(f"Packed {counted(report.clips, 'clip')}, {report.seconds / 60:.1f} minutes, into {shards}", soft_wrap=True)
