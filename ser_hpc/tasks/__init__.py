"""What is learnt of a clip, as objects: without torch, ranks or files.

A task has a target for each clip of the index (targets.py: a class, a distribution over classes, numbers), and so the width
of its outputs, its scores, and the score that may choose the epoch. `task.build_tasks` makes them of the settings
(config/tasks.py) and the clips' columns. `emotion`, the classes of the label set, is one of them: it plans the folds and heads
the report. The losses by which they are learnt are in models/losses.py; predictions carry all tasks, and reports score them
from there.
"""
