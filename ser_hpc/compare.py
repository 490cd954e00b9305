"""Compare systems on the same test clips: `python -m ser_hpc.compare RUN_A RUN_B [RUN_OR_CSV ...]`

Systems are finished runs on the same folds, and tables of other tools' predictions for the same clips: CSV with the columns
utterance, truth, predicted, and seed where there are several. Shown for each pair: the difference of pooled UAR with its 95 %
interval, a sign-flip test over speakers (corrected by Holm where there are several pairs), and the smallest difference that
such a comparison would find; then each fold and seed, and each class.

exit codes:
  0   compared
  2   they cannot be: other clips, folds or classes, unfinished runs, a damaged table
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ser_hpc.core import cli
from ser_hpc.core.errors import UserError, listed
from ser_hpc.results.comparison import compare
from ser_hpc.results.comparison_latex import comparison_latex
from ser_hpc.results.comparison_screen import comparison_json, comparison_screen
from ser_hpc.results.intervals import mean_uar
from ser_hpc.results.systems import count_systems, read_systems
from ser_hpc.results.without_listening import enter_run
from ser_hpc.run.run_dir import RunDir


def main(argv: Sequence[str] | None = None) -> int:
    """Read, compare and show. Raises UserError where the systems cannot be compared."""
    parser = argparse.ArgumentParser("python -m ser_hpc.compare", description=__doc__, formatter_class=cli.Help)
    parser.add_argument("systems", nargs="+", type=Path, metavar="RUN_OR_CSV", help="run directories, or CSV files")
    parser.add_argument("--json", action="store_true", help="print the comparison for programs instead")
    parser.add_argument("--latex", action="store_true", help="print a LaTeX table for a paper instead; p is against the first")
    options = parser.parse_args(argv)
    if len(options.systems) < 2:
        raise UserError(f"one system alone, {listed(options.systems)}, cannot be compared; give two or more")
    systems = read_systems(options.systems)
    counts = count_systems(systems)
    for path, system, of in zip(options.systems, systems, counts, strict=True):
        if path.is_dir():  # what is shown here was scored, whether it has a report or not
            enter_run(RunDir(path), system.plan, float(mean_uar(of.confusions.sum(1))))
    differences = compare(counts)
    if options.json:
        print(json.dumps(comparison_json(systems, counts, differences), indent=1, ensure_ascii=False, allow_nan=False))
    elif options.latex:
        print(comparison_latex(systems, counts, differences))
    else:
        cli.make_console().print(comparison_screen(systems, counts, differences))
    return 0


if __name__ == "__main__":
    cli.run_main(main)
