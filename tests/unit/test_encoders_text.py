"""Models whose tokenizer or text tower is described on the hub: fetched once, then used without internet.

Each process has its own cache and its own hub: a real server on loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast, RobertaConfig
from web_server import WebServer

from flowkit.encoders.weight_registry import fetch_tokenizer
from flowkit.errors import EncoderError

REPOSITORY = "flowkit/tiny-words"
WORDS = ("<pad>", "<unk>", "a", "red", "blue", "circle")
VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
CONFIGS = {
    "flowkit-hub-tokenizer": {
        "embed_dim": 8,
        "vision_cfg": VISION,
        "text_cfg": {
            "hf_tokenizer_name": REPOSITORY, "context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1,
        },
    },
    "flowkit-hub-tower": {
        "embed_dim": 8,
        "vision_cfg": VISION,
        "text_cfg": {
            "hf_model_name": REPOSITORY,
            "hf_tokenizer_name": REPOSITORY,
            "context_length": 8,
            "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler",
        },
    },
}  # fmt: skip
PROCESS = """
import json, sys, open_clip, torch
from pathlib import Path
from flowkit.encoders.registry import load_encoder
from flowkit.encoders.weight_registry import fetch_tokenizer
from flowkit.errors import EncoderError
folder, *tasks = sys.argv[1:]
open_clip.add_model_config(Path(folder))

def answers(task, model):
    name = f"open_clip:{model}/{folder}/{model}.safetensors"
    try:
        if task == "fetch":
            fetch_tokenizer(name)
            return
        encoder = load_encoder(name)
        yield list(encoder.encode(torch.zeros(2, 3, 16, 16))[0].shape)
        yield encoder.encode_text(["a red circle", "a blue circle", "a red circle"]).tolist()
    except EncoderError as fault:
        yield str(fault)

print(json.dumps([list(answers(*task.split())) for task in tasks]))
"""


@dataclass
class Place:
    """A folder with the models, and a hub that knows their text side."""

    folder: Path
    web: WebServer

    def run(self, *tasks: str, cache: str, is_offline: bool) -> list[list[Any]]:
        """Do tasks, each `fetch MODEL` or `load MODEL`, in a process of its own; returns what each says."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
        }
        environment |= {"HF_ENDPOINT": self.web.url, "HF_HOME": str(self.folder / cache)}
        environment |= {"HF_HUB_OFFLINE": "1"} if is_offline else {}
        command = [sys.executable, "-c", PROCESS, str(self.folder), *tasks]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("text")
    text = RobertaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    words = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    hub = folder / "hub"
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(hub)
    text.save_pretrained(hub)
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = open_clip.CLIP(**json.loads(json.dumps(CONFIGS["flowkit-hub-tokenizer"])))
        tower = {f"text.transformer.{key}": value for key, value in AutoModel.from_config(
            text, add_pooling_layer=False).state_dict().items()}  # fmt: skip
    save_file(plain.state_dict(), folder / "flowkit-hub-tokenizer.safetensors")
    visual = {
        key: value for key, value in plain.state_dict().items() if key.startswith(("visual.", "logit_scale"))
    }
    tower = {key: value.clone() for key, value in tower.items() if not key.endswith("_ids")}
    projection = {"text.proj.weight": torch.randn(8, 8)}
    save_file({**visual, **tower, **projection}, folder / "flowkit-hub-tower.safetensors")
    with WebServer() as web:
        web.commit(REPOSITORY, {path.name: path.read_bytes() for path in hub.iterdir()}, kind="models")
        yield Place(folder, web)


@pytest.mark.slow
def test_what_was_fetched_once_is_used_offline(place: Place) -> None:
    fetch, load = ([f"{task} {model}" for model in CONFIGS] for task in ("fetch", "load"))
    assert place.run(*fetch, cache="filled", is_offline=False) == [[], []]
    assert any(request.path.endswith("tokenizer.json") for request in place.web.requests)
    place.web.requests.clear()
    *loaded, again, again_too = place.run(*load, *fetch, cache="filled", is_offline=True)
    for shape, embeddings in loaded:
        assert shape == [2, 5, 16]
        assert embeddings[0] == embeddings[2] != embeddings[1]
    assert again == again_too == []
    assert not place.web.requests, "nothing is asked of the network"


@pytest.mark.slow
def test_what_is_not_to_be_had_is_said_and_the_weights_are_not_blamed(place: Place) -> None:
    """A missing tokenizer stops texts only; a missing text tower stops before the weights are read."""
    tasks = ["load flowkit-hub-tokenizer", "fetch flowkit-hub-tokenizer", "load flowkit-hub-tower"]
    (shape, no_tokenizer), (same,), (no_tower,) = place.run(*tasks, cache="empty", is_offline=True)
    assert shape == [2, 5, 16]
    assert same == no_tokenizer
    assert no_tokenizer.startswith("encoder 'open_clip:flowkit-hub-tokenizer/")
    assert f"its tokenizer {REPOSITORY} is neither in the cache of the hub nor to be fetched" in no_tokenizer
    assert f"the config of its text tower {REPOSITORY} is neither in the cache of the hub" in no_tower
    for fault in (no_tokenizer, no_tower):
        assert "run the weights stage where there is internet and share that cache (HF_HOME)" in fault
        assert "does not fit" not in fault


def test_models_with_the_tokenizer_of_open_clip_ask_for_nothing() -> None:
    """With a hub that does not answer this would fail."""
    for name in ("demo-vit", "eva_clip:EVA-CLIP-8B", "open_clip:ViT-L-14-quickgelu/openai"):
        fetch_tokenizer(name)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("ViT-B-16-SigLIP", "its tokenizer timm/ViT-B-16-SigLIP"),
        ("roberta-ViT-B-32", "the config of its text tower roberta-base"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    model: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        EncoderError, match=rf"{part} needs a package that is not .* `pip install transformers"
    ):
        fetch_tokenizer(f"open_clip:{model}/x")
