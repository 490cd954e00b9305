"""Put beside a run's score what it is to be held against: what is told without listening, what is confounded, how often the
same clips were scored; and say what that means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ser_hpc.core.errors import counted, listed
from ser_hpc.results import markdown, run_panel
from ser_hpc.results.confounding import Confounding, confounding_warning, find_confounding
from ser_hpc.results.cross_validation import CrossValidation
from ser_hpc.results.run_panel import Panel
from ser_hpc.results.score_ledger import FOLDER, ScoreLedger, enter_score
from ser_hpc.results.shortcut_panel import MAJORITY, TEXT, VOICE, Shortcut
from ser_hpc.run.run_dir import RunDir
from ser_hpc.run.shared_folder import SharedFolder

_CLEARLY = 0.05  # above chance, where there is no interval
_ROUNDING = 0.005  # of a share, as it is shown
_OF_SPEAKERS = 0.5  # the part of a shortcut's gain that its control has too, from which on it tells the speaker


@dataclass(frozen=True, slots=True)
class WithoutListening:
    """What stands beside a score. `panel`: None where there is none, for the `reason`; `chance`: 1 / classes."""

    panel: Panel | None
    reason: str | None
    confounding: Confounding | None
    ledger: ScoreLedger | None
    chance: float

    @property
    def telling(self) -> list[Shortcut]:
        """List the features that tell classes apart, the best first; not the long-term spectrum, which a voice makes too."""
        rows = [row for row in self.panel.rows if row.name not in (MAJORITY, VOICE)] if self.panel else []
        return sorted((row for row in rows if _tells(row, self.chance)), key=lambda row: -_or_nan(row.uar))

    @property
    def tells_speakers(self) -> bool:
        """Tell whether the best of them is known from who speaks, not from how: its control keeps most of what it gains."""
        best = self.telling[:1]
        return bool(best) and _gain(best[0].control, self.chance) > _OF_SPEAKERS * _gain(best[0].uar, self.chance)

    def meaning(self, uar: float | None = None) -> str:
        """Say in one sentence what the panel means for a score; `uar`: the run's, None while it has none."""
        if self.panel is None:
            return f"What could be scored without listening is not known: {self.reason}."
        if not self.telling:
            voice = next((row for row in self.panel.rows if row.name == VOICE and _tells(row, self.chance)), None)
            but = f" but the {VOICE} ({_score(voice)}), which voices make too," if voice else ""
            return f"Nothing{but} tells the classes apart without listening (chance is {self.chance:.3f})."
        best = self.telling[0]
        reached = f"Without listening, from the {best.name} alone, UAR {_score(best)} is reached"
        exchanged = f"{markdown.format_score(_or_nan(best.control))} with labels exchanged within each speaker"
        if self.tells_speakers:
            return (
                f"{reached}, and {exchanged} (chance is {self.chance:.3f}): it tells who speaks, not how, and folds over "
                "speakers cannot part emotion from person here."
            )
        score = "a score" if uar is None else f"the run's {markdown.format_score(uar)}"
        return f"{reached} ({exchanged}; chance is {self.chance:.3f}): {score} is to be held against that, not against chance."

    def short(self) -> str | None:
        """Say it for a terminal, in 80 columns; None where there is no panel."""
        if self.panel is None:
            return None
        if not self.telling:
            return f"Without listening: nothing above chance ({self.chance:.3f})."
        best = ", ".join(f"{row.name} {markdown.format_score(_or_nan(row.uar))}" for row in self.telling[:2])
        if self.tells_speakers:
            best = f"{self.telling[0].name} {markdown.format_score(_or_nan(self.telling[0].uar))}, by the speakers"
        return f"Without listening: {best}; chance {self.chance:.3f}."

    def warnings(self, uar: float | None) -> list[str]:
        """Return what belongs to the top of a report; `uar`: the run's pooled one, None while it has none."""
        found, of = [], self.confounding
        share = of.speaker_share if of else None
        if of and share is not None and (told := confounding_warning(share, of.class_share, "test clips")):
            found.append(told)
        if uar is not None and self.telling and _or_nan(self.telling[0].uar) >= uar > self.chance:
            best = self.telling[0]
            found.append(
                f"The pooled UAR, {markdown.format_score(uar)}, is not above what is reached without listening, from the "
                f"{best.name} alone: {markdown.format_score(_or_nan(best.uar))}."
            )
        return found

    def remarks(self) -> list[str]:
        """Say on what the panel is computed, what is confounded, and how often these clips were scored."""
        return [*self._about_panel(), *self._about_clips(), *([self.ledger.sentence()] if self.ledger else [])]

    def _about_panel(self) -> Sequence[str]:
        panel = self.panel
        if panel is None:
            return []
        part = [
            *([f"{panel.num_clips:,} of {counted(panel.all_clips, 'clip')}"] if panel.num_clips < panel.all_clips else []),
            *([f"{panel.num_folds} of {counted(panel.all_folds, 'fold')}"] if panel.num_folds < panel.all_folds else []),
        ]
        notes = []
        if panel.padded:
            notes.append(
                f"{panel.padded:,} of {counted(panel.num_clips, 'clip')} begin or end in more than 50 ms of digital zeros, "
                "which are left out of noise floor and edges."
            )
        if part:
            notes.append(f"The table is of {listed(part)}, spread evenly: the corpus is large.")
        if panel.damaged:
            notes.append(f"{counted(panel.damaged, 'clip')} could not be read, and took part without measurements.")
        if panel.same_text:
            alone = next(markdown.format_score(_or_nan(row.uar)) for row in panel.rows if row.name == TEXT)
            notes.append(
                f"{panel.same_text:,} of {counted(panel.num_tested, 'test clip')} say a text that training has too; from the "
                f"text alone, UAR {alone} is reached."
            )
        return notes

    def _about_clips(self) -> Sequence[str]:
        of = self.confounding
        if of is None:
            return []
        name, fold, train, test = of.prior_gap
        notes = [
            f"Class priors of training and test differ by {100 * abs(train - test):.0f} points at most: {name} in fold {fold}, "
            f"{train:.0%} of training and {test:.0%} of test clips."
            if abs(train - test) >= _ROUNDING
            else "Training and test parts have the same class priors."
        ]
        if of.speaker_share is not None:
            notes.append(
                f"{of.speaker_share:.0%} of the test clips are of their speaker's most frequent class; {of.class_share:.0%} "
                "are of the most frequent class of all."
            )
        return notes


def look_without_listening(
    run: RunDir, cv: CrossValidation, tell: Callable[[str], None], *, compute: bool = True
) -> WithoutListening:
    """Find or compute the panel, describe the clips, and enter a complete run's score into their ledger.

    `tell`: is told, in a sentence, what will take a while; `compute`: else only a panel that is there already is shown.
    """
    panel, reason = run_panel.find_panel(run, cv.plan, tell, compute=compute)
    first = {t.trial.fold: t.test for t in reversed(cv.trials)}  # every seed tests the same clips
    uar = cv.scores.uar.pooled if cv.scores else math.nan
    ledger = enter_run(run, cv.plan, None if math.isnan(uar) else uar)
    confounding = find_confounding(cv.plan, (p for test in first.values() for p in test))
    return WithoutListening(panel, reason, confounding, ledger, 1 / len(cv.classes))


def enter_run(run: RunDir, plan: Mapping[str, Any], uar: float | None) -> ScoreLedger | None:
    """Enter a run's pooled UAR into the ledger of its test clips, see `enter_score`."""
    return enter_score(SharedFolder.of(run, run_panel.first_shards(run), FOLDER), plan, uar)


def _tells(row: Shortcut, chance: float) -> bool:
    if row.uar is None:
        return False
    return row.interval.bounds[0] > chance if row.interval.bounds else row.uar > chance + _CLEARLY


def _gain(uar: float | None, chance: float) -> float:
    return (chance if uar is None else uar) - chance


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _score(row: Shortcut) -> str:
    return f"{markdown.format_score(_or_nan(row.uar))} {markdown.format_bounds(row.interval.bounds)}".rstrip()
