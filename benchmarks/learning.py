"""Does it learn, how fast, and what does the runtime cost? Three environments, five seeds, held-out problems.

    python benchmarks/learning.py [--seeds 5] [--controls 2] [--steps N] [--json FILE]

Each training is a process of its own, one after the other, with one BLAS thread. CPU seconds are of all its threads.
`training` is rollouts, samples and updates; evaluation is counted apart, and `process` is everything from the start of
the interpreter. Overhead is the share of `training` that is neither the model (its forward passes, sampling, template,
tokenizer) nor the update (gradients and Adam): agents, tools, log, store, rewards, samples. The control deals out the
rewards of each step at random; nothing may be learnt from it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = {"parity": 96, "sums": 64, "shop": 64}
"""Training steps of each environment, of 24 × 8 episodes. `parity` stays flat for some fifty."""
ENVIRONMENTS = tuple(STEPS)
RESULTS = Path(__file__).parent / "results" / "learning.json"
TARGETS = {
    "greedy before": ("below", 0.60),
    "greedy after": ("at least", 0.90),
    "sampled after": ("at least", 0.85),
    "training CPU seconds, parity": ("at most", 90.0),
    "training CPU seconds, sums": ("at most", 60.0),
    "training CPU seconds, shop": ("at most", 90.0),
    "overhead": ("at most", 0.15),
    "episodes a second": ("at least", 150.0),
    "log-probability difference": ("at most", 1e-4),
}


class Meter:
    """CPU seconds of the calling thread that some functions take. Nested ones are counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def watch(self, owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, self._metered(getattr(owner, name)))

    def watch_async(self, owner: Any, name: str) -> None:
        """The same for a coroutine function: what it takes between its waits."""
        function = getattr(owner, name)
        send = self._metered(lambda steps, value: steps.send(value))

        @types.coroutine
        def driven(steps: Any) -> Any:
            value = None
            try:
                while True:
                    value = yield send(steps, value)
            except StopIteration as done:
                return done.value
            finally:
                steps.close()

        async def metered(*args: Any, **kwargs: Any) -> Any:
            return await driven(function(*args, **kwargs))

        setattr(owner, name, metered)

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def metered(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, began = True, time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - began
                self._inside = False

        return metered


def one(environment: str, seed: int, steps: int, shuffled: bool) -> dict[str, Any]:
    """Train once in this process."""
    from aworld.agents.llm_agent import Agent
    from aworld.environments.parity import parity
    from aworld.environments.shop import shop
    from aworld.environments.sums import sums
    from aworld.models.embedded.decoding import DecodingEngine
    from aworld.models.embedded.embedded_model import EmbeddedModel
    from aworld.training import AgentTrainer
    from aworld.training.result import Stepped, TrainingEvent, TrainingStarted

    meter = Meter()
    meter.watch(DecodingEngine, "step")
    meter.watch_async(EmbeddedModel, "_answer")
    inference: list[float] = []
    begun = 0.0

    def told(event: TrainingEvent) -> None:
        nonlocal begun
        if isinstance(event, Stepped):
            inference.append(meter.seconds - begun)
        elif not isinstance(event, TrainingStarted) and getattr(event, "phase", "") == "rollouts":
            return
        begun = meter.seconds

    with tempfile.TemporaryDirectory() as folder:
        trainer = AgentTrainer(
            Agent("policy", model="embedded"),
            {"steps": steps, "seed": seed, "shuffle_rewards": shuffled, "logprob_tolerance": None},
            train_dataset={"parity": parity, "sums": sums, "shop": shop}[environment](),
            run_path=Path(folder, "run"),
            on_event=told,
        )
        result = trainer.train()
        stored = sum(file.stat().st_size for file in Path(folder, "run").glob("episodes.db*"))
    spent = {name: sum(r.cpu_seconds[name] for r in result.history) for name in ("rollouts", "samples", "update")}
    training = sum(spent.values())
    figures: dict[str, Any] = {
        "environment": environment,
        "seed": seed,
        "shuffled": shuffled,
        "steps": result.steps,
        "evaluations": [
            {"step": e.step, "mode": e.mode, "success": e.success, "low": e.interval[0], "high": e.interval[1],
             "tasks": e.tasks}
            for e in result.evaluations
        ],
        "pass@8 of the start": result.history[0].pass_at_k,
        "p_values": {each.mode: each.p_value for each in result.comparisons},
        "cpu_seconds": {
            **spent,
            "model": sum(inference),
            "training": training,
            "evaluation": sum(e.cpu_seconds for e in result.evaluations),
            "process": time.process_time(),
        },
        "overhead": 1 - (sum(inference) + spent["update"]) / training,
        "milliseconds of overhead an episode": 1000 * (training - sum(inference) - spent["update"])
        / sum(r.episodes for r in result.history),
        "episodes_per_second": statistics.median(r.statistics["episodes_per_second"] for r in result.history),
        "logprob_difference": max(r.statistics.get("logprob_difference", 0.0) for r in result.history),
        "logprob_beyond": int(sum(r.statistics.get("logprob_beyond", 0.0) for r in result.history)),
        "tokens": int(sum(r.statistics["tokens"] for r in result.history)),
        "drift": int(sum(r.statistics["drift"] for r in result.history)),
        "wall_seconds": result.seconds,
        "stored_bytes": stored,
    }  # fmt: skip
    for mode in ("greedy", "sampled"):
        found = result.of_mode(mode)
        figures[mode] = {"before": found[0].success, "after": found[-1].success}
    return figures


def started(environment: str, seed: int, steps: int, shuffled: bool) -> dict[str, Any]:
    """Train once in a process of its own."""
    command = [sys.executable, __file__, "--one", environment, str(seed), str(steps), str(int(shuffled))]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def checked(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each target with the worst figure of all seeds, and whether it is met."""
    honest = [run for run in runs if not run["shuffled"]]
    every: dict[str, list[float]] = {
        "greedy before": [run["greedy"]["before"] for run in honest],
        "greedy after": [run["greedy"]["after"] for run in honest],
        "sampled after": [run["sampled"]["after"] for run in honest],
        "overhead": [run["overhead"] for run in honest],
        "episodes a second": [run["episodes_per_second"] for run in honest],
        "log-probability difference": [run["logprob_difference"] for run in honest],
    }
    for name in ENVIRONMENTS:
        spent = [run["cpu_seconds"]["training"] for run in honest if run["environment"] == name]
        every[f"training CPU seconds, {name}"] = spent
    found: dict[str, dict[str, Any]] = {}
    for name, (sense, bound) in TARGETS.items():
        values = every[name]
        worst = min(values) if sense == "at least" else max(values)
        met = worst >= bound if sense == "at least" else worst < bound if sense == "below" else worst <= bound
        found[name] = {"target": f"{sense} {bound:g}", "worst": worst, "met": met}
    for name in ENVIRONMENTS:
        control = [run for run in runs if run["shuffled"] and run["environment"] == name]
        for mode in ("greedy", "sampled") if control else ():
            gain = max(run[mode]["after"] - run[mode]["before"] for run in control)
            what = "gains at most 0.1 (3 standard errors)"
            found[f"control, {name}, {mode}"] = {"target": what, "worst": gain, "met": gain <= 0.1}
    return found


def line(run: dict[str, Any]) -> str:
    spent = run["cpu_seconds"]
    return (
        f"{run['environment']:6} seed {run['seed']} {'shuffled' if run['shuffled'] else '        '} "
        f"sampled {run['sampled']['before']:.3f} → {run['sampled']['after']:.3f}  "
        f"(pass@8 of the start {run['pass@8 of the start']:.3f})  "
        f"greedy {run['greedy']['before']:.3f} → {run['greedy']['after']:.3f}  "
        f"CPU {spent['training']:5.1f} + {spent['evaluation']:.1f} s  overhead {run['overhead']:.1%} "
        f"({run['milliseconds of overhead an episode']:.2f} ms an episode)  "
        f"{run['episodes_per_second']:.0f} episodes/s  log-prob. {run['logprob_difference']:.0e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--controls", type=int, default=2, help="seeds with shuffled rewards")
    parser.add_argument("--steps", type=int, help="of each environment; by default its own")
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS, choices=ENVIRONMENTS)
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"where the figures go, such as {RESULTS}")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        environment, seed, steps, shuffled = args.one
        print(json.dumps(one(environment, int(seed), int(steps), shuffled == "1")))
        return
    runs: list[dict[str, Any]] = []
    for environment in args.environments:
        steps = STEPS[environment] if args.steps is None else args.steps
        for seed in [*range(args.seeds), *range(-args.controls, 0)]:
            runs.append(started(environment, seed if seed >= 0 else -seed - 1, steps, seed < 0))
            print(line(runs[-1]), flush=True)
    complete = set(args.environments) == set(ENVIRONMENTS) and args.seeds > 0
    targets = checked(runs) if complete else {}
    for name, each in targets.items():
        print(f"{'met   ' if each['met'] else 'MISSED'} {name}: {each['worst']:.4g} ({each['target']})")
    if args.json:
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()}
        found = {"machine": machine, "targets": targets, "runs": runs}
        args.json.parent.mkdir(exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
