"""Run a module, or a program given as text, in a folder: what `python -m` and `python -c` do there, for a process forked warm.

The arguments are the folder ("": this one), the module, the text ("": the module is run), and what is given to either.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    folder, module, text = sys.argv[1:4]
    del sys.argv[1:4]
    if folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
    if text:
        exec(compile(text, "<program>", "exec"))
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
