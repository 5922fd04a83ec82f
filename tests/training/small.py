"""A policy so small that it is made at once: random weights, a token a byte. It learns to say a letter."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from aworld.agents.llm_agent import Agent
from aworld.environments import Environment, Part, Problem, Rubric, ScoredEpisode, Session
from aworld.environments.rubric import Scorer
from aworld.models.embedded.checkpoint import Policy
from aworld.models.embedded.embedded_model import EmbeddedModel
from aworld.models.embedded.tokenizer import END, PolicyTokenizer
from aworld.models.embedded.transformer import PolicyConfig
from aworld.training.embedded.make_policy import initial_weights

QUICK: dict[str, Any] = {
    "steps": 3,
    "groups": 2,
    "samples": 4,
    "learning_rate": 5e-3,
    "max_completion_tokens": 4,
    "evaluate_every": 0,
    "final_tasks": 4,
    "checkpoint_every": 1,
}
"""Settings of a run of a second."""


@lru_cache
def small_policy(seed: int = 0) -> Policy:
    bpe: Any = Tokenizer(BPE(vocab={letter: id for id, letter in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    bpe.pre_tokenizer = ByteLevel(False, use_regex=False)
    bpe.decoder = ByteLevelDecoder()
    bpe.add_special_tokens([AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", END)])
    bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<tool_call>", "</tool_call>")])
    template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
    tokenizer = PolicyTokenizer(bpe.to_str(), template)
    config = PolicyConfig(
        vocab_size=tokenizer.size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return Policy(config, initial_weights(config, seed), tokenizer)


def small_agent(name: str = "speaker", **settings: Any) -> Agent:
    return Agent(name, model=EmbeddedModel(small_policy(), params={"max_tokens": 4}), **settings)


def says_low(episode: ScoredEpisode) -> float:
    """Whether the first letter has an even code: half of what random weights say."""
    return float(bool(episode.text) and ord(episode.text[0]) % 2 == 0)


def always(_: ScoredEpisode) -> float:
    return 1.0


def never(_: ScoredEpisode) -> float:
    return 0.0


def letters(
    reward: Scorer = says_low, *, train: int = 8, test: int = 6, session: type[Session] | None = None
) -> Environment:
    """Problems of a few bytes; half of all first letters are right."""
    return Environment(
        "letters",
        train=[Problem(f"train-{n}", f"say {n}") for n in range(train)],
        test=[Problem(f"test-{n}", f"speak {n}") for n in range(test)],
        session=session,
        rubric=Rubric(Part("right", reward, inline=True)),
    )
