"""`aworld train`: train the policy of an agent on an environment, and measure it on held-out problems."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Any

from aworld.cmd.agent_options import policy_agent
from aworld.cmd.terminal import TerminalWatch
from aworld.cmd.wording import counted, helps_to_go_on
from aworld.core.exceptions import ConfigError

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from aworld.training.result import Evaluation, StepReport, TrainingEvent, TrainingResult

_EXAMPLE = "Example: aworld train aworld.environments.sums:sums --steps 30 --run-path runs/sums"
_ABOUT = (
    "Train a policy on an environment, or on a file of problems with a reward function. Every episode is recorded. "
    "Started again with the same --run-path, it goes on where it was cut off."
)
_SETTINGS: dict[str, tuple[type, str]] = {
    "steps": (int, "training steps (64)"),
    "groups": (int, "problems a step (24, or all that there are)"),
    "samples": (int, "episodes of each problem (8)"),
    "learning_rate": (float, "step size (3e-4)"),
    "seed": (int, "decides all that is random (0)"),
    "evaluate_every": (int, "steps between evaluations; 0: only before and after (10)"),
    "evaluation_tasks": (int, "held-out problems of an evaluation on the way (100)"),
    "final_tasks": (int, "held-out problems before and after (400)"),
    "target": (float, "stop at this share of held-out problems solved"),
    "patience": (int, "stop after so many evaluations without a better one"),
    "max_concurrency": (int, "episodes in flight at once (256)"),
}
"""The settings that have an option of their own; `--set` takes the others."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` to the parser of `aworld`."""
    parser = commands.add_parser("train", help="train a policy on an environment", description=_ABOUT, epilog=_EXAMPLE)
    parser.add_argument("data", metavar="MODULE:ENVIRONMENT|FILE", help="such as my_tasks:shop, or problems.jsonl")
    parser.add_argument(
        "--engine", default="embedded", metavar="NAME", help="what trains (embedded); see docs/trainers.md"
    )
    parser.add_argument("--agent", metavar="MODULE:OBJECT|FILE.yaml", help="a ready agent or team")
    parser.add_argument("--model", metavar="[PROVIDER:]NAME|FOLDER", help="or a plain agent of this model (embedded)")
    parser.add_argument("--test", metavar="MODULE:ENVIRONMENT|FILE", help="held-out problems from elsewhere")
    parser.add_argument("--reward", metavar="MODULE:FUNCTION", help="a function of the episode, in place of a rubric")
    parser.add_argument("--run-path", metavar="FOLDER", help="where all is written (a new one below .aworld/training)")
    parser.add_argument("--config", metavar="FILE.yaml", help="settings; the options below go before them")
    for name, (kind, help) in _SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=help)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting; repeatable"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, for scripts")
    parser.set_defaults(run=_train)


async def _train(args: argparse.Namespace) -> int:
    from aworld.training.trainer import AgentTrainer

    watch = _TrainingWatch(quiet=args.json)
    trainer = AgentTrainer(
        policy_agent(args, default="embedded"),
        _config(args),
        _found(args.reward, "a reward function") if args.reward else None,
        _data(args.data),
        _data(args.test) if args.test else None,
        args.engine,
        args.run_path,
        watch.told,
    )
    watch.steps = trainer.job.config.steps
    try:
        result = await trainer.train_async()
    except BaseException as error:
        if helps_to_go_on(error, done=watch.done):
            folder = [] if args.run_path else ["--run-path", str(trainer.job.run_path)]
            watch.say(f"go on: {shlex.join(['aworld', *sys.argv[1:], *folder])}")
        raise
    if args.json:
        import msgspec

        print(msgspec.json.encode(_figures(result)).decode())
    else:
        _tell(result)
    if result.advice is not None:
        watch.say(result.advice)
    return int(result.stopped == "nothing_to_learn" and result.history[-1].success != 1.0)


def _data(given: str) -> Any:
    """A file of problems, or the environment of a reference."""
    if ":" not in given:
        return given
    from aworld.environments.environment import Environment

    found = _found(given, "Environment")
    return found() if callable(found) and not isinstance(found, Environment) else found


def _found(reference: str, what: str) -> Any:
    from aworld.agents.references import find

    return find(reference, what)


def _config(args: argparse.Namespace) -> Any:
    from aworld.training.training_config import training_config

    settings: dict[str, Any] = training_config(args.config).model_dump(exclude_unset=True) if args.config else {}
    settings |= dict(_setting(each) for each in args.set)
    settings |= {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    return training_config(settings)


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--set {text}: give NAME=VALUE, such as clip=0.1.")
    return name.strip().replace("-", "_"), yaml.safe_load(value)


class _TrainingWatch(TerminalWatch):
    """Tells how training goes: every step on a terminal, a line every few seconds elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._reasons: set[str] = set()
        self.steps = 0
        self.done = 0
        """Steps that this process, or an earlier one in the same folder, has done."""

    def told(self, event: TrainingEvent) -> None:
        """Take an event of the run."""
        from aworld.training.result import Evaluated, Stepped, TrainingStarted

        match event:
            case TrainingStarted():
                self.done = event.step
                after = f", going on after step {event.step}" if event.step else ""
                self.say(f"training with {event.engine} in {event.run_path}{after}")
            case Evaluated():
                self.say(_evaluated(event.evaluation))
                self._why(event.evaluation.reason)
            case Stepped():
                self.done = event.report.step
                if self.console.is_terminal or self.is_due() or event.report.step == self.steps:
                    self.say(_stepped(event.report, self.steps))
                self._why(event.report.reason)
            case _:
                pass

    def _why(self, reason: str | None) -> None:
        """Why something is unknown: each reason once, whatever trajectory shows it."""
        what = reason.rpartition(" (trajectory ")[0] if reason else ""
        if reason and what not in self._reasons:
            self._reasons.add(what)
            self.say(f"  unknown, such as by {reason}")


def _stepped(report: StepReport, steps: int) -> str:
    success = "—" if report.success is None else f"{report.success:.1%}"
    parts = [f"step {report.step}/{steps}", f"{success} of {counted(report.episodes, 'episode')}"]
    if report.score is not None:
        parts.append(f"score {report.score:.3f}")
    parts.append(counted(report.samples, "sample"))
    parts += [f"{count} {name}" for name, count in report.dropped.items()]
    return " · ".join([*parts, f"{report.seconds:.1f} s"])


def _evaluated(each: Evaluation) -> str:
    low, high = each.interval
    known = "—" if each.success is None else f"{each.success:.1%} (95 %: {low:.1%}–{high:.1%})"
    unknown = f", {each.unknown} unknown" if each.unknown else ""
    parts = "".join(f" · {name} {mean:.3f}" for name, mean in each.parts.items()) if len(each.parts) > 1 else ""
    return f"step {each.step}: {each.mode} {known} of {each.tasks - each.unknown}{unknown}{parts}"


def _figures(result: TrainingResult) -> dict[str, Any]:
    import msgspec

    told = {
        name: getattr(result, name) for name in ("engine", "policy", "run_path", "store", "steps", "stopped", "advice")
    }
    spent = {"seconds": result.seconds, "cpu_seconds": result.cpu_seconds}
    return {**told, **spent, "comparisons": msgspec.to_builtins(result.comparisons)}


def _tell(result: TrainingResult) -> None:
    from aworld.training import curve

    if result.evaluations:
        print(curve.terminal(result, min(72, shutil.get_terminal_size().columns)))
    for each in result.comparisons:
        print(
            f"{each.mode}: {each.before:.1%} → {each.after:.1%} on held-out problems "
            f"({each.gained} gained, {each.lost} lost; p = {each.p_value:.1g}, McNemar"
            f"{f'; {each.unknown} unknown, left out' if each.unknown else ''})"
        )
    why = {
        "steps": "",
        "target": ", the target",
        "patience": ", as nothing got better",
        "nothing_to_learn": ", with nothing to learn from",
    }[result.stopped]
    print(f"{counted(result.steps, 'step')}{why} · {result.seconds:.0f} s · {result.cpu_seconds:.0f} CPU-seconds")
    print(f"policy:   {result.policy}")
    if result.store is not None:
        print(f"episodes: {result.store}")
    print(f"curve:    {result.run_path}/curve.svg")
    if result.stopped != "nothing_to_learn":
        print(f"use it:   Agent(model={result.run_path!r})")
