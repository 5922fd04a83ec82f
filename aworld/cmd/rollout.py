"""`aworld rollout`: many episodes of an environment, with their rewards."""

from __future__ import annotations

import argparse
import shlex
import time
from typing import TYPE_CHECKING

from aworld.cmd.agent_options import MODEL, policy_agent, require
from aworld.cmd.terminal import TerminalWatch, console
from aworld.cmd.trajectories import store_option
from aworld.cmd.wording import counted, helps_to_go_on
from aworld.core.exceptions import ConfigError, LimitReached

if TYPE_CHECKING:  # the command line starts fast: what a command needs is imported when it runs
    from collections.abc import Callable

    from aworld.environments.environment import Environment
    from aworld.environments.problem import Problem
    from aworld.environments.report import Report, RolloutProgress

_EXAMPLE = "Example: aworld rollout aworld.environments.sums:sums --model embedded --tasks 20 --samples 4"
_ABOUT = (
    "Run an agent on the problems of an environment, several samples of each, and score them. Every episode is "
    "recorded. Started again with the same --run and --store, it does what is missing and no finished episode twice."
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `rollout` to the parser of `aworld`."""
    parser = commands.add_parser(
        "rollout", help="run an agent on many problems of an environment", description=_ABOUT, epilog=_EXAMPLE
    )
    parser.add_argument("environment", metavar="MODULE:ENVIRONMENT", help="such as my_tasks:shop")
    parser.add_argument("--agent", metavar="MODULE:OBJECT|FILE.yaml", help="a ready agent or team")
    parser.add_argument("--model", metavar="[PROVIDER:]NAME|FOLDER", help=f"or a plain agent that asks: {MODEL}")
    parser.add_argument("--base-url", metavar="URL", help="where the API of --model lives")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature for --model")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="train (default) or test")
    parser.add_argument("--tasks", type=int, metavar="N", help="problems (default: all of a list, 100 of a stream)")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="episodes of each problem (1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="chooses problems and seeds episodes (0)")
    parser.add_argument("--concurrency", type=int, default=128, metavar="N", help="episodes in flight at once (128)")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: all in this process)")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="for episodes whose surroundings fail (2)")
    parser.add_argument("--run", metavar="NAME", dest="name", help="name of the run, to go on with it later")
    from aworld.cmd.run import add_budget, add_limits, add_store

    add_limits(parser)
    add_budget(parser)
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, for scripts")
    parser.set_defaults(run=_rollout)


async def _rollout(args: argparse.Namespace) -> int:
    from aworld.config.conf import EngineName, RunConfig
    from aworld.environments.report import Report
    from aworld.environments.rollout import rollouts
    from aworld.runners.local import store_of

    require(args, 1, "tasks", "samples", "concurrency", "workers")
    require(args, 0, "retries")
    environment = _environment(args)
    agent = policy_agent(args, "base_url", "temperature")
    problems = _problems(environment, args)
    name = args.name or f"{environment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    store = store_of(args.store)
    engine = EngineName.LOCAL if args.workers is None else EngineName.PROCESSES
    conf = RunConfig(
        engine_name=engine, worker_num=args.workers or 1, store=store, max_concurrency=args.concurrency,
        max_cost=args.budget, max_tokens=args.budget_tokens,
    )  # fmt: skip
    report = Report(environment)
    began, ran, stopped = time.monotonic(), 0, None
    with TerminalWatch(len(problems) * args.samples, quiet=args.json) as watch:
        watch.say(
            f"run {name}: {counted(len(problems), 'problem')} × {args.samples} of {environment.name}, {args.split}"
        )
        episodes = rollouts(
            environment, agent, problems, samples=args.samples, seed=args.seed, conf=conf, run=name,
            retries=args.retries, labels={"split": args.split}, yield_finished=True,
            on_progress=lambda progress: watch.show(progress.done, _state(progress)),
        )  # fmt: skip
        try:
            async for rollout in episodes:
                report.add(rollout)
                ran += not rollout.recorded
        except LimitReached as reached:
            stopped = reached
            watch.say(_go_on(args, name))
        except BaseException as error:
            if helps_to_go_on(error, done=report.episodes):
                watch.say(_go_on(args, name))
            raise
        if report.episodes and not ran and stopped is None:
            watch.say(f"nothing was run: all {counted(report.episodes, 'episode')} were there")
    took = time.monotonic() - began
    if args.json:
        import msgspec

        figures = {"run": name, "store": args.store, "split": args.split, "seconds": took, **report.as_dict()}
        print(msgspec.json.encode(figures).decode())
    else:
        _tell(report, args, name, took)
    if stopped is not None:
        raise stopped
    return 1 if report.lost else 0


def _environment(args: argparse.Namespace) -> Environment:
    from aworld.cmd.env import environment_of
    from aworld.cmd.run import limits_of

    environment = environment_of(args.environment)
    environment.conf = environment.conf.model_copy(update=limits_of(args).model_dump(exclude_unset=True))
    return environment


def _problems(environment: Environment, args: argparse.Namespace) -> list[Problem]:
    source = environment.source(args.split)
    count = args.tasks or (100 if callable(source) else None)
    problems = environment.problems(args.split, count, args.seed, fewer=not args.tasks)
    if not problems:
        raise ConfigError(f"Environment {environment.name!r} has no problems in {args.split!r}; try the other --split.")
    return problems


def _state(progress: RolloutProgress) -> str:
    parts = [f"{progress.rate:.1f} episodes/s"]
    if progress.eta is not None:
        minutes, seconds = divmod(round(progress.eta), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    if progress.mean_score is not None:
        parts.append(f"score {progress.mean_score:.3f}")
    for count, what in ((progress.failed, "not finished"), (progress.retried, "retried"), (progress.lost, "lost")):
        if count:
            parts.append(f"{count} {what}")
    if progress.reason:
        parts.append(f"last: {progress.reason.splitlines()[0]:.120}")
    return " · ".join(parts)


def _tell(report: Report, args: argparse.Namespace, name: str, took: float) -> None:
    """The table of the rubric, what was solved, and where it is."""
    from rich.table import Table

    out = console()
    table = Table(
        "part", "rewards", "mean", "min", "max", "weight", "failed", title=f"{report.environment.name} · {args.split}"
    )
    for part in report.parts.values():
        values = ["–", "–", "–"] if part.mean is None else [f"{part.mean:.3f}", f"{part.low:g}", f"{part.high:g}"]
        table.add_row(part.name, str(part.count), *values, f"{part.weight:g}", str(part.failed) if part.failed else "")
    if report.parts:
        out.print(table)
    say: Callable[[str], None] = lambda text: out.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    for line in _figures(report, args, took):
        say(line)
    for part in report.parts.values():
        if part.error is not None:
            say(f"part {part.name}: {part.failed} failed, such as: {part.error}")
    for error, count in report.errors.most_common(3):
        say(f"{count} × {error}")
    option = store_option(args.store)
    run = shlex.quote(f"run={name}")
    say(f"stored in {args.store}, with the label {run}")
    say(f"see:    aworld trajectories list --label {run}{option}")
    say(f"export: aworld trajectories export --label {run}{option} --output {shlex.quote(f'{name}.jsonl')}")


def _figures(report: Report, args: argparse.Namespace, took: float) -> list[str]:
    from aworld.cmd.run import spent

    first = report.pass_at_1
    lines: list[str] = []
    if first is not None:
        size = f"{counted(report.problems, 'problem')} × {args.samples}"
        lines.append(f"pass@1  {first.value:.3f}  (95 %: {first.low:.3f}–{first.high:.3f}; {size})")
    for k in sorted({k for k in (2, 4, 8, 16, 32, 64, args.samples) if 1 < k <= args.samples}):
        value = report.pass_at(k)
        if value is not None:
            lines.append(f"pass@{k:<2} {value:.3f}")
    endings = ", ".join(f"{count} {status}" for status, count in report.statuses.most_common())
    lines.append(f"{counted(report.episodes, 'episode')} in {took:.1f} s: {endings}{spent(report.usage)}")
    if report.lost:
        lines.append(f"{report.lost} lost: their surroundings failed; the same command with --run tries them again")
    if report.unscored:
        lines.append(f"{report.unscored} of unknown success, as their scorer failed: not in pass@1")
    return lines


def _go_on(args: argparse.Namespace, name: str) -> str:
    return (
        f"cut short; go on with: aworld rollout {args.environment} ... --run {name}{store_option(args.store)} "
        "(the same agent, split, tasks, samples and seed)"
    )
