"""The agent loop and the dataset of engine `verl`, against verl's own classes on a CPU. Run by `make test-trainers`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

verl: Any = pytest.importorskip("verl")

from aworld.core.exceptions import ConfigError  # noqa: E402 - where verl is missing, nothing below can be imported
from aworld.environments import ScoredEpisode  # noqa: E402
from aworld.models.token_model import Draft, Sampling  # noqa: E402
from aworld.models.torch_model import complete  # noqa: E402
from aworld.training import TrainingConfig, TrainingJob  # noqa: E402
from aworld.training.registry import engine_of  # noqa: E402
from aworld.training.steps import problems_of  # noqa: E402
from aworld.training.verl.agent_loop import load_setting  # noqa: E402
from aworld.training.verl.verl_engine import overrides, prepare, problem_of, write_dataset  # noqa: E402  # noqa: E402
from tests.trainers.tiny import letters, save_tiny  # noqa: E402
from tests.trainers.verl_setting import setting  # noqa: E402

PROMPT, RESPONSE = 256, 96


class Servers:
    """In place of verl's rollout servers: the same call, answered by the policy in this process."""

    def __init__(self, policy: Path) -> None:
        transformers: Any = import_module("transformers")
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(policy)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(policy)
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []
        self.said: list[list[int]] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> Any:
        self.asked.append((request_id, prompt_ids, sampling_params))
        sampling = Sampling(
            temperature=sampling_params["temperature"], max_tokens=min(12, sampling_params["max_tokens"])
        )
        drafts = [Draft(tuple(prompt_ids), sampling)]
        complete(self.model, drafts, frozenset([self.tokenizer.eos_token_id]), lambda _: None)
        self.said.append(drafts[0].ids)
        replica: Any = import_module("verl.workers.rollout.replica")
        return replica.TokenOutput(token_ids=drafts[0].ids, log_probs=drafts[0].logprobs)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("policy"))


def verl_config(policy: Path, folder: Path, *more: str, given: TrainingJob | None = None) -> Any:
    """verl's own configuration, with what the engine sets."""
    hydra: Any = import_module("hydra")
    rollout = "actor_rollout_ref.rollout"
    wanted = [f"{rollout}.prompt_length={PROMPT}", f"{rollout}.response_length={RESPONSE}"]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", overrides=[*overrides(given or job(policy, folder)), *wanted, *more])


def job(policy: Path, folder: Path, **options: Any) -> TrainingJob:
    environment, agent = setting()
    known = {"setting": "tests.trainers.verl_setting:setting", "policy": str(policy), **options}
    config = TrainingConfig(steps=2, groups=2, samples=2, options=known)
    return TrainingJob(agent=agent, environment=environment, held_out=environment, config=config, run_path=folder)


def rows_in(path: Path, policy: Path, config: Any) -> list[dict[str, Any]]:
    """The rows of a file as verl's dataset reads them."""
    dataset: Any = import_module("verl.utils.dataset.rl_dataset")
    return list(dataset.RLHFDataset(str(path), Servers(policy).tokenizer, config.data))


def no_number(episode: ScoredEpisode) -> float:
    return float("nan")


def batch(rows: list[dict[str, Any]]) -> Any:
    """Rows of verl's dataset as verl's trainer hands them to a worker."""
    collate: Any = import_module("verl.utils.dataset.rl_dataset").collate_fn
    found = verl.DataProto.from_single_dict(collate(rows))
    found.meta_info = {"global_steps": 1, "validate": False}
    return found


def test_verls_dataset_class_reads_the_parquet(policy: Path, tmp_path: Path) -> None:
    environment = letters(6)
    assert write_dataset(environment, tmp_path / "train.parquet", n=5) == 5
    dataset: Any = import_module("verl.utils.dataset.rl_dataset")
    config: Any = import_module("omegaconf").OmegaConf.create(
        {"cache_dir": str(tmp_path), "filter_overlong_prompts": False}
    )
    rows = dataset.RLHFDataset(str(tmp_path / "train.parquet"), Servers(policy).tokenizer, config)
    assert len(rows) == 5
    row = rows[3]
    assert row["raw_prompt"] == [{"role": "user", "content": "say the letter 3"}]
    assert row["index"] == 3
    assert row["data_source"] == "letters"
    assert row["reward_model"]["ground_truth"] == "null"
    assert problem_of(row["extra_info"]) == environment.problems("train")[3]
    with pytest.raises(ConfigError, match="write_dataset"):
        problem_of({"index": 0})


def test_each_step_of_verl_is_given_the_problems_of_that_step(policy: Path, tmp_path: Path) -> None:
    """Five problems and two a step: the third step begins another round, as with every engine."""
    given = job(policy, tmp_path)
    given = replace(given, environment=letters(5), config=given.config.model_copy(update={"steps": 3}))
    prepare(given)
    config = verl_config(policy, tmp_path, given=given)
    found = [problem_of(row["extra_info"]) for row in rows_in(tmp_path / "train.parquet", policy, config)]
    assert found == [p for step in (1, 2, 3) for p in problems_of(given.environment, given.config, step)]
    assert config.data.train_batch_size * config.trainer.total_training_steps == len(found) == 6


def test_verl_saves_and_measures_at_the_end_whatever_comes_before(policy: Path, tmp_path: Path) -> None:
    given = job(policy, tmp_path)
    only_last = given.config.model_copy(update={"checkpoint_every": 0, "evaluate_every": 0})
    trainer = verl_config(policy, tmp_path, given=replace(given, config=only_last)).trainer
    assert (trainer.save_freq, trainer.test_freq, trainer.val_before_train) == (2, 2, True)
    trainer = verl_config(policy, tmp_path, given=given).trainer
    assert (trainer.save_freq, trainer.test_freq) == (10, 10)


def test_without_held_out_problems_verl_measures_nothing(policy: Path, tmp_path: Path) -> None:
    given = replace(job(policy, tmp_path), held_out=None)
    prepare(given)
    config = verl_config(policy, tmp_path, given=given)
    assert (config.trainer.test_freq, config.trainer.val_before_train) == (-1, False)
    assert rows_in(Path(config.data.val_files), policy, config), "verl does not start on a file without a row"
    assert not (tmp_path / "test.parquet").exists()


async def test_verls_worker_runs_our_episodes_with_exact_ids(policy: Path, tmp_path: Path) -> None:
    prepare(job(policy, tmp_path))
    config = verl_config(policy, tmp_path)
    servers = Servers(policy)
    agent_loop: Any = import_module("verl.experimental.agent_loop.agent_loop")
    worker = agent_loop.AgentLoopWorker(config, servers)
    dataset: Any = import_module("verl.utils.dataset.rl_dataset")
    rows = dataset.RLHFDataset(str(tmp_path / "train.parquet"), servers.tokenizer, config.data)
    output = await worker.generate_sequences(batch([rows[0], rows[0], rows[1]]))

    assert output.batch["responses"].shape == (3, RESPONSE)
    assert output.batch["prompts"].shape == (3, PROMPT)
    conversations: dict[str, list[int]] = {}
    for (request, _, _), said in zip(servers.asked, servers.said):
        conversations.setdefault(request, []).extend(said)
    sampled = {tuple(ids) for ids in conversations.values()}
    for number in range(3):
        mask = output.batch["response_mask"][number].bool()
        assert tuple(output.batch["responses"][number][mask].tolist()) in sampled, "what is trained on was sampled"
        assert mask.sum() < output.batch["attention_mask"][number][PROMPT:].sum(), "what was read is not trained on"
    assert len(servers.asked) == 6, "two turns an episode"
    assert all("logprobs" in asked[2] for asked in servers.asked)
    scores = output.batch["rm_scores"].sum(dim=1)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert output.non_tensor_batch["reward_known"].tolist() == [1.0, 1.0, 1.0]
    await logprobs_agree(servers, output)


async def logprobs_agree(servers: Servers, output: Any) -> None:
    """What verl gets as `rollout_log_probs` is what its actor would compute."""
    torch: Any = import_module("torch")
    with torch.no_grad():
        logits = servers.model(
            input_ids=output.batch["input_ids"], attention_mask=output.batch["attention_mask"],
            position_ids=output.batch["position_ids"],
        ).logits  # fmt: skip
    said = logits[:, PROMPT - 1 : -1].log_softmax(-1).gather(2, output.batch["responses"][:, :, None])[:, :, 0]
    mask = output.batch["response_mask"].bool()
    assert (said - output.batch["rollout_log_probs"])[mask].abs().max() < 1e-4


async def test_an_unknown_reward_trains_nothing(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(job(policy, tmp_path))
    config = verl_config(policy, tmp_path)
    environment, _ = load_setting("tests.trainers.verl_setting:setting")
    rubric: Any = import_module("aworld.environments").Rubric(no_number)
    monkeypatch.setattr(environment, "rubric", rubric)
    servers = Servers(policy)
    agent_loop: Any = import_module("verl.experimental.agent_loop.agent_loop")
    worker = agent_loop.AgentLoopWorker(config, servers)
    dataset: Any = import_module("verl.utils.dataset.rl_dataset")
    rows = dataset.RLHFDataset(str(tmp_path / "train.parquet"), servers.tokenizer, config.data)
    output = await worker.generate_sequences(batch([rows[0]]))
    assert output.batch["response_mask"].sum() == 0
    assert output.non_tensor_batch["reward_known"].tolist() == [0.0]


def test_the_engine_says_what_it_needs(policy: Path, tmp_path: Path) -> None:
    engine = engine_of("verl")
    given = job(policy, tmp_path)
    engine.check(given)
    without = TrainingConfig(options={"policy": str(policy)})
    with pytest.raises(ConfigError, match="setting"):
        engine.check(TrainingJob(given.agent, given.environment, None, without, tmp_path))
    with pytest.raises(ConfigError, match=r"package\.module:function"):
        load_setting("tests.trainers.verl_setting:nothing")


async def test_without_a_gpu_the_command_is_left_for_another_machine(policy: Path, tmp_path: Path) -> None:
    torch: Any = import_module("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="GPU"):
        await engine_of("verl").train(job(policy, tmp_path))
    assert "verl.trainer.main_ppo" in (tmp_path / "verl.sh").read_text()
    assert json.loads((tmp_path / "agent_loop.yaml").read_text())[0]["name"] == "aworld"
    assert (tmp_path / "test.parquet").exists()


def test_verl_knows_every_setting_of_the_command(policy: Path, tmp_path: Path) -> None:
    """The whole command line, through verl's own parser, up to where it would start Ray."""
    prepare(job(policy, tmp_path, **{"trainer.n_gpus_per_node": 1}))
    arguments = [*overrides(job(policy, tmp_path, **{"trainer.n_gpus_per_node": 1})), "--cfg", "job"]
    done = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "default_agent_loop: aworld" in done.stdout
