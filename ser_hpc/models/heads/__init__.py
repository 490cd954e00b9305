"""Turn a clip's frames into its logits: heads, one file each.

A new head is a file here, its settings in config/settings.py (`kind`, and its name in config/schema.py), and a line in
`classifier.build_classifier`; features of a frozen encoder are cached for the mean alone (engine/feature_cache.py).
"""
