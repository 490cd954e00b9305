"""Turn the predictions of a run's trials into its scores, with what must be known before believing them.

plan_checks           a report counts exactly what was planned
metrics               scores and intervals, from confusion matrices
cross_validation      scores over folds and seeds; what is missing
conditions, sanity    what trials were computed with, where it differed; scores that look too good
report_summary        headline, notes and names of scores that every format shares
report_json, report_markdown, report_terminal   one file a format

It knows nothing of how training works.
"""
