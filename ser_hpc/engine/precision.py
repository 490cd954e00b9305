"""Choose this trial's precision, and set torch to it: `train.precision`, or what its run's first trial made of `auto`.

Every trial of a run computes alike, wherever it runs: where the hardware cannot, it is refused.
"""

from __future__ import annotations

import torch

from ser_hpc.config.settings import Settings
from ser_hpc.core.errors import UserError
from ser_hpc.engine.distributed.world import World, device_name
from ser_hpc.engine.fault.node_check import BF16_SINCE
from ser_hpc.run import chosen_precision
from ser_hpc.run.chosen_precision import AUTO, ChosenPrecision
from ser_hpc.run.run_dir import RunDir


def has_bf16(device: torch.device) -> bool:
    """Tell whether it is a GPU that computes in it. A CPU can, slowly: nothing to choose by itself."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_SINCE


def choose_precision(settings: Settings, run: RunDir, world: World) -> Settings:
    """Return the settings with a precision by name. All ranks call it, before anything is computed.

    Raises UserError on every rank if one's GPU lacks it.
    """
    able = world.min_over_ranks(int(has_bf16(world.device))) > 0
    requested, found = settings.train.precision, ChosenPrecision(settings.train.precision, False, "")
    if requested == AUTO:
        proposed = ChosenPrecision("bf16" if able else "fp32", able, device_name(world.device))
        mine = chosen_precision.fix_precision(run, proposed) if world.is_main else proposed
        half, tf32 = world.broadcast_numbers(int(mine.precision == "bf16"), int(mine.tf32))
        found = ChosenPrecision("bf16" if half else "fp32", bool(tf32), mine.device)
    if found.precision == "bf16" and not able and world.device.type == "cuda":
        raise UserError(_refusal(requested, found, world))
    if world.is_main:
        print(chosen_precision.precision_note(run, requested), flush=True)
    torch.set_float32_matmul_precision("high" if found.tf32 and able else "highest")
    train = settings.train.model_copy(update={"precision": found.precision})
    return settings.model_copy(update={"train": train})


def _refusal(requested: str, found: ChosenPrecision, world: World) -> str:
    here = "this GPU, or another rank's, has no bf16" if has_bf16(world.device) else f"{device_name(world.device)} has no bf16"
    other = "ask for another kind (cluster.gpu_type)"
    if requested != AUTO:
        return f"{here}: {other}, or train.precision=fp16 or fp32"
    return (
        f"{here}, in which this run computes since its first trial (on {found.device}): {other}, or give train.precision=fp32, "
        "which makes a run of its own"
    )
