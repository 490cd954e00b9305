"""Turn a clip's frames into a task's outputs: heads and the poolings that they use, one file each.

A new head is a file here, its settings in config/heads.py, and a line in build.py; from outside the package it is one class
(docs/extending.md). Features of a frozen encoder are cached for means alone (engine/feature_cache.py).
"""
