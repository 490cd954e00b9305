"""Check, once per node at the start of a trial, that the node can do what the trial asks.

A node that cannot is named, with what to do, before hours are lost: a driver too old for this PyTorch (it would train on the
CPU without a word), a GPU that it has no code for or that has no bf16, a full disk. Without nvidia-smi it costs nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ser_hpc.core.errors import UserError

_SMI_S = 20
_QUERY = ("index", "name", "driver_version", "ecc.errors.uncorrected.volatile.total")
# The first driver series of each CUDA release; every minor release of it runs on these.
_FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
BF16_SINCE = (8, 0)  # and TF32


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver reports it. `ecc_errors`: uncorrected, since the driver was loaded; none where it does not count."""

    index: str
    name: str
    driver: str
    ecc_errors: int | None


def gpus(csv: str) -> list[Gpu]:
    """Parse what nvidia-smi printed (`--format=csv,noheader,nounits`); lines that are no GPU's are left out."""
    rows = [[word.strip() for word in line.split(",")] for line in csv.splitlines()]
    return [
        Gpu(index, name, driver, int(errors) if errors.isdecimal() else None)
        for index, name, driver, errors in (row for row in rows if len(row) == len(_QUERY))
    ]


def check(precision: str, run: Path, checkpoint_bytes: float) -> list[str]:
    """Return warnings, each a sentence; raises UserError for what cannot work here. Checkpoints are written below `run`."""
    node = socket.gethostname()
    seen = _seen() if torch.cuda.is_available() or shutil.which("nvidia-smi") else []
    problems = _unseen(seen, os.environ) if not torch.cuda.is_available() else _unable(precision)
    warnings = [
        f"GPU {gpu.index} ({gpu.name}) has counted {gpu.ecc_errors} uncorrected memory errors: if trials fail here, leave it "
        f"out (cluster.exclude={node})"
        for gpu in seen
        if gpu.ecc_errors
    ]
    free = shutil.disk_usage(run).free
    if free < checkpoint_bytes:
        needed = f"a checkpoint takes about {checkpoint_bytes / 1e9:.2f} GB"
        problems.append(f"{run} has {free / 1e9:.2f} GB free, and {needed}: make room there")
    if problems:
        raise UserError("\n".join(f"node {node}: {problem}" for problem in problems))
    return [f"node {node}: {warning}" for warning in warnings]


def _seen() -> list[Gpu]:
    """List the node's GPUs; none where nvidia-smi does not answer: then training itself will say what is wrong."""
    command = ("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits")
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return gpus(output.stdout) if output.returncode == 0 else []


def _unseen(seen: list[Gpu], env: Mapping[str, str]) -> list[str]:
    """Say why PyTorch sees none of the node's GPUs, unless that is meant (CUDA_VISIBLE_DEVICES is empty)."""
    if not seen or env.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return []
    names, cuda, driver = ", ".join(gpu.name for gpu in seen), torch.version.cuda, seen[0].driver
    there = f"PyTorch sees no GPU, although there is {names}"
    on_purpose = "to train on the CPU on purpose, set CUDA_VISIBLE_DEVICES to nothing"
    if cuda is None:
        return [f"{there}: this PyTorch {torch.__version__} is built for the CPU alone; install one for CUDA, or {on_purpose}"]
    first = _FIRST_DRIVER.get(int(cuda.split(".")[0]))
    if first is not None and int(driver.split(".")[0]) < first:
        return [
            f"{there}: its driver {driver} is older than series {first}, which this PyTorch (CUDA {cuda}) needs; "
            f"install PyTorch for an older CUDA (README, Versions), or {on_purpose}"
        ]
    return [f"{there} (driver {driver}, CUDA {cuda}): leave this node out and tell its administrators, or {on_purpose}"]


def _unable(precision: str) -> list[str]:
    """List GPUs that this PyTorch has no code for, or that lack the precision."""
    problems = []
    for number in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
        other = "ask for another kind (cluster.gpu_type)"
        if not runs_on(capability, torch.cuda.get_arch_list()):
            problems.append(
                f"{name} has compute capability {capability[0]}.{capability[1]}, for which this PyTorch {torch.__version__} "
                f"has no code: {other}, or install PyTorch for an older CUDA (README, Versions)"
            )
        elif precision == "bf16" and capability < BF16_SINCE:
            problems.append(f"{name} has no bf16: {other}, or train.precision=fp16 or fp32")
    return list(dict.fromkeys(problems))


def runs_on(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Tell whether code built for `architectures` (sm_90, compute_90 ...) runs on a GPU of this compute capability.

    Machine code (sm) runs on its own major version from its minor version on; the driver compiles the other (compute) for all
    that is newer.
    """
    for word in architectures:
        kind, _, number = word.partition("_")
        digits = "".join(filter(str.isdecimal, number))
        built = (int(digits[:-1]), int(digits[-1]))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False
