"""The parts of gpu_all.py's one call, and what starts, times and keeps them. Nothing that starts parts imports torch."""
