"""What the imports of a small program cost, beside those of three packages: CPU of fresh processes, the median.

    python benchmarks/imports.py

The interpreter's own start is measured too and taken off both.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile

PROGRAMS = {
    "nothing": "pass",
    "reference": "import aiohttp, msgspec, pydantic",
    "aworld": "from aworld.agents.llm_agent import Agent; from aworld.runner import Runners",
}
PROCESSES = 15


def cpu(program: str, bytecode: str) -> float:
    """Milliseconds of CPU, user and system, of a fresh process that runs `program`. `bytecode` is a folder."""
    # With bytecode, as an installed package has it, also where the environment says that none is to be written.
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, env=variables)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def main() -> None:
    with tempfile.TemporaryDirectory() as bytecode:
        for program in PROGRAMS.values():
            cpu(program, bytecode)  # writes the bytecode
        # In turns, so that a busy moment of the machine hits all of them.
        samples = [{name: cpu(code, bytecode) for name, code in PROGRAMS.items()} for _ in range(PROCESSES)]
    median = {name: statistics.median(sample[name] for sample in samples) for name in PROGRAMS}
    for name, value in median.items():
        print(f"{name:10} {value:7.1f} ms")
    start, reference = median["nothing"], median["reference"]
    ratio = median["aworld"] / reference
    without_start = (median["aworld"] - start) / (reference - start)
    print(f"aworld / reference: {ratio:.2f}, without the interpreter's start {without_start:.2f}")


if __name__ == "__main__":
    main()
