"""All that needs a GPU, in one call of at most nine minutes: what cannot run is named, what takes too long is ended.

    python tools/bench/gpu_all.py --out OUT                    tiny, on a CPU, where there is no GPU: a rehearsal
    python tools/bench/gpu_all.py --out OUT --after gpu.json   what an earlier call did not come to

OUT/gpu.json   everything that is known by now: written anew, whole, whenever a part has written something or has ended
OUT/gpu.log    what the parts print

Nothing is installed or fetched: beside torch, torchaudio, transformers, accelerate and what they bring, all is in the folder
that gpu_material.py makes. The clock starts with this process. gpu/parts.py says what is measured, and in which order:

checks                     exactness, layer by layer, and what else no CPU can tell
ours, C                    each family, one contender at a time, alone on the machine, with a profile of ours
resume, finetune           side by side: going on bit by bit; real speech and real weights to a UAR
ours with                  dropout, deterministic kernels, compiled, under ZeRO 1 to 3 on one rank, in fp32
memory, ranks              measured against stated; two ranks over NCCL, where there are two GPUs
C with dropout, A, E, C compiled
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1]))  # the package need not be installed

from gpu import parts  # noqa: E402
from gpu.call import Call, Part  # noqa: E402
from gpu.clock import Clock  # noqa: E402
from gpu.kept import Kept  # noqa: E402
from gpu.material import unpack_model, unpack_wheels  # noqa: E402
from gpu.summary import summarised, table  # noqa: E402

LIMIT_S = 540.0
END_S = 6.0  # to end what runs, and to clear up
ENV = {
    "HF_HUB_OFFLINE": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking whether there is a GPU spoils no fork
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # as training sets it before torch is imported; for all contenders
    "PYTHONUNBUFFERED": "1",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for everything, from the start of this process")
    parser.add_argument("--material", type=Path, default=HERE.parents[1] / "gpu_material", help="what gpu_material.py made")
    parser.add_argument("--parts", nargs="+", default=["*"], metavar="PATTERN", help="only these, as 'ours:*' resume")
    parser.add_argument(
        "--after", type=Path, metavar="JSON", help="an earlier call's, on such a GPU: what is done there is taken over"
    )
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="settings of ours, as budget_seconds=240")
    options = parser.parse_args()
    clock = Clock(options.limit - END_S)
    signal.signal(signal.SIGTERM, _stop)
    options.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="gpu_all-"))
    try:
        return measured(options, clock, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def measured(options: argparse.Namespace, clock: Clock, scratch: Path) -> int:
    brought = unpack_wheels(options.material / "wheels", scratch / "site")
    model = unpack_model(options.material / "model.zip", scratch / "model")
    shards = options.material / "shards"
    about = {"command": " ".join(sys.argv[1:]), "limit_s": options.limit, "brought": brought}
    kept = Kept(options.out / "gpu.json", about, summarised)
    paths = [str(HERE), str(HERE.parents[1]), *([str(scratch / "site")] if brought else [])]
    env = ENV | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    call = Call(kept, clock, scratch, options.out / "gpu.log", env, "gpu.preload")
    try:
        call.run([parts.MACHINE])
        machine = kept.result("machine")
        if machine is None:
            print(f"torch could not tell what machine this is: see {options.out / 'gpu.log'}")
            return 1
        drawn, there = scratch / "drawn", shards if shards.exists() else None
        given = parts.Given(machine["gpus"], machine.get("peak_tflops"), drawn, there, model, options.train)
        if options.after and (said := kept.adopt(options.after)):
            print(said, flush=True)
        call.start(parts.prepare(given))
        for group in parts.groups(given):
            call.run(wanted(group, options.parts))
    finally:
        call.end()
        print(table(kept.told["summary"]), flush=True)
    bad = [name for name, part in kept.told["parts"].items() if part["how"].startswith(("failed", "ended"))]
    print(f"{clock.passed():.0f} s in all; not as they should be: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


def wanted(group: Iterable[Part], patterns: list[str]) -> list[Part]:
    return [part for part in group if any(fnmatch.fnmatchcase(part.name, pattern) for pattern in patterns)]


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the parts' common parent ends by itself: nothing waits for that
