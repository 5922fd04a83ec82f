"""`aworld run | resume | fork | replay`: runs from the command line, recorded in the store."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import msgspec

from aworld.agents.llm_agent import Agent
from aworld.agents.references import find
from aworld.cmd.agent_options import MODEL, put_options, ready_agent, require
from aworld.cmd.swarm import is_file
from aworld.cmd.terminal import TerminalWatch, aside
from aworld.cmd.trajectories import STORE, STORE_HELP, resolve, short, store_option
from aworld.cmd.wording import counted, why
from aworld.config.conf import AgentConfig, RunConfig, TaskConfig
from aworld.core.agent.flow import Topology, Unit, readable
from aworld.core.event import MessageAdded
from aworld.core.exceptions import ConfigError
from aworld.core.output import (
    HandoffOutput,
    MessageOutput,
    ReasoningOutput,
    RetryOutput,
    RunFinished,
    TextOutput,
    ToolCallOutput,
    ToolResultOutput,
)
from aworld.core.task import Task, TaskResponse
from aworld.core.tool.base import Tool
from aworld.core.tool.func_to_tool import as_tools
from aworld.core.trajectory import Trajectory
from aworld.models.providers import in_process, named_model, recorded
from aworld.runner import Runners
from aworld.runners.local import load, store_of

WAITING = 3
"""Exit code of runs that ended well or wait for an answer, one of them at least."""


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `aworld`."""
    run = commands.add_parser("run", help="run an agent or a team on a question, or on many", description=_RUN)
    run.add_argument(
        "questions",
        nargs="*",
        metavar="[FILE.yaml] QUESTION",
        help="what to ask, and before it the file of an agent or team; several questions are run side by side",
    )
    run.add_argument("--file", metavar="PATH", help="read questions from a file, one a line; - for standard input")
    run.add_argument("--samples", type=int, default=1, metavar="N", help="run each question N times, as a group")
    run.add_argument("--concurrency", type=int, default=100, metavar="N", help="runs in flight at once (100)")
    run.add_argument("--id", help="id of the run, for a single question")
    add_agent(run)
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
    resume.set_defaults(run=_resume)

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
WHICH = "id of the run, a piece of it, or `last`"


def add_agent(parser: argparse.ArgumentParser) -> None:
    """Add the options that name or describe an agent to the parser of a command."""
    parser.add_argument("--agent", metavar="MODULE:OBJECT|FILE.yaml", help="a ready agent or team")
    parser.add_argument("--model", metavar="[PROVIDER:]NAME|FOLDER", help=MODEL)
    parser.add_argument("--base-url", metavar="URL", help="where the API lives")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--tool", action="append", default=[], metavar="MODULE:FUNCTION", help="a tool; repeatable")
    parser.add_argument("--mcp", metavar="FILE", help='a JSON file of {"mcpServers": {...}}, whose tools it gets')
    add_limits(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the limits of a run to the parser of a command."""
    parser.add_argument("--max-steps", type=int, metavar="N", help="most model calls of a run (100)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of a run")
    parser.add_argument("--max-cost", type=float, metavar="USD", help="most US dollars of a run")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="longest time of a run")


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


async def _run(args: argparse.Namespace) -> int:
    if args.agent is None and args.questions and is_file(args.questions[0]):
        args.agent = args.questions.pop(0)
    questions = [*args.questions, *_read_questions(args.file)]
    if not questions:
        raise ConfigError('Nothing to ask: give a QUESTION, such as aworld run "What is 17 * 23?", or --file.')
    require(args, 1, "samples", "concurrency")
    if args.id and (len(questions) > 1 or args.samples > 1):
        raise ConfigError("--id names one run; leave it out for several.")
    agent = agent_of(args)
    tasks = [
        Task(
            question,
            swarm=agent,
            conf=limits_of(args),
            id=args.id,
            group_id=group,
        )
        for question in questions
        for group in [uuid.uuid4().hex[:12] if args.samples > 1 else None]
        for _ in range(args.samples)
    ]
    conf = RunConfig(store=args.store, max_concurrency=args.concurrency)
    if len(tasks) == 1:
        return _report([await _stream(tasks[0], conf, quiet=args.json)], args)
    return _report(await _many(tasks, conf, quiet=args.json), args)


async def _resume(args: argparse.Namespace) -> int:
    record = await _load(args)
    open_ids = [question.id for question in record.open_questions()]
    if len(args.answer) > len(open_ids):
        answers, questions = counted(len(args.answer), "answer"), counted(len(open_ids), "open question")
        raise ConfigError(f"--answer: {answers} for {questions} of {record.id}.")
    answers = dict(zip(open_ids, args.answer))
    response = await Runners.resume(record, swarm=agent_of(args, record), store=args.store, answers=answers)
    return _report([response], args, show=True)


async def _fork(args: argparse.Namespace) -> int:
    record = await _load(args)
    limits: dict[str, Any] = {}
    if any(value is not None for value in (args.max_steps, args.max_tokens, args.max_cost, args.timeout)):
        limits["conf"] = limits_of(args)
    require(args, 1, "n")
    count: int = args.n
    responses = await Runners.fork(
        record, swarm=agent_of(args, record), at=args.at, n=count, store=args.store, observation=args.say, **limits
    )
    return _report(responses, args, show=True)


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
    ready = ready_agent(args, "base_url", "temperature", "system", "tool", "mcp")
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
    if args.mcp is None:  # what a server offers is known only when the run begins
        _refuse_missing_tools(record, tools)
    prompt = args.system or settings.get("system_prompt")
    return Agent(name, conf, system_prompt=prompt, tools=tools, mcp_config=args.mcp)


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
            f"Run {record.id} had the tools {', '.join(sorted(missing))}: give them with --tool MODULE:FUNCTION, or "
            "the whole agent with --agent MODULE:OBJECT (code is not in the record)."
        )


def limits_of(args: argparse.Namespace) -> TaskConfig:
    """The limits that the options give. Raises ConfigError."""
    names = ("max_steps", "max_tokens", "max_cost", "timeout")
    try:
        return TaskConfig(**{n: getattr(args, n) for n in names if getattr(args, n) is not None})
    except ConfigError as error:
        option = str(error.setting).replace("_", "-")
        raise ConfigError(f"--{option}: {str(error).partition(': ')[2].partition(': ')[2].lower()}") from error


def _read_questions(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--file {path!r}: {error.strerror}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


async def _stream(task: Task, conf: RunConfig, *, quiet: bool) -> TaskResponse:
    """Run one task and show it as it goes: the answer on standard output, all else on standard error."""
    if quiet:
        return (await Runners.run_task(task, conf))[task.id]
    if isinstance(task.agent, Topology):
        return await _stream_team(task, conf)
    wrote = False
    async for output in Runners.streamed_run_task(task, conf).stream_events():
        match output:
            case TextOutput():
                print(output.text, end="", flush=True)
                wrote = True
            case ReasoningOutput():
                aside(output.text, end="")
            case RetryOutput():
                aside(f"\n[retry in {output.wait:.1f} s: {output.error}]")
            case ToolCallOutput():
                aside(f"\n→ {output.call.name}({output.call.arguments})")
            case ToolResultOutput():
                aside(f"← {_short(output.result.content)}")
            case RunFinished():
                if wrote:
                    print()
                elif output.response.success:  # by code, which has no text on the way
                    print(readable(output.response.record.answer))
                return output.response
            case _:
                pass
    raise AssertionError("a stream ends with RunFinished")


async def _stream_team(task: Task, conf: RunConfig) -> TaskResponse:
    """The same for a team. Members talk at the same time, so what each says is shown when it is said."""
    async for output in Runners.streamed_run_task(task, conf).stream_events():
        match output:
            case MessageOutput() if output.message.text:
                aside(f"[{output.agent}] {output.message.text}")
            case ToolCallOutput():
                aside(f"[{output.agent}] → {output.call.name}({output.call.arguments})")
            case ToolResultOutput():
                aside(f"[{output.agent}] ← {_short(output.result.content)}")
            case HandoffOutput():
                aside(f"[{output.agent}] hands over to {output.to}")
            case RetryOutput():
                aside(f"[{output.agent}] retry in {output.wait:.1f} s: {output.error}")
            case RunFinished():
                if output.response.success:
                    print(readable(output.response.record.answer))
                return output.response
            case _:
                pass
    raise AssertionError("a stream ends with RunFinished")


async def _many(tasks: list[Task], conf: RunConfig, *, quiet: bool) -> list[TaskResponse]:
    """Run many tasks with a progress bar on standard error."""
    ended = failed = 0

    def done(response: TaskResponse) -> None:
        nonlocal ended, failed
        ended, failed = ended + 1, failed + (not response.success)
        watch.show(ended, f"{failed} not finished" if failed else "")

    with TerminalWatch(len(tasks), quiet=quiet) as watch:
        return list((await Runners.run_task(tasks, conf, on_done=done)).values())


def _report(responses: list[TaskResponse], args: argparse.Namespace, *, show: bool = False) -> int:
    if args.json:
        for response in responses:
            print(msgspec.json.encode(_summary(response)).decode())
    elif len(responses) == 1 and not show:
        _tell_end(responses[0], args)
    else:
        for response in responses:
            print(_line(response))
            _tell_open(response, args)
        good = f"{sum(response.success for response in responses)} of {len(responses)} finished; see them with: "
        one = f"see it with: aworld trajectories show {short(responses[0].id)}"
        aside(f"{one if len(responses) == 1 else good + 'aworld trajectories list'}{store_option(args.store)}")
    left = [response.status for response in responses if not response.success]
    return WAITING if left and all(status == "waiting" for status in left) else min(len(left), 1)


def _line(response: TaskResponse) -> str:
    """A run on a line as wide as the terminal: how it ended, what was asked, what came."""
    width = shutil.get_terminal_size((100, 0)).columns
    pieces = _short(question_of(response.record), 24), str(response.answer or why(response))
    outcome = _short(": ".join(filter(None, pieces)), max(20, width - len(short(response.id)) - 16))
    return f"{short(response.id)}  {response.status:<13} {outcome}".rstrip()


def question_of(record: Trajectory) -> str:
    """What was asked in a run, without what came before it."""
    messages = [event.message for event in record.own_events if isinstance(event, MessageAdded)]
    return next((message.text for message in messages if message is not None and message.role == "user"), "")


def _tell_end(response: TaskResponse, args: argparse.Namespace) -> None:
    if not response.success:
        print(": ".join(filter(None, ("aworld", response.status, why(response)))), file=sys.stderr)
        _tell_open(response, args)
    usage = response.usage
    tokens = f", {usage.input_tokens} + {usage.output_tokens} tokens" if usage.input_tokens is not None else ""
    aside(
        f"[{response.status} in {response.time_cost:.1f} s, {counted(len(response.record.calls), 'step')}{tokens}] "
        f"aworld trajectories show {short(response.id)}{store_option(args.store)}"
    )


def _tell_open(response: TaskResponse, args: argparse.Namespace) -> None:
    """What a run asks, and how it is answered."""
    for question in response.record.open_questions():
        print(f"aworld: it asks: {question.question}", file=sys.stderr)
    if response.status == "waiting":
        aside(f'Answer with: aworld answer {short(response.id)} "..."{store_option(args.store)}')


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
    }


def _short(content: Any, width: int = 200) -> str:
    text = content if isinstance(content, str) else str(content)
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
