"""CPU of the client process per model call: AWorld, a bare loop and other frameworks at the same work.

    python benchmarks/overhead.py [--peers bare,aworld,…] [--cases k4x1,k4x32,wide,k80,k80x32,stream,import]
                                  [--rounds 3] [--budget 1.5] [--json FILE]

A light local server (`model_server.py`) answers K tool calls and then a text. Each measurement is a fresh client
process (`measure.py`); frameworks run in environments of their own under `.venvs`, made when first asked for.
Rounds go over all peers in turn, so that a disturbed minute hits all alike; the table has the medians, and the ratio
to `bare` of the same run, which is what to compare between machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import CASES, DEFAULT_CASES
from peers import PEERS, QUIET

HERE = Path(__file__).parent
VENVS = HERE / ".venvs"
IMPORT = "import"
LIMIT = 900
"""Seconds after which a measurement is given up."""

Figures = dict[str, float]
Results = dict[str, dict[str, list[Figures]]]
"""Per case and peer, the figures of each round."""


def environment() -> dict[str, str]:
    """Quiet peers, loopback without proxies, and compiled modules kept, as an installed program has them."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE" and not k.lower().endswith("_proxy")}
    return kept | QUIET


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment; makes the environment when it is missing or its needs have changed."""
    needs = PEERS[name].requirements
    if not needs:
        return Path(sys.executable)
    folder = VENVS / name
    ready = folder / "requirements.txt"
    if not ready.exists() or ready.read_text().split() != list(needs):
        print(f"installing {name}: {', '.join(needs)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *needs], check=True)
        ready.write_text("\n".join(needs))
    return folder / "bin/python"


def versions_of(name: str) -> dict[str, str]:
    """What is installed of the packages that a peer asks for."""
    names = [need.split("[")[0] for need in PEERS[name].requirements] or [name, "aiohttp", "msgspec"]
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have[n] for n in sys.argv[1:] if n in have}))"
    )
    return json.loads(_output([str(python_of(name)), "-c", code, *names]))


@contextmanager
def server() -> Iterator[str]:
    """Run the model server; gives its base URL."""
    command = [sys.executable, str(HERE / "model_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.stdin.close()


def _output(command: list[str]) -> str:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def measured(name: str, case: str, base_url: str, budget: float) -> Figures:
    """Run one measurement in a fresh process.

    Raises:
        RuntimeError: It failed, or answers were wrong.
    """
    command = [str(python_of(name)), str(HERE / "measure.py"), name, case, base_url, str(budget)]
    figures: Figures = json.loads(_output(command).splitlines()[-1])
    if figures["wrong"]:
        raise RuntimeError(f"{name} {case}: {figures['wrong']} of {figures['tasks']} answers are wrong")
    return figures


def import_ms(name: str, statement: str) -> Figures:
    """CPU of a fresh interpreter that imports, less that of one that does not."""
    code = "{}\nimport time; print(time.process_time())"
    python = str(python_of(name))

    def cpu(text: str) -> float:
        return statistics.median(float(_output([python, "-c", code.format(text)]).split()[-1]) for _ in range(3))

    cpu(statement)  # compiles the modules and warms the disk cache
    return {"cpu_ms": max(0.0, 1000 * (cpu(statement) - cpu("")))}


def measure_all(names: list[str], cases: list[str], rounds: int, budget: float) -> Results:
    """All rounds of all cases; a failure is told and leaves a gap in the table."""
    results: Results = {case: {name: [] for name in names} for case in cases}
    with server() as base_url:
        for turn in range(rounds):
            for case in cases:
                for name in names:
                    try:
                        if case == IMPORT:
                            figures = import_ms(name, PEERS[name].imports)
                        else:
                            figures = measured(name, case, base_url, budget)
                    except (RuntimeError, ValueError, subprocess.SubprocessError) as error:
                        print(f"{name} {case}: {error}", file=sys.stderr)
                        continue
                    results[case][name].append(figures)
                    print(f"round {turn + 1} {case} {name}: {_short(figures)}", file=sys.stderr)
        if IMPORT in cases and "aworld" in names:
            results["import aworld"] = {"aworld": [import_ms("aworld", "import aworld") for _ in range(rounds)]}
    return results


def _short(figures: Figures) -> str:
    return ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())


def medians(results: Results) -> dict[str, dict[str, Figures]]:
    """Per case and peer, the median of each figure over the rounds."""
    return {
        case: {
            name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
            for name, rounds in peers.items()
            if rounds
        }
        for case, peers in results.items()
    }


def table(middle: dict[str, dict[str, Figures]], names: list[str]) -> str:
    """A Markdown table: CPU ms a model call (or import), times that of `bare`; for `wide` also wall and KB a task."""
    lines = [
        "| CPU ms per model call, per import (× bare) | " + " | ".join(middle) + " |",
        "|---|" + "---|" * len(middle),
    ]
    lines += [f"| {name} | " + " | ".join(_cell(middle[case], name) for case in middle) + " |" for name in names]
    return "\n".join(lines)


def _cell(peers: dict[str, Figures], name: str) -> str:
    if name not in peers:
        return "–"
    figures = peers[name]
    text = f"{figures['cpu_ms']:.3g}"
    if "bare" in peers and name != "bare":
        text += f" (×{figures['cpu_ms'] / peers['bare']['cpu_ms']:.1f})"
    if "kb_per_task" in figures:
        text += f", {figures['wall_s']:.1f} s, {figures['kb_per_task']:.0f} KB"
    return text


def _names(text: str, known: list[str]) -> list[str]:
    given = [name for name in text.split(",") if name]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not among {', '.join(known)}")
    return given


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=lambda text: _names(text, list(PEERS)), default=list(PEERS))
    parser.add_argument("--cases", type=lambda text: _names(text, [*CASES, IMPORT]), default=[*DEFAULT_CASES, IMPORT])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=1.5, help="CPU seconds of a measurement, about")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    for name in options.peers:
        python_of(name)
    results = measure_all(options.peers, options.cases, options.rounds, options.budget)
    middle = medians(results)
    print(table(middle, options.peers))
    if options.json:
        about: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "rounds": options.rounds}
        versions = {name: versions_of(name) for name in options.peers}
        report = {"about": about, "versions": versions, "medians": middle, "rounds": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
