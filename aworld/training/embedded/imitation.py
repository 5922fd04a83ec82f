"""A cold start: the embedded policy is shown how, by dialogues of a script, a person or a stronger model.

What training on rewards cannot find, as no episode ever succeeds, can be shown: some hundred dialogues of how it is
done, and then `AgentTrainer` on what came of it. Only what the assistant says is learnt.

    records = [(await Runners.run(problem.input, agent=teacher)).record for problem in problems]
    imitate(pupil, (row for record in records for row in openai(record)), "runs/start")     # aworld.trajectory.formats
    pupil = Agent("pupil", model="runs/start")
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aworld.agents.llm_agent import Agent
from aworld.core.checks import typed
from aworld.core.exceptions import ConfigError
from aworld.models.embedded.tokenizer import PolicyTokenizer
from aworld.training.embedded.actor import Actor
from aworld.training.embedded.adam import Adam
from aworld.training.embedded.demonstrations import Demonstration
from aworld.training.embedded.gradients import Batch, imitation, loss_and_gradients
from aworld.training.embedded.learner import version_of


@typed()
def imitate(
    agent: Agent[Any, Any],
    dialogues: Iterable[Mapping[str, Any]],
    output: str | Path,
    *,
    epochs: int = 4,
    batch: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Make the policy of an agent likelier to say what dialogues say, and write it to a folder.

    Args:
        agent: Who asks the embedded policy; it is left as it is.
        dialogues: Rows of `messages` and `tools` in the shape of chat completions, as `aworld trajectories export
            --format openai` writes them. What an assistant says with `weight` 0 is read and not learnt.
        output: Folder for the policy that comes of it, which `Agent(model=output)` takes.
        epochs: Passes over the dialogues.
        batch: Dialogues of an update.
        seed: Of the order.

    Returns the mean loss of each pass, in nats a token. Raises ConfigError when nothing is left to learn.
    """
    policy = Actor(agent).policy
    shown = [Demonstration(list(row["messages"]), list(row.get("tools") or ())) for row in dialogues]
    rows = [(ids, mask) for ids, mask in (tokenised(policy.tokenizer, one) for one in shown) if 1 in mask]
    longest = max((len(ids) for ids, _ in rows), default=0)
    if not rows or longest > policy.config.max_position_embeddings:
        raise ConfigError(
            f"dialogues: {len(rows)} of {len(shown)} have an assistant to learn from, the longest of {longest} tokens; "
            f"give at least one, and none of more than {policy.config.max_position_embeddings} tokens."
        )
    weights, optimiser, draw, losses = policy.weights, Adam(learning_rate), random.Random(seed), list[float]()
    for _ in range(epochs):
        draw.shuffle(rows)
        parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        total = 0.0
        for part in parts:
            sequences = Batch.of([ids for ids, _ in part], [mask for _, mask in part])
            loss, gradients, _ = loss_and_gradients(policy.config, weights, sequences, imitation())
            weights, _ = optimiser.step(weights, gradients)
            total += loss / len(parts)
        losses.append(total)
    policy.with_weights(weights, version_of(weights, 0)).save(Path(output))
    return losses


def tokenised(tokenizer: PolicyTokenizer, shown: Demonstration) -> tuple[list[int], list[int]]:
    """Ids of a dialogue, and which of them the assistant says (`<|im_end|>` with them)."""
    ids: list[int] = []
    mask: list[int] = []
    text = ""
    for place, message in enumerate(shown.messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(shown.messages[:place], tools=shown.tools, add_generation_prompt=True)
        until = tokenizer.apply_chat_template(
            shown.messages[: place + 1], tools=shown.tools, add_generation_prompt=False
        ).rstrip("\n")
        learnt = int(message.get("weight") != 0)
        for piece, sampled in ((before[len(text) :], 0), (until[len(before) :], learnt)):
            encoded = tokenizer.encode(piece)
            ids += encoded
            mask += [sampled] * len(encoded)
        text = until
    return ids, mask
