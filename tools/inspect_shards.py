"""What is in packed shards: `python tools/inspect_shards.py SHARDS`, the same as `python -m ser_hpc.inspect`."""

from ser_hpc import inspect
from ser_hpc.core import cli

if __name__ == "__main__":
    cli.run_main(inspect.main)
