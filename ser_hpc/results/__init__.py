"""Turn the predictions of a run's trials into its scores, with what must be known before believing them.

plan_checks           a report counts exactly what was planned
cross_validation      scores over folds and seeds; what is missing
task_scores           those of tasks beside the main one
intervals             confidence intervals with speakers as the sample
conditions, sanity    what trials were computed with, where it differed; scores that look too good
without_listening     what a score is to be held against, in words: run_panel (shortcut_panel: a regression on what can be told
                      without listening), confounding, score_ledger (how often these test clips were scored)
report_summary        headline, notes and names of scores that every format shares
report_json, report_markdown, report_terminal   one file a format

It knows nothing of how training works.
"""
