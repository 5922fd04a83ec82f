"""An agent gets better, from nothing but its own recorded experience: no key, no network, no GPU, three minutes.

The small policy that comes with AWorld knows its tools, and not when to take which. In `parity` the right one depends
on whether a number is even, which nothing that it was made from shows; in `sums` its habit is the wrong one, and
rewards turn it round. It acts, its episodes are recorded and scored, and it is trained on them; before and after, it is
measured on held-out tasks. pass@k of the start says how much was there before: the share of tasks that one of k tries
solves (of `parity` most: whoever takes either tool is right every second time). Everything is kept below
`.aworld/demo`, which is made anew each time.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from aworld.agents.llm_agent import Agent
from aworld.core.trajectory import Trajectory
from aworld.environments import Environment
from aworld.environments.parity import parity
from aworld.environments.sums import sums
from aworld.runners.local import load
from aworld.training import AgentTrainer, curve
from aworld.training.result import Comparison, Evaluated, Evaluation, Stepped, TrainingEvent, TrainingResult
from aworld.trajectory import Query, open_store

FOLDER = Path(".aworld/demo")
SETTINGS: dict[str, dict[str, Any]] = {
    "parity": {
        "steps": 192, "target": 0.97, "groups": 48, "samples": 4, "learning_rate": 1e-3, "kl": 0.4, "seed": 1,
    },
    "sums": {"steps": 64},
}  # fmt: skip
"""`kl` keeps the policy from giving up an act before it knows what it is for: without it most runs of `parity` settle
on one tool for everything, and then there is nothing left to compare. When it finds the condition differs by the seed,
between 40 and 130 steps; `target` ends the run then."""
ABOUT = {
    "parity": "a condition in no habit: 'add' is right where the first number is even, else 'subtract'",
    "sums": "a habit to be turned round: the policy mostly takes the wrong tool for a word",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """A held-out task as the policy did it at some point of its training."""

    when: str
    record: Trajectory

    @property
    def acts(self) -> str:
        """The tool calls and what they returned, on one line."""
        messages = self.record.messages
        calls = [call for step in self.record.steps() for call in step.tool_calls]
        return " · ".join(f"{c.name}{c.arguments} → {messages[c.result].message.text}" for c in calls) or "no tool"


class Watch:
    """Shows training while it goes on: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("  training"),
            BarColumn(40),
            TextColumn("step {task.completed}/{task.total} · {task.fields[told]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.bar: TaskID = self.progress.add_task("training", total=steps, told="measuring the start")

    def told(self, event: TrainingEvent) -> None:
        """Show an event."""
        match event:
            case Stepped(report):
                told = f"{report.success:.0%} of {report.episodes} episodes right"
                self.progress.update(self.bar, completed=report.step, told=told)
            case Evaluated(found):
                self.console.print(f"  step {found.step:>2}: {evaluated(found)}", highlight=False)
            case _:
                pass


def evaluated(found: Evaluation) -> str:
    """An evaluation as a line."""
    low, high = found.interval
    return f"{found.mode:<7} {found.success:6.1%} of {found.tasks} held-out tasks (95 %: {low:.1%} to {high:.1%})"


def train(console: Console, environment: Environment) -> TrainingResult:
    """Evaluate, act, score, train, evaluate again."""
    problem = environment.problems("test", 1)[0]
    console.print(f"\n[bold]{environment.name}[/bold] · {ABOUT[environment.name]}\n  such as: {problem.input!r}\n")
    settings: dict[str, Any] = {**SETTINGS[environment.name], "evaluation_modes": ("sampled", "greedy")}
    watch = Watch(console, settings["steps"])
    trainer = AgentTrainer(
        agent=Agent(environment.name, model="embedded"),
        config=settings,
        train_dataset=environment,
        train_engine_name="embedded",
        run_path=FOLDER / environment.name,
        on_event=watch.told,
    )
    with watch.progress:
        return trainer.train()


async def scenes(result: TrainingResult) -> list[Scene]:
    """The same held-out task before, during and after training: one that was learnt, if there is one."""
    evaluations = result.of_mode("sampled")
    first, middle, last = evaluations[0], evaluations[1], evaluations[-1]
    learnt = [id for id in middle.outcomes if last.outcomes[id] and not first.outcomes[id]]
    task = max(learnt or middle.outcomes, key=lambda id: not middle.outcomes[id])  # rather one learnt late
    store = open_store(str(result.store))
    found: list[Scene] = []
    for when, evaluation in (("before", first), (f"step {middle.step}", middle), ("after", last)):
        recorded = await store.query(Query(prefix=f"evaluation-sampled-{evaluation.step}-"))
        id = next(each.id for each in recorded if (each.task_name or "").endswith(f"/{task}"))
        found.append(Scene(when, await load(id, store)))
    await store.close()
    return found


def tell(console: Console, result: TrainingResult) -> None:
    """The learning curve and three runs of one task."""
    console.print(Text(curve.terminal(result, min(72, console.width))))
    shown = asyncio.run(scenes(result))
    console.print(f"\n  One held-out task, sampled: {shown[0].record.messages[0].message.text!r}", highlight=False)
    for scene in shown:
        sign = Text("✓", "green") if scene.record.score == 1.0 else Text("✗", "red")
        console.print(Text.assemble(f"  {scene.when:<8} ", sign, f" {scene.acts} · says {scene.record.answer!r}"))
        console.print(Text(f"             {scene.record.id}", "dim"))


def conclude(console: Console, results: dict[str, TrainingResult], took: float) -> bool:
    """What changed, how sure that is, where everything lies. Returns whether every policy is better than it was."""
    table = Table(title="\nHeld-out tasks solved", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("environment", "", "before", "after", "gained", "lost", "p", "start", "CPU-s"):
        table.add_column(name, justify="left" if name in ("environment", "") else "right")
    for name, result in results.items():
        for row in result.comparisons:
            samples = SETTINGS[name].get("samples", 8)
            start = f"pass@{samples} {result.history[0].pass_at_k:.0%}" if row.mode == "sampled" else ""
            cpu = f"{result.cpu_seconds:.0f}" if row.mode == "sampled" else ""
            shares = (f"{row.before:.1%}", f"{row.after:.1%}", str(row.gained), str(row.lost), f"{row.p_value:.0e}")
            table.add_row(name, row.mode, *shares, start, cpu)
    console.print(table)
    console.print(f"\n{took:.0f} s in all. Policies, checkpoints, every episode and the curves are below {FOLDER}:")
    for name, result in results.items():
        path = FOLDER / name
        console.print(
            f"  {path}/curve.svg · policy/ · episodes.db ({sum(r.episodes for r in result.history)} episodes)"
        )
    console.print(
        "\nLook closer, and use the trained policy:\n"
        f"  .venv/bin/aworld trajectories list --store {FOLDER}/parity/episodes.db\n"
        f"  .venv/bin/aworld rollout aworld.environments.parity:parity --model {FOLDER}/parity --split test\n"
        f'  Agent("clerk", model="{FOLDER}/parity")\n',
        highlight=False,
    )
    return all(better(row) for result in results.values() for row in result.comparisons)


def better(row: Comparison) -> bool:
    """Whether a change is for the better, and not by chance."""
    return row.after > row.before and row.p_value < 0.001


def main() -> int:
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(
        "[bold]Agents that get better from their own record[/bold]: no key, no network, no GPU; two to three minutes."
    )
    shutil.rmtree(FOLDER, ignore_errors=True)
    began = time.monotonic()
    results: dict[str, TrainingResult] = {}
    for environment in (parity(), sums()):
        results[environment.name] = train(console, environment)
        tell(console, results[environment.name])
    if conclude(console, results, time.monotonic() - began):
        return 0
    console.print("A policy did not get better: that should not happen; please report it with the folder above.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
