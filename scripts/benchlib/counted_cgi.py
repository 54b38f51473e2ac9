"""Runs a CGI program and appends the CPU seconds that it used to a file, one line per run.

python counted_cgi.py PROGRAM FILE
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys


def main(program: str, notes: str) -> int:
    """Runs the program and returns its exit code."""
    code = subprocess.call([program])
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(notes, "a", encoding="ascii") as file:
        file.write(f"{spent.ru_utime + spent.ru_stime:.6f}\n")
    return os.waitstatus_to_exitcode(code) if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
