"""Killed at any moment, at once or in parts, packing goes on to the very bytes of never having been killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ser_hpc.corpora.utterance import Utterance
from ser_hpc.shards.index import DATASET
from ser_hpc.shards.verify import verify
from ser_hpc.shards.write import pack

KILLS = 30
_CHANGES_THE_DISK = ("replace", "fsync", "unlink", "rmdir", "mkdir")


def pack_and_die(utterances: list[Utterance], out: Path, part: tuple[int, int], calls: int, seconds: float) -> None:
    """In a process of its own: SIGKILL before the n-th call that changes the disk, or after some seconds."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls -= 1
            if calls == 0:
                die()
            return function(*arguments, **options)

        return call

    for name in _CHANGES_THE_DISK:
        setattr(os, name, counted(getattr(os, name)))
    timer = threading.Timer(seconds, die)
    timer.daemon = True
    timer.start()
    pack(utterances, out, workers=1, part=part)


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Forked from a process that has imported everything and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ser_hpc.shards.write"])
    yield context


@pytest.fixture
def before_and_after(make_corpus: Callable) -> tuple[list[Utterance], list[Utterance]]:
    """A corpus as packed first, and as it is when the packer is killed.

    Clips have come, gone and changed; there are copies within a group, over groups and of old by new ones, and a silent one.
    """
    utterances = make_corpus(sessions=4, clips=4)
    soundfile.write(utterances[2].audio_path, np.zeros(8000, np.int16), 16_000)
    for copy, original in ((6, 1), (7, 5), (14, 0)):
        shutil.copy(utterances[original].audio_path, utterances[copy].audio_path)
        same = {"speaker": utterances[original].speaker, "emotion": utterances[original].emotion}
        utterances[copy] = replace(utterances[copy], **same)
    before = [replace(u, emotion="fear") if i == 4 else u for i, u in enumerate(utterances[:11]) if i not in (3, 7)]
    return before, utterances[1:]


def test_killed_anywhere_it_ends_in_the_same_bytes(
    tmp_path: Path, before_and_after: tuple[list[Utterance], list[Utterance]], tree: Callable, processes: ForkServerContext
) -> None:
    """Thirty kills, of packing anew and over an older state; dataset.json never stands over shards that are not its own."""
    before, after = before_and_after
    first, whole, afresh, out = (tmp_path / name for name in ("first", "whole", "afresh", "out"))
    pack(before, first, workers=1)
    pack(after, afresh, workers=1)
    shutil.copytree(first, whole)
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        for name in _CHANGES_THE_DISK:
            real = getattr(os, name)
            patch.setattr(os, name, lambda *a, real=real, **o: (calls.append(1), real(*a, **o))[1])
        began = time.monotonic()
        pack(after, whole, workers=1)
        took = time.monotonic() - began
    grown, anew, killed = tree(whole), tree(afresh), 0
    rng = np.random.default_rng(0)
    for kill in range(KILLS):
        shutil.rmtree(out, ignore_errors=True)
        if kill % 3:
            shutil.copytree(first, out)
        parts = 1 + kill % 3
        at_call, after_s = (int(rng.integers(1, len(calls) + 1)), 60.0) if kill % 2 else (0, float(rng.uniform(0, took)))
        order = rng.permutation(parts).tolist()
        process = processes.Process(target=pack_and_die, args=(after, out, (order[0], parts), at_call, after_s))
        process.start()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        assert not (out / DATASET).exists() or verify(out) == []
        for number in order if kill % 2 else reversed(order):
            pack(after, out, workers=1, part=(number, parts))
        assert tree(out) == (grown if kill % 3 else anew), f"kill {kill}: {parts} parts, call {at_call}, {after_s:.3f} s"
    assert killed > KILLS // 3  # the others came too late
