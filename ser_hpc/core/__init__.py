"""Tools that every room uses: errors that say what to do, atomic files, worker processes, exit codes.

errors        UserError and its kin: foreseeable mistakes, shown without a traceback
atomic_io     files written aside, synced, renamed; locks
process_pool  workers that cannot die unnoticed
cli           entry points: exit codes, screens, help
versions      of the packages that numbers depend on

It knows nothing of speech, corpora or training.
"""
