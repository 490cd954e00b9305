"""Run a program given as text, with the arguments behind it: what `python -c` does, for a process that is started by module."""

import sys

if __name__ == "__main__":
    exec(compile(sys.argv.pop(1), "<program>", "exec"))
