"""Write a run's model as a folder to ship: `python -m ser_hpc.export RUN OUT`

OUT holds config.json, model.safetensors, preprocessor_config.json and a model card, README.md: no code, no pickle. It is the
model of the trial with the best dev score, unless --fold (and --seed) name another one, or --ensemble takes all folds.

With --adapter OUT holds what a run with LoRA or QLoRA trained, without the encoder: adapter_config.json and
adapter_model.safetensors for peft.PeftModel.from_pretrained, and the heads.

`python -m ser_hpc.predict OUT ...` predicts with it, and so does transformers: pipeline("audio-classification", model=OUT),
after `import ser_hpc.inference.register` where the model is no class of transformers' own.

With --onnx OUT holds model.onnx, which onnxruntime runs without torch and without this package, model.json, which says what
goes in and comes out, and the model card (pip install 'ser_hpc[onnx]').
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ser_hpc.core import cli, cores
from ser_hpc.core.errors import UserError
from ser_hpc.run.run_dir import RunDir


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and say what. Raises UserError."""
    given = _arguments(argv)
    from ser_hpc.inference.export import export  # torch: not before the arguments are read
    from ser_hpc.inference.folder import is_transformers_own
    from ser_hpc.inference.trials import RunModels

    run = RunModels.open(RunDir(given.run))
    chosen = given.ensemble or given.fold is not None
    trials = run.choose(given.fold, given.seed) if chosen else [run.best(given.seed)]
    spec = export(run, trials, given.out, adapter=given.adapter, onnx=given.onnx)
    first = spec.members[0]
    which = (
        f"the {len(trials)} folds of seed {first.seed}, averaged"
        if given.ensemble
        else f"{trials[0]}, dev UAR {first.dev_uar:.3f}"
        + ("" if given.fold is not None else ": the best of the finished trials")
    )
    if given.adapter:
        print(f'{given.out}: {which}\nfor PEFT: PeftModel.from_pretrained(ENCODER, "{given.out}"); its heads are beside it')
        return 0
    print(f"{given.out}: {which}\n{_next(given.out, given.onnx, is_transformers_own(spec))}")
    return 0


def _next(out: Path, onnx: bool, own: bool) -> str:
    """Say what loads the folder."""
    if onnx:
        return f'for onnxruntime: InferenceSession("{out / "model.onnx"}"); README.md there shows how'
    needs = "" if own else ", after import ser_hpc.inference.register"
    return f'for transformers: pipeline("audio-classification", model="{out}"){needs}'


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m ser_hpc.export", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write; it must not be there yet")
    parser.add_argument("--fold", type=int, metavar="K", help="the model of this fold")
    parser.add_argument("--seed", type=int, metavar="S", help="of this seed (default: with --fold the first, else any)")
    parser.add_argument("--ensemble", action="store_true", help="all folds of a seed as one model: their mean")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--onnx", action="store_true", help="as model.onnx, for programs without torch")
    form.add_argument("--adapter", action="store_true", help="LoRA or QLoRA alone, as PEFT saves it, and the heads")
    given = parser.parse_args(argv)
    if given.ensemble and given.adapter:
        raise UserError("--adapter is of one trial: leave --ensemble out")
    if given.ensemble and given.fold is not None:
        raise UserError("--ensemble takes all folds: leave --fold out")
    return given


if __name__ == "__main__":
    cores.limit_threads(os.environ, cores.process_share(os.environ))  # before torch is imported
    cli.run_main(main)
