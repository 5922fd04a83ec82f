"""A tiny policy with random weights, and environments that it can learn something in."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from aworld.core.tool.func_to_tool import tool
from aworld.environments import Environment, Problem, ScoredEpisode, Session

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}{{ '<|im_start|>assistant\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{%- endfor %}{{ '<|im_end|>\n' }}"
    "{%- elif message.role != 'system' %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]


def save_tiny(path: Path, seed: int = 0) -> Path:
    """Write a Qwen2 of some 60,000 random weights with a byte-level tokenizer, as `transformers` saves them."""
    torch: Any = importlib.import_module("torch")
    tokenizers: Any = importlib.import_module("tokenizers")
    transformers: Any = importlib.import_module("transformers")
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    raw.train_from_iterator(["say the letter again and again, and add the numbers"], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=1024, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class Echo(Session):
    """Answers everything that is said with one more request, twice."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.turns = 0

    async def respond(self, message: Any) -> str | None:
        """Ask again, once."""
        self.turns += 1
        return "Once more." if self.turns < 2 else None

    @tool
    def look(self) -> str:
        """Look around."""
        return "nothing"


def share_of_e(episode: ScoredEpisode) -> float:
    """How much of what the agent wrote in the whole episode is the letter `e`."""
    said = [n.message.text for n in episode.record.messages.values() if n.message.role == "assistant"]
    text = "".join(said)
    return text.count("e") / max(1, len(text))


def letters(n: int = 64) -> Environment:
    """Two turns in which the letter `e` pays."""
    asked = [Problem(f"letter-{i}", f"say the letter {i}") for i in range(n)]
    held = [Problem(f"held-{i}", f"say again {i}") for i in range(8)]
    return Environment("letters", train=asked, test=held, session=Echo, rubric=share_of_e)
