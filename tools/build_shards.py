"""Pack a corpus into tar shards: `python tools/build_shards.py CORPUS ROOT OUT`, the same as `python -m ser_hpc.pack`."""

from ser_hpc import pack
from ser_hpc.core import cli

if __name__ == "__main__":
    cli.run_main(pack.main)
