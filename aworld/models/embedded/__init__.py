"""A small language model inside the process: NumPy, no key, no network, exact token ids and log-probabilities.

`transformer` is the forward pass with its cache, `engine` runs the requests of one event loop together, `model` is the
`Model` contract, `checkpoint` reads and writes the folder (`config.json`, `model.safetensors`, `tokenizer.json`,
`chat_template.jinja`) that `transformers` and vLLM read too. The packaged policy lies in this folder; README.md is its
model card. Needs the extra `embedded`.
"""

from __future__ import annotations

from importlib.util import find_spec

from aworld.config.errors import ConfigError

for _package in ("numpy", "safetensors", "tokenizers", "jinja2"):
    if find_spec(_package) is None:
        raise ConfigError(f"The embedded policy needs an extra ({_package} is missing): pip install 'aworld[embedded]'")
