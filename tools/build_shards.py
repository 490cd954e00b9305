"""Pack a corpus into tar shards: `python tools/build_shards.py CORPUS ROOT OUT`, the same as `python -m ser_hpc.pack`."""

from ser_hpc import console, pack

if __name__ == "__main__":
    console.run(pack.main)
