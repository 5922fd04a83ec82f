"""SFT and DPO from stored trajectories, by TRL's `SFTTrainer` and `DPOTrainer`, on exact token ids.

Both take what was sampled, as it was sampled: rows of ids with a mask, never text that is tokenised again. What the
policy only read (prompts, tool results) is in no loss. Both block; from async code, run them in a thread.

    from aworld.trajectory import open_store
    from aworld.training.trl.offline import dpo, sft, stored

    sft(agent, stored("sqlite:///runs.db"), "better")           # imitates the episodes that scored 1 or more
    dpo(agent, stored("sqlite:///runs.db"), "better")           # prefers the better ones of each group
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from aworld.agents.llm_agent import Agent
from aworld.core.exceptions import ConfigError
from aworld.core.trajectory import Trajectory
from aworld.runners.local import store_of
from aworld.training.completions import pairs_of
from aworld.training.filters import apply
from aworld.training.samples import derive
from aworld.training.trl.trained_policy import TrainedPolicy, on_cpu, policy_of, trl_package
from aworld.trajectory.store import EVERYTHING, Query

if TYPE_CHECKING:

    class PreferenceTrainer:
        """What is used here of `trl.DPOTrainer`, which has no types and is not installed where types are checked."""

        def __init__(self, **arguments: Any) -> None: ...
        def train(self) -> Any:
            """Train."""


class OfflineResult(Struct, frozen=True, kw_only=True):
    """What came of training from stored trajectories."""

    policy: str
    """Folder of the trained policy; `Agent(model=...)` takes it."""
    rows: int
    """Sequences (SFT) or pairs (DPO) that were learnt from."""
    left_out: dict[str, int]
    """What was not, by the reason."""
    losses: tuple[float, ...]
    """As TRL logged them."""


def stored(store: Any, query: Query = EVERYTHING) -> Iterator[Trajectory]:
    """The trajectories of a store (or its address) that match, one in memory at a time."""
    for summary, events in store_of(store).scan(query):
        yield Trajectory.of(summary.id, events)


def solved(trajectory: Trajectory) -> bool:
    """Whether an episode is worth imitating: its score is 1 or more."""
    return trajectory.score is not None and trajectory.score >= 1.0


def sft(
    agent: Agent[Any, Any],
    trajectories: Iterable[Trajectory],
    output: str | Path,
    *,
    keep: Callable[[Trajectory], bool] = solved,
    options: Mapping[str, Any] | None = None,
) -> OfflineResult:
    """Imitate episodes: the log-probability of what was sampled in them goes up.

    Args:
        agent: Whose policy is trained; its name says whose tokens are learnt from.
        trajectories: Stored with token ids.
        output: Folder for the trained policy.
        keep: Which episodes are imitated.
        options: Settings of TRL's `SFTConfig`, such as `learning_rate` and `num_train_epochs`.

    Raises:
        ConfigError: The agent's policy is not on this machine, TRL is missing, or nothing is left to learn from.
    """
    trl, datasets = trl_package("trl"), trl_package("datasets")
    seen = list(trajectories)
    chosen = [trajectory for trajectory in seen if keep(trajectory)]
    derived = derive(chosen, agents=(agent.name,))
    samples, dropped = apply(derived.samples, ())
    _refuse_nothing(samples, len(seen), "kept by keep=...")
    rows = {
        "input_ids": [list(sample.tokens.ids) for sample in samples],
        "labels": [[id if m else -100 for id, m in zip(sample.tokens.ids, sample.tokens.mask)] for sample in samples],
    }
    with tempfile.TemporaryDirectory() as scratch:
        policy = policy_of(agent.model, Path(scratch, "start"))
        arguments = trl.SFTConfig(**_arguments(scratch, {"max_length": None, **(options or {})}))
        trainer: Any = trl.SFTTrainer(
            model=policy.module,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=policy.tokenizer,
        )
        losses = _train(trainer, policy, Path(output))
    not_kept = {"not kept": len(seen) - len(chosen)} if len(chosen) < len(seen) else {}
    return OfflineResult(policy=str(output), rows=len(samples), left_out={**not_kept, **dropped}, losses=losses)


def dpo(
    agent: Agent[Any, Any],
    trajectories: Iterable[Trajectory],
    output: str | Path,
    *,
    margin: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> OfflineResult:
    """Prefer the better episodes of each group (`group_id`) to the worse ones (Rafailov et al. 2023).

    Args:
        agent: Whose policy is trained, and is the reference too.
        trajectories: Stored with token ids, several of a group.
        output: Folder for the trained policy.
        margin: Scores of a pair differ by more than this.
        options: Settings of TRL's `DPOConfig`, such as `beta` and `learning_rate`.

    Raises:
        ConfigError: As of `sft`.
    """
    trl, datasets = trl_package("trl"), trl_package("datasets")
    seen = list(trajectories)
    matched = pairs_of(derive(seen, agents=(agent.name,)).samples, margin=margin)
    _refuse_nothing(matched.pairs, len(seen), "of one group with different scores")
    fields = ("prompt_ids", "chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask")
    rows = {name: [getattr(pair, name) for pair in matched.pairs] for name in fields}
    with tempfile.TemporaryDirectory() as scratch:
        policy = policy_of(agent.model, Path(scratch, "start"))
        settings = {"max_length": None, "remove_unused_columns": False, **(options or {})}
        trainer = _pair_trainer()(
            model=policy.module,
            ref_model=copy.deepcopy(policy.module),
            args=trl.DPOConfig(**_arguments(scratch, settings)),
            data_collator=PairCollator(int(policy.tokenizer.pad_token_id)),
            train_dataset=datasets.Dataset.from_dict(rows),
            processing_class=policy.tokenizer,
        )
        losses = _train(trainer, policy, Path(output))
    left_out = {**matched.dropped, "undecided groups": matched.undecided, "other prompts": matched.other_prompts}
    return OfflineResult(
        policy=str(output), rows=len(matched.pairs), left_out={k: v for k, v in left_out.items() if v}, losses=losses
    )


class PairCollator:
    """Pairs side by side for TRL's DPO loss: the chosen ones first, then the rejected. Only sampled tokens count."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, pairs: list[dict[str, list[int]]]) -> dict[str, Any]:
        """The tensors `input_ids`, `attention_mask` and `completion_mask`, of twice as many rows as there are pairs."""
        torch = trl_package("torch")
        ids = [pair["prompt_ids"] + pair[f"{side}_ids"] for side in ("chosen", "rejected") for pair in pairs]
        masks = [[0] * len(pair["prompt_ids"]) + pair[f"{s}_mask"] for s in ("chosen", "rejected") for pair in pairs]
        width = max(map(len, ids))
        return {
            "input_ids": torch.tensor([row + [self.pad_id] * (width - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
            "completion_mask": torch.tensor([mask + [0] * (width - len(mask)) for mask in masks]),
        }


def _pair_trainer() -> type[PreferenceTrainer]:
    """TRL's `DPOTrainer` for data that is token ids already: it would tokenise text."""
    base: type[PreferenceTrainer] = trl_package("trl").DPOTrainer

    class PairTrainer(base):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return PairTrainer


def _arguments(output: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": output,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "use_cpu": on_cpu(),
        "bf16": False,
        **options,
    }


def _train(trainer: Any, policy: TrainedPolicy, output: Path) -> tuple[float, ...]:
    trainer.remove_callback(trl_package("transformers").PrinterCallback)
    trainer.train()
    policy.refresh("offline")
    policy.save(output)
    return tuple(float(logs["loss"]) for logs in trainer.state.log_history if "loss" in logs)


def _refuse_nothing(rows: list[Any], seen: int, what: str) -> None:
    if not rows:
        raise ConfigError(f"Of {seen} trajectories none can be learnt from: none has token ids and is {what}.")
