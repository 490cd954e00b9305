"""Define, read and check settings: defaults < cluster profile < file < command line; all mistakes are reported at once.

settings, cluster, transforms   what can be set, each with its meaning below it
heads, losses, tasks, adapters, trackers, protocols   what is chosen by its kind
choice, extensions              how: one of the package's, or module:Class from outside of it
load                            files and `key=value` to settings, and back
schema                          what of the settings names a run, in a form that outlives them

It knows nothing of the behaviour behind the settings.
"""
