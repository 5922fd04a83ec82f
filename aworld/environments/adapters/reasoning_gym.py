"""Tasks of reasoning-gym, with its own generators and scorers.

    sums = reasoning_gym_environment("chain_sum", num_terms=2)
    problems = sums.problems("train", 128, seed=step)

Both splits are made without end from a seed. Which of the two a task stands in says a hash of its question, so no
question is ever in both, whatever the seeds; a question that comes again within a stream is left out. A problem holds
the place of its task in the generator and not the task, whose metadata need not be JSON: the scorer makes it again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import count
from typing import Any

from aworld.config.conf import TaskConfig
from aworld.core.exceptions import ConfigError
from aworld.core.extras import import_extra
from aworld.environments.environment import Environment, factory
from aworld.environments.problem import Problem, different, digest_of, split_by_hash
from aworld.environments.rubric import Part, Rubric, ScoredEpisode

reasoning_gym: Any = import_extra("reasoning_gym", "reasoning_gym_environment", "reasoning-gym>=0.1.20")

SIZE = 200
"""Tasks of one generator; the next ones come from the next generator. Most make a task when it is asked for, some make
all of them at once (2³¹ would take forever), and one refuses many."""

ENOUGH = 2000
"""Tasks in a row that bring no new question, after which a generator counts as exhausted."""

SYSTEM_PROMPT = (
    "Think about the problem, then give your final answer between <answer> and </answer>, and nothing else there."
)

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


@factory
def reasoning_gym_environment(
    dataset: str,
    *,
    name: str | None = None,
    test: float = 0.1,
    system_prompt: str | None = SYSTEM_PROMPT,
    conf: TaskConfig | dict[str, Any] | None = None,
    **options: Any,
) -> Environment:
    """The tasks of a dataset of reasoning-gym, scored by it.

    Args:
        dataset: Its name, such as `chain_sum`, or `composite` with `datasets=[…]`.
        name: Names the environment in the log; `reasoning-gym/<dataset>` when not given.
        test: Share of all questions that is held out.
        system_prompt: How the answer is to be given. Of the agent's answer, what stands between the last
            `<answer>` and `</answer>` is scored, or all of it where there are none.
        conf: Limits of an episode.
        options: What `reasoning_gym.create_dataset` takes besides, such as `min_terms=2`.

    Raises:
        ConfigError: There is no such dataset, or it has no such option.
    """
    tasks = _Tasks(dataset, options)
    if "size" in options:
        raise ConfigError("size is not for you to say: problems(n=…) makes as many tasks as are asked for.")
    tasks.of(0)  # refuses a wrong name or option now
    train, held_out = split_by_hash(tasks, test=test, key=_question)
    return Environment(
        name or f"reasoning-gym/{dataset}",
        train=train,
        test=held_out,
        rubric=Rubric(Part("score_answer", tasks.score)),
        system_prompt=system_prompt,
        conf=conf,
        key=_question,
    )


class _Tasks:
    """The generators of a dataset, one a seed."""

    def __init__(self, dataset: str, options: dict[str, Any]) -> None:
        self.dataset, self.options = dataset, options
        self.of = lru_cache(maxsize=256)(self._of)

    def _of(self, seed: int, size: int = SIZE) -> Any:
        try:
            return reasoning_gym.create_dataset(self.dataset, seed=seed, size=size, **self.options)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"reasoning_gym.create_dataset({self.dataset!r}) | {error}") from error

    def __call__(self, seed: int) -> Iterator[Problem]:
        """Tasks with different questions, until the generators bring no new ones."""
        return different(self._all(seed), partial(digest_of, key=_question), ENOUGH)

    def _all(self, seed: int) -> Iterator[Problem]:
        for number in count():
            generator_seed = random.Random(f"{seed}/{number}").getrandbits(31)
            tasks = self.of(generator_seed)
            for index in range(len(tasks)):
                task = tasks[index]
                place = {"dataset": self.dataset, "seed": generator_seed, "size": SIZE, "index": index}
                yield Problem(f"{self.dataset}-{generator_seed}-{index}", task["question"], task["answer"], place)

    def score(self, episode: ScoredEpisode) -> float:
        """What reasoning-gym gives for the answer."""
        place = episode.problem.data
        tasks = self.of(int(place["seed"]), int(place["size"]))
        answer = None if episode.answer is None else answer_in(episode.text)
        return float(tasks.score_answer(answer, tasks[int(place["index"])]))


def answer_in(text: str) -> str:
    """The answer that a text gives: what stands between the last `<answer>` and `</answer>`, else all of it."""
    answers = _ANSWER.findall(text)
    return (answers[-1] if answers else text).strip()


def _question(problem: Problem) -> Any:
    content = problem.input
    return " ".join(content.split()) if isinstance(content, str) else content
