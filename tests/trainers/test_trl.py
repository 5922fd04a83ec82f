"""Engine `trl` with the real TRL on a CPU: our rollouts, its loss and checkpoints. Run by `make test-trainers`."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch")
pytest.importorskip("trl")

from aworld.agents.llm_agent import Agent  # noqa: E402 - where TRL is missing, nothing below can be imported
from aworld.core.exceptions import ConfigError, TrainingError  # noqa: E402
from aworld.core.model import ModelRequest  # noqa: E402
from aworld.core.trajectory import Trajectory  # noqa: E402
from aworld.environments.rollout import rollouts  # noqa: E402
from aworld.environments.sums import sums  # noqa: E402
from aworld.models.chat_tokens import Prompt  # noqa: E402
from aworld.models.embedded.checkpoint import Policy  # noqa: E402
from aworld.models.token_model import GrowingText, Sampling  # noqa: E402
from aworld.models.torch_model import TorchModel  # noqa: E402
from aworld.runner import Runners  # noqa: E402
from aworld.training.evaluation import SamplingParams, evaluate, held_out_problems  # noqa: E402
from aworld.training.result import Saved, TrainingEvent  # noqa: E402
from aworld.training.trainer import AgentTrainer  # noqa: E402
from aworld.training.trl.offline import dpo, sft, stored  # noqa: E402
from aworld.training.trl.trl_engine import newest_checkpoint  # noqa: E402
from aworld.trajectory.sequences import TokenSequence, sequences  # noqa: E402
from tests.trainers.tiny import letters, save_tiny  # noqa: E402

SETTINGS: dict[str, Any] = {
    "steps": 6, "groups": 4, "samples": 4, "learning_rate": 1e-2, "max_completion_tokens": 16, "evaluate_every": 0,
    "final_tasks": 8, "checkpoint_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny(tmp_path_factory.mktemp("policy"))


def speaker(policy: Path) -> Agent:
    return Agent("speaker", model=TorchModel.open(policy, params={"max_tokens": 16}))


def trainer_of(policy: Path, run_path: Path, on_event: Any = None, **settings: Any) -> AgentTrainer:
    return AgentTrainer(
        agent=speaker(policy), config={**SETTINGS, **settings}, train_dataset=letters(), train_engine_name="trl",
        run_path=run_path, on_event=on_event,
    )  # fmt: skip


def weights(folder: str | Path) -> dict[str, Any]:
    return import_module("safetensors.torch").load_file(Path(folder, "model.safetensors"))


def test_trl_trains_on_our_rollouts_and_its_policy_comes_back(policy: Path, tmp_path: Path) -> None:
    result = trainer_of(policy, tmp_path / "run").train()

    assert result.steps == len(result.history) == 6
    assert all(report.episodes == 16 for report in result.history)
    assert max(report.statistics["logprob_difference"] for report in result.history) < 1e-4
    assert sum(report.statistics["drift"] for report in result.history) == 0
    assert result.history[-1].score is not None
    assert result.history[0].score is not None
    before, after = result.before("sampled"), result.after("sampled")
    assert before is not None
    assert after is not None
    assert (before.score or 0) < (after.score or 0), "the letter that pays is said more often"

    trained, start = weights(result.policy), weights(policy)
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    said = Runners.sync_run("say the letter", Agent("speaker", model=f"transformers:{result.policy}"))
    assert said.record.calls, said.msg
    assert next(iter(said.record.calls.values())).provider == "transformers"


def test_the_packaged_policy_learns_to_take_the_right_tool(tmp_path: Path) -> None:
    result = AgentTrainer(
        agent=Agent("calculator", model="embedded"), config={"steps": 32, "final_tasks": 100, "evaluate_every": 0},
        train_dataset=sums(), train_engine_name="trl", run_path=tmp_path / "run",
    ).train()  # fmt: skip
    before, after = result.before("greedy"), result.after("greedy")
    assert before is not None
    assert after is not None
    assert (before.success or 0.0) < 0.2
    assert (after.success or 0.0) > 0.8
    assert max(report.statistics["logprob_difference"] for report in result.history) < 1e-4

    async def solved() -> float:
        agent = Agent("calculator", model=str(tmp_path / "run"))
        environment = sums()
        found = await evaluate(environment, agent, held_out_problems(environment, 100))
        assert {call.provider for record in [await one(agent)] for call in record.calls.values()} == {"embedded"}
        return found.success or 0.0

    async def one(agent: Agent) -> Trajectory:
        return (await Runners.run("What is 37 plus 25?", agent)).record

    assert asyncio.run(solved()) == after.success


async def test_one_policy_answers_alike_in_numpy_and_in_torch(tmp_path: Path) -> None:
    folder = Policy.open().save(tmp_path / "policy")
    environment = sums()
    problems = held_out_problems(environment, 24)
    rows: dict[str, list[TokenSequence]] = {}
    for provider in ("embedded", "transformers"):
        agent = Agent("calculator", model=f"{provider}:{folder}")
        greedy = SamplingParams(temperature=0.0)
        found = {r.problem.id: r.record async for r in rollouts(environment, agent, problems, hooks=(greedy,))}
        rows[provider] = [row for problem in problems for row in sequences(found[problem.id]).rows]
    assert [row.ids for row in rows["embedded"]] == [row.ids for row in rows["transformers"]]
    assert [row.mask for row in rows["embedded"]] == [row.mask for row in rows["transformers"]]
    for ours, theirs in zip(rows["embedded"], rows["transformers"]):
        known = [(a, b) for a, b in zip(ours.logprobs, theirs.logprobs) if a is not None and b is not None]
        assert len(known) == sum(ours.mask)
        assert max(abs(a - b) for a, b in known) < 1e-4


async def test_what_shares_a_batch_does_not_change_an_answer(policy: Path) -> None:
    """But for the last bits of the log-probabilities."""
    model = TorchModel.open(policy, params={"max_tokens": 16})
    environment = letters()
    problems = environment.problems("train", 12)
    together = {r.problem.id: r.record async for r in rollouts(environment, Agent("a", model=model), problems, seed=5)}
    for problem in problems[:4]:
        async for alone in rollouts(environment, Agent("a", model=model), [problem], seed=5):
            (one,), (other,) = sequences(alone.record).rows, sequences(together[problem.id]).rows
            assert one.ids == other.ids
            assert one.mask == other.mask


async def test_log_probabilities_are_of_the_distribution_sampled_from(policy: Path) -> None:
    """Temperature, top-k and top-p included."""
    model = TorchModel.open(policy)
    prompt = tuple(model.chat.tokenizer.encode("say the letter", add_special_tokens=False))
    with torch.no_grad():
        logits = model.module(torch.tensor([prompt])).logits[0, -1].double()
    for sampling in (
        Sampling(0.7, max_tokens=1),
        Sampling(1.0, top_k=5, max_tokens=1),
        Sampling(1.3, 0.5, max_tokens=1),
    ):
        share = (logits / sampling.temperature).softmax(-1)
        order = share.argsort(descending=True)
        allowed = order[: sampling.top_k or len(order)]
        if sampling.top_p < 1:
            before = share[order].cumsum(0) - share[order]
            allowed = order[before < sampling.top_p]
        whole = share[allowed].sum()
        for seed in range(20):
            asked = Sampling(sampling.temperature, sampling.top_p, sampling.top_k, 1, seed)
            text = GrowingText(model.chat, model.ends, (), None)
            drawn = await model.complete(Prompt("say the letter", prompt), asked, ModelRequest(()), text)
            assert drawn.ids[0] in allowed.tolist()
            assert drawn.logprobs is not None
            assert abs(drawn.logprobs[0] - float((share[drawn.ids[0]] / whole).log())) < 1e-4


def test_what_trl_trains_on_is_what_was_sampled(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl_trainer: Any = import_module("aworld.training.trl.grpo_trainer")
    batches: list[Any] = []
    original = trl_trainer.RuntimeGRPOTrainer._compute_loss

    def watched(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        batches.append({name: value.clone() for name, value in inputs.items() if hasattr(value, "clone")})
        return original(self, model, inputs)

    monkeypatch.setattr(trl_trainer.RuntimeGRPOTrainer, "_compute_loss", watched)
    result = trainer_of(policy, tmp_path / "run", steps=2, minibatches=2).train()

    assert len(batches) == 4
    rows = {row.ids: row for record in stored(result.store) for row in sequences(record).rows}
    for batch in batches:
        for number in range(len(batch["completion_ids"])):
            read = batch["prompt_ids"][number][batch["prompt_mask"][number].bool()].tolist()
            kept = batch["completion_mask"][number].bool()
            whole = (*read, *batch["completion_ids"][number][kept].tolist())
            row = rows[whole]
            assert batch["tool_mask"][number][kept].tolist() == list(row.mask[len(read) :])
            pushed = batch["advantages"][number] != 0
            assert not pushed[~(kept & batch["tool_mask"][number].bool())].any(), "only sampled tokens are pushed"


@pytest.mark.parametrize("loss", ["dr_grpo", "cispo"])
def test_other_losses_of_trl_work(policy: Path, tmp_path: Path, loss: str) -> None:
    options = {"loss_type": loss, "max_completion_length": 64}
    result = trainer_of(policy, tmp_path, steps=2, final_tasks=1, options=options).train()
    assert all(report.statistics["loss"] is not None for report in result.history)


def test_a_killed_run_goes_on_to_the_same_weights(policy: Path, tmp_path: Path) -> None:
    whole = trainer_of(policy, tmp_path / "whole").train()

    class Killed(BaseException):
        pass

    def kill(event: TrainingEvent) -> None:
        if isinstance(event, Saved) and event.step == 4:
            raise Killed  # like a signal: nobody catches it

    with pytest.raises(Killed):
        trainer_of(policy, tmp_path / "cut", kill).train()
    assert str(newest_checkpoint(tmp_path / "cut" / "checkpoints")).endswith("checkpoint-4")
    resumed = trainer_of(policy, tmp_path / "cut").train()

    assert [report.step for report in resumed.history] == [1, 2, 3, 4, 5, 6]
    assert [report.score for report in resumed.history] == [report.score for report in whole.history]
    ours, theirs = weights(resumed.policy), weights(whole.policy)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_settings_do_not_go_on_from_a_run(policy: Path, tmp_path: Path) -> None:
    trainer_of(policy, tmp_path / "run", steps=2).train()
    with pytest.raises(ConfigError, match="now it is 1e-05"):
        trainer_of(policy, tmp_path / "run", steps=4, learning_rate=1e-5).train()


def test_a_policy_of_other_weights_is_refused_by_its_logprobs(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl_policy: Any = import_module("aworld.training.trl.trained_policy")
    other = save_tiny(tmp_path / "other", seed=1)
    monkeypatch.setattr(
        trl_policy.TorchPolicy, "model", property(lambda _: TorchModel.open(other, params={"max_tokens": 16}))
    )
    with pytest.raises(TrainingError, match="logprob_tolerance"):
        trainer_of(policy, tmp_path / "run", steps=1).train()


async def test_cancelling_ends_the_thread(policy: Path, tmp_path: Path) -> None:
    running = asyncio.Event()
    loop = asyncio.get_running_loop()

    def started(event: TrainingEvent) -> None:
        if type(event).__name__ == "Stepped":
            loop.call_soon_threadsafe(running.set)

    work = asyncio.create_task(trainer_of(policy, tmp_path / "run", started, steps=200).train_async())
    await running.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


def test_sft_imitates_what_was_sampled(policy: Path, tmp_path: Path) -> None:
    records = asyncio.run(episodes(policy))
    best = sorted(record.score or 0.0 for record in records)[-8]
    done = sft(
        speaker(policy), records, tmp_path / "sft", keep=lambda record: (record.score or 0.0) >= best,
        options={"learning_rate": 1e-2, "num_train_epochs": 4, "per_device_train_batch_size": 8},
    )  # fmt: skip
    assert done.rows >= 8
    assert done.left_out["not kept"] == len(records) - done.rows
    assert done.losses[-1] < done.losses[0]
    chosen = [record for record in records if (record.score or 0.0) >= best]
    assert likelihood(tmp_path / "sft", chosen) > likelihood(policy, chosen)
    with pytest.raises(ConfigError, match="none can be learnt from"):
        sft(speaker(policy), records, tmp_path / "none", keep=lambda _: False)


def test_dpo_prefers_the_better_episode(policy: Path, tmp_path: Path) -> None:
    records = asyncio.run(episodes(policy))
    done = dpo(
        speaker(policy), records, tmp_path / "dpo",
        options={"learning_rate": 5e-3, "num_train_epochs": 6, "per_device_train_batch_size": 16},
    )  # fmt: skip
    assert done.rows > 8
    assert done.losses[-1] < done.losses[0]
    groups: dict[str, list[Trajectory]] = {}
    for record in records:
        groups.setdefault(record.task.group_id or "", []).append(record)
    ranked = [sorted(group, key=lambda record: record.score or 0.0) for group in groups.values()]
    better, worse = [group[-1] for group in ranked], [group[0] for group in ranked]

    def gap(folder: Path) -> float:
        return likelihood(folder, better) - likelihood(folder, worse)

    assert gap(tmp_path / "dpo") > gap(policy)


async def episodes(policy: Path) -> list[Trajectory]:
    environment = letters()
    found = rollouts(environment, speaker(policy), environment.problems("train", 8), samples=8, seed=3)
    return [rollout.record async for rollout in found]


def likelihood(folder: Path, records: list[Trajectory]) -> float:
    """Mean log-probability of a sampled token."""
    transformers: Any = import_module("transformers")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for record in records:
        for row in sequences(record).rows:
            with torch.no_grad():
                logs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            places = [place for place, sampled in enumerate(row.mask) if sampled]
            total += sum(float(logs[place - 1, row.ids[place]]) for place in places)
            count += len(places)
    return total / count


def test_the_engine_refuses_what_trl_cannot_do(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="samples"):
        trainer_of(policy, tmp_path, samples=1)
    with pytest.raises(ConfigError, match="minibatches"):
        trainer_of(policy, tmp_path, minibatches=3)
    with pytest.raises(ConfigError, match="learning_rate"):
        trainer_of(policy, tmp_path, options={"learning_rate": 1.0})
    refused: list[tuple[dict[str, Any], str]] = [
        ({"peft_config": {}}, "no LoRA"),
        ({"loss_typ": "grpo"}, "did you mean 'loss_type'"),
        ({"loss_type": "dr_grpo"}, "max_completion_length"),
    ]
    for options, said in refused:
        with pytest.raises(ConfigError, match=said):
            trainer_of(policy, tmp_path, options=options)
    with pytest.raises(ConfigError, match="on this machine"):
        AgentTrainer(agent=Agent("a", model="ollama:qwen3"), train_dataset=letters(), train_engine_name="trl")
