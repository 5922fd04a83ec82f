"""`aworld run | resume | fork | replay`: runs from the command line, recorded in the store."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Coroutine
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from aworld.agents.llm_agent import Agent
from aworld.agents.references import find
from aworld.cmd.agent_options import MODEL, put_options, ready_agent, require
from aworld.cmd.run_view import RunView, short
from aworld.cmd.swarm import is_file
from aworld.cmd.terminal import TerminalWatch, aside
from aworld.cmd.trajectories import STORE, STORE_HELP, resolve, short_id, store_option
from aworld.cmd.wording import counted, helps_to_go_on, why
from aworld.config.conf import AgentConfig, RunConfig, TaskConfig
from aworld.core.agent.flow import Unit
from aworld.core.event import MessageAdded
from aworld.core.exceptions import ConfigError
from aworld.core.message import Usage
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import as_tools
from aworld.core.tool.wrappers import approval_required, asking
from aworld.core.trajectory import Trajectory
from aworld.models.providers import in_process, named_model, recorded
from aworld.runner import Runners
from aworld.runners.blocking import run_blocking
from aworld.runners.feed import RunStream
from aworld.runners.local import load, store_of
from aworld.runners.surroundings import check_environment

if TYPE_CHECKING:
    from aworld.sandbox import SandboxPool

WAITING = 3
"""Exit code of runs that ended well or wait for an answer, one of them at least."""
STOPPED = 130
"""Exit code after Ctrl-C."""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `aworld`."""
    run = commands.add_parser(
        "run", help="run an agent or a team on a question, or on many", description=_RUN, epilog=_EXAMPLE
    )
    run.add_argument(
        "questions",
        nargs="*",
        metavar="[FILE.yaml] QUESTION",
        help="what to ask, and before it the file of an agent or team; several questions are run side by side",
    )
    run.add_argument(
        "--file", metavar="PATH",
        help="read questions from a file, one a line (of .jsonl: a text, or id and input); - for standard input",
    )  # fmt: skip
    run.add_argument(
        "--run", metavar="NAME", dest="name",
        help="a name for these questions: the same command again goes on with them, and asks none twice",
    )  # fmt: skip
    run.add_argument("--samples", type=int, default=1, metavar="N", help="run each question N times, as a group")
    run.add_argument("--concurrency", type=int, default=100, metavar="N", help="runs in flight at once (100)")
    run.add_argument("--id", help="id of the run, for a single question")
    add_agent(run)
    add_budget(run)
    _add_common(run)
    run.set_defaults(run=_run)

    resume = commands.add_parser(
        "resume", help="go on with a run that waits, or whose process ended", description=_RESUME
    )
    resume.add_argument("id", metavar="ID", help=WHICH)
    resume.add_argument(
        "--answer",
        action="append",
        default=[],
        metavar="TEXT",
        help="answer an open question, the oldest first; repeatable",
    )
    add_agent(resume)
    _add_common(resume)
    resume.set_defaults(run=go_on)

    fork = commands.add_parser(
        "fork", help="go on from a step of a recorded run, in runs of their own", description=_FORK
    )
    fork.add_argument("id", metavar="ID", help=WHICH)
    fork.add_argument("--at", type=int, metavar="STEP", help="first step to take anew, from 0 (after the last)")
    fork.add_argument("-n", type=int, default=1, metavar="N", help="independent continuations (1)")
    fork.add_argument("--say", metavar="TEXT", help="something for the agent to hear first")
    add_agent(fork)
    _add_common(fork)
    fork.set_defaults(run=_fork)

    replay = commands.add_parser(
        "replay", help="run a recording again without models and tools, and compare", description=_REPLAY
    )
    replay.add_argument("id", metavar="ID", help=WHICH)
    _add_common(replay)
    replay.set_defaults(run=_replay)


_EXAMPLE = 'Examples: aworld run "What is 17 * 23?" --tool my_tools:multiply; aworld run --file questions.txt --json'
_RUN = (
    "Run an agent. The model comes from --model, or from LLM_PROVIDER, LLM_MODEL_NAME, LLM_API_KEY and LLM_BASE_URL "
    "(also read from .env). Every run is recorded: see `aworld trajectories`."
)

_RESUME = (
    "Go on with a run from its last event: one that waits for an answer, or whose process ended. Make sure that nobody "
    "is at work on it: a run that is `running` is taken over, also from a process that lives. Its agent is asked "
    "as recorded; tools are code, which the record does not hold: give them again with --tool, --mcp or --agent. With "
    "a run that has ended there is nothing to do."
)
_FORK = (
    "Go on from a step of a recorded run, once or several times, in runs of their own. What came before that step is "
    "shared with the first run, which stays as it is. Tools are given again, as for `aworld resume`."
)
_REPLAY = (
    "Run a recording again, with the recorded answers of models and tools in their place, and compare each event. Ends "
    "with 1 where they differ."
)
_SANDBOX = (
    "give it a shell, Python and files, in a sandbox with a copy of the folder (default: the working folder); see "
    "aworld diff and aworld apply"
)
CODER = (
    "You work on the files of a folder, in a sandbox without a network; the working folder is a copy of it. Look "
    "before you change something, change what you were asked to and nothing else, and run the tests if there are any."
)
"""The system prompt of an agent with a sandbox that was given none."""
WHICH = "id of the run, a piece of it, or `last`"


def add_agent(parser: argparse.ArgumentParser) -> None:
    """Add the options that name or describe an agent to the parser of a command."""
    parser.add_argument("--agent", metavar="MODULE:OBJECT|FILE.yaml", help="a ready agent or team")
    parser.add_argument("--deps", metavar="MODULE:FUNCTION", help="makes what the tools of that agent work with")
    parser.add_argument("--model", metavar="[PROVIDER:]NAME|FOLDER", help=MODEL)
    parser.add_argument("--base-url", metavar="URL", help="where the API lives")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--tool", action="append", default=[], metavar="MODULE:FUNCTION", help="a tool; repeatable")
    parser.add_argument("--sandbox", metavar="local[:FOLDER]", help=_SANDBOX)
    parser.add_argument(
        "--approve", metavar="TOOL[,TOOL]", help="tools that ask a person before each call, such as shell"
    )
    parser.add_argument("--mcp", metavar="FILE", help='a JSON file of {"mcpServers": {...}}, whose tools it gets')
    add_limits(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the limits of a run to the parser of a command."""
    parser.add_argument("--max-steps", type=int, metavar="N", help="most model calls of a run (100)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of a run")
    parser.add_argument("--max-cost", type=float, metavar="USD", help="most US dollars of a run")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="longest time of a run")


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add the limits of all runs together to the parser of a command."""
    parser.add_argument("--budget", type=float, metavar="USD", help="most US dollars of all runs together")
    parser.add_argument("--budget-tokens", type=int, metavar="N", help="most tokens of all runs together")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a run, for scripts")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the store of runs to the parser of a command."""
    parser.add_argument(
        "--store",
        default=os.environ.get("AWORLD_STORE") or STORE,
        metavar="URL",
        help=STORE_HELP,
    )


def _run(args: argparse.Namespace) -> int:
    if args.agent is None and args.questions and is_file(args.questions[0]):
        args.agent = args.questions.pop(0)
    questions = [*args.questions, *_read_questions(args.file)]
    if not questions:
        raise ConfigError('Nothing to ask: give a QUESTION, such as aworld run "What is 17 * 23?", or --file.')
    require(args, 1, "samples", "concurrency")
    if args.id and (len(questions) > 1 or args.samples > 1 or args.name):
        raise ConfigError("--id names one run; leave it out for several.")
    agent = agent_of(args)
    conf = RunConfig(
        store=args.store, max_concurrency=args.concurrency, max_cost=args.budget, max_tokens=args.budget_tokens
    )
    if args.name:
        if args.samples > 1:
            raise ConfigError("--run asks each question once; --samples N is for questions without a name.")
        return run_blocking(_named(questions, agent, conf, args))
    if any(not isinstance(question, str) for question in questions):
        raise ConfigError(f"--file {args.file}: questions with an id have a name together: --run NAME.")
    tasks = [
        Task(
            question,
            swarm=agent,
            conf=limits_of(args),
            id=args.id,
            group_id=group,
            deps=args.deps,
        )
        for question in questions
        for group in [uuid.uuid4().hex[:12] if args.samples > 1 else None]
        for _ in range(args.samples)
    ]
    if len(tasks) > 1:
        return _report(run_blocking(_many(tasks, conf, quiet=args.json)), args)

    async def begin() -> RunStream:
        return Runners.streamed_run_task(tasks[0], conf)

    return _shown(begin, agent, args)


async def _named(questions: list[Any], agent: Unit, conf: RunConfig, args: argparse.Namespace) -> int:
    with _Watch(len(questions), quiet=args.json) as watch:
        try:
            report = await Runners.run_many(
                questions,
                swarm=agent,
                run=args.name,
                run_conf=conf,
                conf=limits_of(args),
                on_done=watch.done,
                deps=args.deps,
            )
        except BaseException as error:
            if helps_to_go_on(error, done=watch.ended):
                watch.say("cut short; the same command goes on, and asks nothing twice")
            raise
        if report.recorded:
            watch.say(f"{report.recorded} of them had ended before")
    return _report(list(report.responses.values()), args, show=True, label=f"run={args.name}")


def _shown(begin: Callable[[], Coroutine[Any, Any, RunStream]], unit: Unit, args: argparse.Namespace) -> int:
    """Show one run as it goes, and how it ended."""
    view = RunView(unit, store_of(args.store), quiet=args.json)
    response = view.attend(begin)
    if view.suspended:
        going_on = f"aworld resume {short_id(response.id)}{again(args)}"
        print(f"aworld: stopped, and nothing is lost; go on with: {going_on}", file=sys.stderr)
        return STOPPED
    return _report([response], args)


def go_on(args: argparse.Namespace) -> int:
    """Go on with a run that waits, or whose process ended, and show it."""
    record = run_blocking(_load(args))
    check_environment(record)
    answers: list[str] = getattr(args, "answer", [])
    open_ids = [question.id for question in record.open_questions()]
    if len(answers) > len(open_ids):
        count, questions = counted(len(answers), "answer"), counted(len(open_ids), "open question")
        raise ConfigError(f"--answer: {count} for {questions} of {record.id}.")
    agent, store = agent_of(args, record), store_of(args.store)
    if record.finished is not None:
        if record.status != "finished":
            aside(
                f"it has ended: nothing is left to resume; go on with: aworld fork {short_id(record.id)}{again(args)}"
            )
        return _report([run_blocking(Runners.resume(record, swarm=agent, store=store))], args, show=True)
    said = dict(zip(open_ids, answers))
    options: dict[str, Any] = {"swarm": agent, "store": store, "answers": said, "deps": args.deps}
    return _shown(lambda: Runners.streamed_resume(record, **options), agent, args)


def _fork(args: argparse.Namespace) -> int:
    record = run_blocking(_load(args))
    check_environment(record)
    limits: dict[str, Any] = {}
    if any(value is not None for value in (args.max_steps, args.max_tokens, args.max_cost, args.timeout)):
        limits["conf"] = limits_of(args)
    require(args, 1, "n")
    agent, count = agent_of(args, record), int(args.n)
    options: dict[str, Any] = {"swarm": agent, "at": args.at, "store": store_of(args.store), **limits}
    options["deps"] = args.deps
    if count > 1:
        forks = Runners.fork(record, n=count, observation=args.say, **options)
        return _report(run_blocking(forks), args, show=True)

    async def begin() -> RunStream:
        task = await Runners.forked_task(record, **options)
        task.said = args.say
        return Runners.streamed_run_task(task, RunConfig(store=options["store"]))

    return _shown(begin, agent, args)


async def _replay(args: argparse.Namespace) -> int:
    report = await Runners.replay(await _load(args), store=args.store)
    difference = str(report.difference) if report.difference else None
    if args.json:
        print(msgspec.json.encode({"same": report.same, "steps": report.steps, "difference": difference}).decode())
    else:
        print(f"{counted(report.steps, 'step')} replayed: " + ("no difference" if report.same else f"{difference}"))
    return 0 if report.same else 1


async def _load(args: argparse.Namespace) -> Trajectory:
    store = store_of(args.store)
    return await load(await resolve(store, args.id), store)


def agent_of(args: argparse.Namespace, record: Trajectory | None = None) -> Unit:
    """The agent or team that is named, or the agent that the options describe, open ones being as recorded."""
    ready = ready_agent(args, *(option for option in DESCRIBING if option != "model"))
    if ready is not None:
        return ready
    if record is not None and len(record.agents) > 1:
        raise ConfigError(f"Run {record.id} was made by a team, {record.activations[0].agent!r}: name it with --agent.")
    settings: dict[str, Any] = {}
    name = "assistant"
    if record is not None and record.activations:
        name = record.activations[0].agent
        settings = record.agents.get(name, {})
        args.model = args.model or _own_policy(settings)
    named = named_model(args.model).llm_provider if args.model else None
    llm_config = recorded(settings.get("llm_config") or {}, base_url=args.base_url, provider=named)
    conf = put_options(args, AgentConfig(llm_config=llm_config))
    tools = [find(spec, "--tool") for spec in args.tool]
    if args.sandbox is not None:
        from aworld.tools.sandboxed import sandbox_tools

        tools += sandbox_tools(_sandbox(args.sandbox, record))
    if args.approve is not None:
        tools = approval_required(tools, args.approve.split(","))
    _refuse_missing_consent(record, settings, tools)
    if args.mcp is None:  # what a server offers is known only when the run begins
        _refuse_missing_tools(record, tools)
    prompt = args.system or settings.get("system_prompt") or (CODER if args.sandbox is not None else None)
    return Agent(name, conf, system_prompt=prompt, tools=tools, mcp_config=args.mcp)


DESCRIBING = ("model", "base_url", "temperature", "system", "tool", "mcp", "sandbox", "approve")
"""The options that describe an agent."""


def again(args: argparse.Namespace) -> str:
    """The options by which another command has the agent and the store of this one."""
    words: list[str] = []
    for option in ("agent", "deps", *DESCRIBING):
        value = getattr(args, option, None)
        values = cast("list[Any]", value) if isinstance(value, list) else [value]
        for text in values:
            words += [] if text is None else [f"--{option.replace('_', '-')}", shlex.quote(str(text))]
    return "".join(f" {word}" for word in words) + store_option(args.store)


def _sandbox(text: str, record: Trajectory | None) -> SandboxPool:
    """The sandboxes that an option names. Raises ConfigError, also for another folder than that of a record."""
    from aworld.sandbox import local

    kind, _, folder = text.partition(":")
    if kind != "local":
        raise ConfigError(f"--sandbox {text}: give local, or local:FOLDER; other kinds are for an agent of your own.")
    folders = {name for name, _ in record.artifacts} if record is not None else set[str]()
    if record is not None and folders and str(Path(folder or ".").expanduser().absolute()) not in folders:
        changed = ", ".join(folders)
        raise ConfigError(f"Run {record.id} has changed a copy of {changed}: give --sandbox local:{changed}.")
    return local(mount=folder or ".")


def _own_policy(settings: dict[str, Any]) -> str | None:
    """The model of a recorded agent, if it is a policy that answers in this process: what the environment says of
    models is not for it. Of a model object elsewhere the record does not tell the address."""
    model = None if "model_object" in settings else settings.get("model")
    return model if isinstance(model, str) and in_process(named_model(model).llm_provider or "") else None


def _refuse_missing_tools(record: Trajectory | None, tools: list[Any]) -> None:
    """A run that had tools would go on without them, and nobody would see that it is another agent."""
    if record is None:
        return
    had = {tool["name"] for tools in record.toolsets.values() for tool in tools}
    names = {tool.name for tool in as_tools(tools) if isinstance(tool, Tool)}
    if missing := had - names:
        raise ConfigError(
            f"Run {record.id} had the tools {', '.join(sorted(missing))}: give them with --tool MODULE:FUNCTION or "
            "--sandbox local, or the whole agent with --agent MODULE:OBJECT (code is not in the record)."
        )


def _refuse_missing_consent(record: Trajectory | None, settings: dict[str, Any], tools: list[Any]) -> None:
    """A tool that asked before it ran would run unasked."""
    lost = asking(settings.get("tools", ())) - asking(as_tools(tools))
    if record is not None and lost:
        names = ",".join(sorted(lost))
        raise ConfigError(
            f"Run {record.id} asks a person before {names}: give --approve {names}, or the whole agent with "
            "--agent MODULE:OBJECT."
        )


def limits_of(args: argparse.Namespace) -> TaskConfig:
    """The limits that the options give. Raises ConfigError."""
    names = ("max_steps", "max_tokens", "max_cost", "timeout")
    try:
        return TaskConfig(**{n: getattr(args, n) for n in names if getattr(args, n) is not None})
    except ConfigError as error:
        option = str(error.setting).replace("_", "-")
        raise ConfigError(f"--{option}: {str(error).partition(': ')[2].partition(': ')[2].lower()}") from error


def _read_questions(path: str | None) -> list[Any]:
    if path is None:
        return []
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--file {path!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--file {path!r} is not UTF-8 text: {error}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not path.endswith(".jsonl"):
        return lines
    questions: list[Any] = []
    for number, line in enumerate(lines, 1):
        try:
            questions.append(msgspec.json.decode(line))
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"--file {path!r}, line {number}: a line is a JSON text, or an object: {error}."
            ) from error
    return questions


async def _many(tasks: list[Task], conf: RunConfig, *, quiet: bool) -> list[TaskResponse]:
    """Run many tasks with a progress bar on standard error."""
    with _Watch(len(tasks), quiet=quiet) as watch:
        return list((await Runners.run_task(tasks, conf, on_done=watch.done)).values())


class _Watch(TerminalWatch):
    """Shows how far many runs are."""

    ended = failed = 0

    def done(self, response: TaskResponse) -> None:
        """One more has ended."""
        self.ended, self.failed = self.ended + 1, self.failed + (not response.success)
        self.show(self.ended, f"{self.failed} not finished" if self.failed else "")


def _report(
    responses: list[TaskResponse], args: argparse.Namespace, *, show: bool = False, label: str | None = None
) -> int:
    if args.json:
        for response in responses:
            print(msgspec.json.encode(_summary(response)).decode())
    elif len(responses) == 1 and not show:
        _tell_end(responses[0], args)
    else:
        for response in responses:
            print(_line(response))
            _tell_open(response, args)
        good = sum(response.success for response in responses)
        those = f" --label {shlex.quote(label)}" if label else ""
        together = spent(reduce(Usage.__add__, (response.usage for response in responses), Usage()))
        many = f"{good} of {len(responses)} finished{together}; see them with: aworld trajectories list{those}"
        one = f"see it with: aworld trajectories show {short_id(responses[0].id)}" if len(responses) == 1 else None
        aside(f"{one or many}{store_option(args.store)}")
    left = [response.status for response in responses if not response.success]
    return WAITING if left and all(status == "waiting" for status in left) else min(len(left), 1)


def _line(response: TaskResponse) -> str:
    """A run on a line as wide as the terminal: how it ended, what was asked, what came."""
    width = shutil.get_terminal_size((100, 0)).columns
    pieces = short(question_of(response.record), 24), str(response.answer or why(response))
    outcome = short(": ".join(filter(None, pieces)), max(20, width - len(short_id(response.id)) - 16))
    return f"{short_id(response.id)}  {response.status:<13} {outcome}".rstrip()


def question_of(record: Trajectory) -> str:
    """What was asked in a run, without what came before it."""
    messages = [event.message for event in record.own_events if isinstance(event, MessageAdded)]
    return next((message.text for message in messages if message is not None and message.role == "user"), "")


def _tell_end(response: TaskResponse, args: argparse.Namespace) -> None:
    if response.artifacts:
        id = f"{short_id(response.id)}{store_option(args.store)}"
        aside(f"[{counted(len(response.artifacts), 'changed file')}] aworld diff {id} · aworld apply {id}")
    if not response.success:
        print(": ".join(filter(None, ("aworld", response.status, why(response)))), file=sys.stderr)
        _tell_open(response, args)
    steps = counted(len(response.record.calls), "step")
    aside(
        f"[{response.status} in {response.time_cost:.1f} s, {steps}{spent(response.usage)}] "
        f"aworld trajectories show {short_id(response.id)}{store_option(args.store)}"
    )


def spent(usage: Usage) -> str:
    """Tokens and money, as far as they are known."""
    tokens = f", {usage.input_tokens} + {usage.output_tokens} tokens" if usage.input_tokens is not None else ""
    if tokens and usage.estimated:
        tokens += " (estimated)"
    return tokens + (f", ${usage.cost:.4f}" if usage.cost else ", $0" if usage.cost is not None else "")


def _tell_open(response: TaskResponse, args: argparse.Namespace) -> None:
    """What a run asks, and how it is answered."""
    for question in response.record.open_questions():
        print(f"aworld: it asks: {question.question}", file=sys.stderr)
    if response.status == "waiting":
        aside(f'Answer with: aworld answer {short_id(response.id)} "..."{store_option(args.store)}')


def _summary(response: TaskResponse) -> dict[str, Any]:
    return {
        "id": response.id,
        "trajectory_id": response.trajectory_id,
        "group_id": response.record.task.group_id,
        "status": response.status,
        "answer": response.record.answer,
        "error": response.error,
        "steps": len(response.record.calls),
        "usage": msgspec.to_builtins(response.usage),
        "time_cost": response.time_cost,
        "artifacts": [kept.name for kept in response.artifacts],
    }
