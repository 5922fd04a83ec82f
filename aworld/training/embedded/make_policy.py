"""Makes the packaged policy, from nothing but a seed: `python -m aworld.training.embedded.make_policy FOLDER`.

Dialogues of a demonstrator with bad habits (`demonstrations`), a byte-level BPE trained on them, and supervised
training from random weights. Only what the assistant says is learnt.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Sequenced
from tokenizers.trainers import BpeTrainer

from aworld.models.embedded.checkpoint import PACKAGED, Policy
from aworld.models.embedded.tokenizer import END, PolicyTokenizer
from aworld.models.embedded.transformer import PolicyConfig, Weights
from aworld.training.embedded.adam import Adam
from aworld.training.embedded.demonstrations import Demonstrator
from aworld.training.embedded.gradients import Batch, imitation, loss_and_gradients
from aworld.training.embedded.imitation import tokenised

SEED = 5
"""The packaged policy's."""
VOCABULARY = 400
STEPS = 1800
BATCH = 64
RATE = 3e-3
DECAY = 0.1
"""Keeps logits small, so that float32 rounds log-probabilities by less than 1e-4."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", END)
"""Tokens that no text has."""
MARKS = (
    "<tool_call>", "</tool_call>", '\n{"name": "', '", "arguments": {"', '": ', '": "', ', "', "}}\n", '"}}\n',
)  # fmt: skip
"""Tokens of the form of a call, which a text may have too: without them a call would have twice as many tokens."""
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts a text: words, single digits, signs, blanks."""
BEFORE_TOKENS = 4000
"""Dialogues that the tokenizer is trained on."""


def make_policy(seed: int = SEED, steps: int = STEPS, progress: Callable[[int, float], None] | None = None) -> Policy:
    """The policy; the same weights for the same seed on the same machine."""
    template = (PACKAGED / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = PolicyTokenizer(_trained_bpe(seed, template), template)
    config = PolicyConfig(vocab_size=tokenizer.size, eos_token_id=tokenizer.eos_token_id)
    weights = initial_weights(config, seed)
    optimiser, demonstrations = Adam(RATE, warm_up=50, decay=DECAY), iter(Demonstrator(seed))
    for step in range(steps):
        optimiser.rate = RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        rows = [tokenised(tokenizer, one) for one in islice(demonstrations, BATCH)]
        batch = Batch.of([ids for ids, _ in rows], [mask for _, mask in rows])
        loss, gradients, _ = loss_and_gradients(config, weights, batch, imitation())
        weights, _ = optimiser.step(weights, gradients)
        if progress is not None:
            progress(step, loss)
    return Policy(config, weights, tokenizer)


def initial_weights(config: PolicyConfig, seed: int = 0) -> Weights:
    """Random weights: normal with deviation 0.02, matrices by their input size, norms one, biases zero."""
    draw = np.random.default_rng(seed)
    weights: Weights = {}
    for name, shape in config.shapes().items():
        if len(shape) == 1:
            weights[name] = np.full(shape, 1.0 if "norm" in name else 0.0, np.float32)
        else:
            spread = 0.02 if "embed" in name or "lm_head" in name else (1.0 / shape[1]) ** 0.5 * 0.5
            weights[name] = (draw.standard_normal(shape) * spread).astype(np.float32)
    return weights


def _trained_bpe(seed: int, template: str) -> str:
    """A byte-level BPE as JSON, with the normaliser and the pieces of Qwen2: `transformers` sets those up for every
    model of that type, whatever the file says."""
    tokenizer: Any = Tokenizer(BPE())
    tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = Sequenced([Split(Regex(QWEN2), "isolated"), ByteLevel(False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(seed, template), trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKS])
    return tokenizer.to_str(pretty=True)


def _pieces(seed: int, template: str) -> Iterator[str]:
    """Rendered dialogues, cut at the tokens that are never part of another."""
    rendered = PolicyTokenizer(_bytes_only(), template)
    cut = re.compile("|".join(map(re.escape, sorted((*SPECIAL, *MARKS), key=len, reverse=True))))  # longest first
    for shown in islice(Demonstrator(seed), BEFORE_TOKENS):
        text = rendered.apply_chat_template(shown.messages, tools=shown.tools, add_generation_prompt=False)
        yield from filter(None, cut.split(text))


def _bytes_only() -> str:
    tokenizer: Any = Tokenizer(BPE())
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer.to_str()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the policy and save it."""
    parser = argparse.ArgumentParser(prog="python -m aworld.training.embedded.make_policy", description=__doc__)
    parser.add_argument("folder", type=Path, help="where it is saved; nothing else in it is touched")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps", type=int, default=STEPS, help="of supervised training")
    options = parser.parse_args(arguments)

    def progress(step: int, loss: float) -> None:
        if step % 50 == 0 or step == options.steps - 1:
            sys.stdout.write(f"step={step} loss={loss:.4f} cpu_seconds={time.process_time():.0f}\n")
            sys.stdout.flush()

    make_policy(options.seed, options.steps, progress).save(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
