"""Does a parser keep the rules on a real copy of its corpus? `python tools/check_corpus.py NAME ROOT`.

Every rule of the checklist is tried on the corpus in ROOT, which is only read; some rules need a second copy of the tree, made
of links in a temporary folder. Exit code 0: all are kept; 1: some are not, and what was found is named.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from rich.console import Console
from rich.text import Text

from ser_hpc.config.load import configs_folder
from ser_hpc.core import cli
from ser_hpc.core.errors import counted, listed
from ser_hpc.corpora import labels, parser_contract
from ser_hpc.corpora.parse_result import ParseResult, summarize_reasons
from ser_hpc.corpora.registry import FORMATS, PARSERS, get_parser

SHOWN = 12  # lines of warnings, and reasons


def main(argv: Sequence[str] | None = None) -> int:
    arguments = argparse.ArgumentParser(prog="python tools/check_corpus.py", description=__doc__, formatter_class=cli.Help)
    arguments.add_argument("name", metavar="NAME", help=f"how to read ROOT: {listed(list(PARSERS), 40)}, MODULE:FUNCTION")
    arguments.add_argument("root", metavar="ROOT", type=Path, help="the corpus as published (csv, jsonl: the table)")
    given = arguments.parse_args(argv)
    parse, screen = get_parser(given.name), cli.make_console(soft_wrap=True)
    label_sets = [labels.load_label_set(path) for path in sorted((configs_folder() / "labels").glob("*.yaml"))]
    kept = parser_contract.check_parser(parse, given.root, label_sets, published=given.name not in FORMATS)
    if not kept[parser_contract.READS]:
        _show_copy(parse(given.root), given.root, screen)
    for rule, problems in kept.items():
        screen.print(Text.assemble(("FAIL  ", "red") if problems else ("ok    ", "green"), rule))
        for problem in problems:
            screen.print(f"        {problem}")
    broken = sum(bool(problems) for problems in kept.values())
    more = "; the others need a copy that the parser reads" if kept[parser_contract.READS] else ""
    screen.print(f"\n{broken} of {len(kept)} rules are broken{more}" if broken else f"\nall {len(kept)} rules are kept")
    return 1 if broken else 0


def _show_copy(result: ParseResult, root: Path, screen: Console) -> None:
    """What the parser finds in this copy: counts, warnings, and what it skips."""
    clips = result.utterances
    speakers, emotions = Counter(clip.speaker for clip in clips), Counter(clip.emotion for clip in clips)
    screen.print(Text.assemble((clips[0].corpus, "bold"), f" in {root}"))
    screen.print(f"{counted(len(clips), 'clip')} of {counted(len(speakers), 'speaker')}; {_counts(emotions)}")
    for warning in result.warnings[:SHOWN]:
        screen.print(f"warning: {warning}")
    if len(result.warnings) > SHOWN:
        screen.print(f"and {counted(len(result.warnings) - SHOWN, 'more warning')}")
    screen.print(f"{len(result.skipped):,} skipped")
    for paragraph in summarize_reasons(result.skipped)[:SHOWN]:
        screen.print(indent(paragraph, "  "))
    screen.print()


def _counts(counts: Counter[str]) -> str:
    return listed([f"{name} {count:,}" for name, count in sorted(counts.items())], 24)


if __name__ == "__main__":
    cli.run_main(main)
