"""What is in packed shards: `python tools/inspect_shards.py SHARDS`, the same as `python -m ser_hpc.inspect`."""

from ser_hpc import console, inspect

if __name__ == "__main__":
    console.run(inspect.main)
