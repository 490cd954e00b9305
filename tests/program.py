"""Run a module, or a program given as text, in a folder: what `python -m` and `python -c` do there, for a process forked warm.

The arguments are the folder ("": this one), the module, the text ("": the module is run), and what is given to either. The
environment is that of the variable SER_HPC_TESTS.
"""

import json
import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    environment = json.loads(os.environ["SER_HPC_TESTS"])
    os.environ.clear()
    os.environ.update(environment)
    folder, module, text = sys.argv[1:4]
    del sys.argv[1:4]
    if folder:
        os.chdir(folder)
    sys.path.remove(str(Path(__file__).parent))
    before = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd())
        sys.path[1:1] = before
    else:
        sys.path[:0] = before
    if text:
        exec(compile(text, "<program>", "exec"))
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
