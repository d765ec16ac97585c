"""Stages on objects of several views: sampling together and view by view, and what evaluation makes of an object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paired_material import FLOW, MODEL
from safetensors.torch import save_file
from views_material import SHAPES, VIEWS, WHOLE, write_stores

from flowkit.encoders.head import apply_head
from flowkit.errors import ConfigError
from flowkit.features.loader import PairedTokens
from flowkit.features.pairs import merge_pairs
from flowkit.features.samples import SampledTokens
from flowkit.model.config import DiTConfig
from flowkit.paths import HEAD, PAIRS, Places
from flowkit.provenance import write_json
from flowkit.sampling.sampler import parse_sampler, sample
from flowkit.stages import sample as stage
from flowkit.stages.evaluate import embedding_of
from flowkit.stages.session import Spec, committed
from flowkit.stages.train import model_config
from flowkit.training.statistics import fit_statistics
from flowkit.translator import Translator, build_network
from flowkit.view_keys import key_of_view

TARS = ("0.tar", "1.tar")
TOKENS = SHAPES["clip"][0]
SAMPLER = "heun-2"


def network(views: int) -> DiTConfig:
    tokens = views * TOKENS
    widths = {"source_width": SHAPES["eva"][1], "target_width": SHAPES["clip"][1]}
    return replace(MODEL, source_tokens=tokens, target_tokens=tokens, views=views, **widths)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Committed stores and pairs of objects with views."""
    places = Places("toy", tmp_path / "results", tmp_path / "data")
    written = write_stores(tmp_path / "made")
    for encoder, stores in zip(SHAPES, written, strict=True):
        for tar, store in zip(TARS, stores, strict=True):
            folder = places.store("test", encoder, tar)
            folder.mkdir(parents=True)
            store.rename(folder / "content")
            write_json(folder / "manifest.json", {"content": "content", "stage": "extract", "counts": {}})
    folder = places.pairs("test", "eva", "clip")
    sides = [[committed(places.store("test", encoder, tar))[0] for tar in TARS] for encoder in SHAPES]
    merge_pairs(*sides, folder / "content" / PAIRS)
    counts = {"tars": list(TARS)}
    write_json(folder / "manifest.json", {"content": "content", "stage": "pairs", "counts": counts})
    return places


def pairs_of(places: Places, **how: Any) -> PairedTokens:
    sides = [[committed(places.store("test", encoder, tar))[0] for tar in TARS] for encoder in SHAPES]
    return PairedTokens(committed(places.pairs("test", "eva", "clip"))[0] / PAIRS, *sides, **how)


def trained(places: Places, views: int) -> Translator:
    """A translator of so many views at once, as if run `flow` had been trained."""
    config = network(views)
    made = build_network(config, seed=5).eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    data = pairs_of(places, by_view=views == 1)
    statistics = fit_statistics(data, feature_scale="factor", start_noise=FLOW.start_noise)
    translator = Translator(made, config, FLOW, "factor", statistics)
    translator.save(places.train("flow") / "content")
    write_json(places.train("flow") / "manifest.json", {"content": "content", "stage": "train", "counts": {}})
    return translator


def run_stage(places: Places) -> tuple[SampledTokens, dict[str, Any]]:
    settings = {"samplers": [SAMPLER], "noise_seeds": 1, "noise_images": None, "weights": "last"}
    values = {
        "sampling": {**settings, "guidance_scale": 1.0, "seed": 5},
        "evaluation": {"images": len(WHOLE) - 1},
        "data": {"layout": "cls_patches", "source_tokens": "all"},
    }
    target = {"run": "flow", "dataset": "test", "source": "eva", "target": "clip"}
    stage.run(Spec("sample", target, values, places, ("code@1",)))
    content, manifest = committed(places.samples("flow", "test"))
    return SampledTokens(content / SAMPLER), manifest["counts"]


def half(tokens: torch.Tensor) -> np.ndarray:
    return tokens.numpy().astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 128])
def test_joint_translation_sees_all_views_of_an_object(
    places: Places, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(stage, "BATCH", batch * VIEWS)
    translator = trained(places, VIEWS)
    made, counts = run_stage(places)
    keys = [f"{tar}-{number}" for tar, number in WHOLE][:-1]
    assert made.keys == keys
    assert made.shape == (len(keys), VIEWS * TOKENS, SHAPES["clip"][1])
    assert counts["nfe"] == {SAMPLER: 3}
    source = torch.from_numpy(pairs_of(places).source()[: len(keys)])
    (expected,) = sample(translator, [(keys, source)], parse_sampler(SAMPLER), seed=5)
    np.testing.assert_allclose(made[:], half(expected.tokens_BTC), rtol=1e-3, atol=1e-3)
    # a view's tokens depend on the others'
    changed = source.clone()
    changed[:, TOKENS:] = changed[:, TOKENS:].flip(0)
    (other,) = sample(translator, [(keys, changed)], parse_sampler(SAMPLER), seed=5)
    assert (other.tokens_BTC - expected.tokens_BTC)[:, :TOKENS].abs().max() > 1e-3


@pytest.mark.parametrize("batch", [1, 2, 128])
def test_translation_view_by_view_is_that_of_single_images(
    places: Places, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(stage, "BATCH", batch * VIEWS)
    translator = trained(places, 1)
    made, counts = run_stage(places)
    assert made.shape == (len(WHOLE) - 1, VIEWS * TOKENS, SHAPES["clip"][1])
    assert counts["nfe"] == {SAMPLER: 3}  # of a view
    images = pairs_of(places, by_view=True)
    names = [key_of_view(key, view) for key in made.keys for view in range(VIEWS)]
    assert images.keys(np.arange(len(names))) == names
    source = torch.from_numpy(images.source()[: len(names)])
    (expected,) = sample(translator, [(names, source)], parse_sampler(SAMPLER), seed=5)
    np.testing.assert_allclose(
        made[:].reshape(len(names), TOKENS, -1), half(expected.tokens_BTC), rtol=1e-3, atol=1e-3
    )


def test_run_of_other_views_is_refused(places: Places) -> None:
    trained(places, VIEWS)
    config = replace(network(2), architecture="blip3o")
    data = pairs_of(places, by_view=True)
    statistics = fit_statistics(data, feature_scale="factor", start_noise="isotropic")
    made = Translator(build_network(config).eval(), config, FLOW, "factor", statistics)
    made.save(places.train("flow") / "content")
    with pytest.raises(ConfigError, match=r"translates 2 views together, 3 make a sample of the data set"):
        run_stage(places)


@pytest.mark.parametrize("by_view", [False, True])
def test_network_of_a_training_has_the_views_of_its_samples(places: Places, by_view: bool) -> None:
    data = pairs_of(places, by_view=by_view)
    settings = {"architecture": "blip3o", "size": "demo", "adapter_layers": None, "head": "linear"}
    config = model_config(
        {**settings, "cross_attention": False, "aligned_condition": True},
        source_shape=data.source_shape,
        target_shape=data.target_shape,
        grid=data.grid,
        views=data.views,
    )
    views = 1 if by_view else VIEWS
    assert (config.views, config.target_tokens, config.has_cls) == (views, views * TOKENS, True)


def test_embedding_of_an_object_is_the_mean_of_its_views(tmp_path: Path) -> None:
    width, embedding = 4, 3
    generator = torch.Generator().manual_seed(1)
    head = {
        "norm.weight": torch.rand(width, generator=generator) + 0.5,
        "norm.bias": torch.rand(width, generator=generator),
        "norm.epsilon": torch.tensor(1e-5),
        "projection.weight": torch.randn(embedding, width, generator=generator),
    }
    save_file(head, tmp_path / HEAD)
    objects = torch.randn(5, VIEWS * TOKENS, width, generator=generator)
    embed = embedding_of("cls_patches", tmp_path, VIEWS)
    assert embed is not None
    of_views = [apply_head(objects[:, TOKENS * view :], head) for view in range(VIEWS)]
    mean = torch.stack([torch.nn.functional.normalize(one, dim=1) for one in of_views]).mean(0)
    np.testing.assert_allclose(embed(objects.numpy()), mean.numpy(), rtol=1e-5, atol=1e-6)
    assert embedding_of("patches", tmp_path, VIEWS) is None
    pooled = embedding_of("pooled", tmp_path, VIEWS)
    assert pooled is not None
    vectors = torch.nn.functional.normalize(objects[:, :VIEWS], dim=2).mean(1)
    np.testing.assert_allclose(pooled(objects[:, :VIEWS].numpy()), vectors.numpy(), rtol=1e-5, atol=1e-6)
