"""Stage `sample`: stores of every sampler and noise seed under the images' keys, counts, and what is not finite."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paired_material import FLOW, MODEL, SOURCE_WIDTH, TARGET_WIDTH, TOKENS, Pairs

from flowkit.errors import ConfigError
from flowkit.features.loader import PairedTokens
from flowkit.features.pairs import merge_pairs
from flowkit.features.samples import SampledTokens
from flowkit.features.store import TokenStore
from flowkit.features.tables import RejectRow, SampleRow
from flowkit.features.writer import TokenStoreWriter
from flowkit.paths import PAIRS, Places, noise_folder
from flowkit.planning.sizes import Amount, samples_size
from flowkit.provenance import read_json, write_json
from flowkit.sampling.sampler import parse_sampler, sample
from flowkit.stages import sample as stage
from flowkit.stages.session import Spec, committed
from flowkit.training.statistics import fit_statistics
from flowkit.translator import Translator, build_network

TARS, MEMBERS, BROKEN = ("00000.tar", "00001.tar"), 6, 3
PAIRED = len(TARS) * (MEMBERS - 1)
SAMPLING = {
    "samplers": ["heun-2", "euler-1", "euler-2-shift3-guidance2", "adaptive-1", "euler-1-mean2"],
    "noise_seeds": 3,
    "noise_images": 4,
    "weights": "last",
    "guidance_scale": 1.0,
    "seed": 5,
}


def _key(tar: str, member: int) -> str:
    return f"{tar[:5]}-{member:03d}.jpg"


def _store(folder: Path, tar: str, width: int, encoder: str) -> None:
    """A store; the target's lacks one member, so rows of the two encoders differ."""
    content = folder / "content"
    with TokenStoreWriter(
        content,
        token_shape=(TOKENS, width),
        pooled_width=4,
        attributes={
            "encoder": encoder,
            "has_cls": True,
            "grid": [2, 2],
            "source": {"name": tar, "sha256": tar},
        },
    ) as writer:
        refused = [] if encoder == "source" else [BROKEN]
        kept = [member for member in range(MEMBERS) if member not in refused]
        values = Pairs(MEMBERS * 2, seed=4)
        first = TARS.index(tar) * MEMBERS
        tokens = (values.source if encoder == "source" else values.target)[first : first + MEMBERS][kept]
        rows = [SampleRow(member, _key(tar, member)) for member in kept]
        rejects = [RejectRow(member, _key(tar, member), "image undecodable") for member in refused]
        writer.append(
            tokens.numpy(), np.ones((len(kept), 4), np.float32), rows, rejects=rejects, next_index=MEMBERS
        )
        writer.finish()
    write_json(folder / "manifest.json", {"content": "content", "stage": "extract", "counts": {}})


def _translator(**changed: Any) -> Translator:
    objective = replace(FLOW, **changed)
    network = build_network(MODEL, seed=5).eval()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    statistics = fit_statistics(Pairs(64), feature_scale="factor", start_noise=objective.start_noise)
    return Translator(network, MODEL, objective, "factor", statistics)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Stores, pairs and a trained flow."""
    places = Places("toy", tmp_path / "results", tmp_path / "data")
    for encoder, width in (("source", SOURCE_WIDTH), ("target", TARGET_WIDTH)):
        for tar in TARS:
            _store(places.store("test", encoder, tar), tar, width, encoder)
    pairs = places.pairs("test", "source", "target")
    stores = [
        [committed(places.store("test", encoder, tar))[0] for tar in TARS] for encoder in ("source", "target")
    ]
    assert merge_pairs(*stores, pairs / "content" / PAIRS).pairs == PAIRED
    write_json(
        pairs / "manifest.json", {"content": "content", "stage": "pairs", "counts": {"tars": list(TARS)}}
    )
    _train(places, _translator())
    return places


def _train(places: Places, translator: Translator) -> None:
    translator.save(places.train("flow") / "content")
    write_json(places.train("flow") / "manifest.json", {"content": "content", "stage": "train", "counts": {}})


def _spec(places: Places, images: int = PAIRED, **sampling: Any) -> Spec:
    values = {
        "sampling": {**SAMPLING, **sampling},
        "evaluation": {"images": images},
        "data": {"layout": "cls_patches", "source_tokens": "all"},
    }
    target = {"run": "flow", "dataset": "test", "source": "source", "target": "target"}
    return Spec("sample", target, values, places, ("code@1",))


def _run(spec: Spec) -> tuple[Path, dict[str, Any]]:
    stage.run(spec)
    content, manifest = committed(spec.places.samples("flow", "test"))
    return content, manifest["counts"]


def _pairs(places: Places) -> PairedTokens:
    stores = [
        [committed(places.store("test", encoder, tar))[0] for tar in TARS] for encoder in ("source", "target")
    ]
    return PairedTokens(committed(places.pairs("test", "source", "target"))[0] / PAIRS, *stores)


def test_every_sampler_and_noise_seed_has_a_store_under_the_keys_of_the_images(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "BATCH", 4)
    images = 9
    content, counts = _run(_spec(places, images))
    keys = [_key(tar, member) for tar in TARS for member in range(MEMBERS) if member != BROKEN][:images]
    spread = [name for name in SAMPLING["samplers"] if "mean" not in name]
    assert counts["samplers"] == SAMPLING["samplers"]
    assert (counts["images"], counts["noise_images"]) == (images, 4)
    assert counts["noise"] == {name: 3 if name in spread else 1 for name in SAMPLING["samplers"]}
    nfe = {name: value for name, value in counts["nfe"].items() if name != "adaptive-1"}
    assert nfe == {"heun-2": 3.0, "euler-1": 1.0, "euler-2-shift3-guidance2": 4.0, "euler-1-mean2": 2.0}
    assert counts["nfe"]["adaptive-1"] >= 13
    for name in SAMPLING["samplers"]:
        assert SampledTokens(content / name).keys == keys
    assert sorted(path.name for path in content.iterdir()) == sorted(
        [*SAMPLING["samplers"], "noise-1", "noise-2"]
    )
    for number in (1, 2):
        folder = content / f"noise-{number}"
        assert sorted(path.name for path in folder.iterdir()) == sorted(spread)
        for name in spread:
            assert SampledTokens(folder / name).keys == keys[:4]


def test_tokens_are_those_of_the_translator_whatever_the_batches(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, _ = _run(_spec(places))
    source = torch.from_numpy(_pairs(places).source()[:])
    keys = SampledTokens(content / "heun-2").keys
    for name in ("heun-2", "adaptive-1", "euler-1-mean2"):
        for number in range(3 if "mean" not in name else 1):
            (made,) = sample(_translator(), [(keys, source)], parse_sampler(name), seed=5, draw=number)
            stored = SampledTokens(content / noise_folder(number) / name)[:]
            expected = made.tokens_BTC.numpy()[: len(stored)]
            np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    first, second = (SampledTokens(content / part / "heun-2")[:] for part in ("noise-1", "noise-2"))
    assert np.abs(first - second).max() > 1e-2
    monkeypatch.setattr(stage, "BATCH", 3)
    (places.samples("flow", "test") / "manifest.json").unlink()
    others, _ = _run(replace(_spec(places), code=("code@2",)))
    for name in SAMPLING["samplers"]:
        one, other = (SampledTokens(folder / name)[:] for folder in (content, others))
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * np.abs(one).max())


def test_source_tokens_are_read_batch_by_batch(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    read = TokenStore.read_into
    monkeypatch.setattr(stage, "BATCH", 2)
    monkeypatch.setattr(
        TokenStore, "read_into", lambda *args, **named: asked.append(len(args[2])) or read(*args, **named)
    )
    _run(_spec(places, samplers=["euler-1"], noise_seeds=1))
    assert sum(asked) == PAIRED
    assert max(asked) <= 2


@pytest.mark.parametrize("noise_images", [None, 100])
def test_all_images_have_further_samples_where_none_or_more_than_there_are_is_named(
    places: Places, noise_images: int | None
) -> None:
    content, counts = _run(_spec(places, samplers=["euler-2"], noise_images=noise_images))
    assert counts["images"] == counts["noise_images"] == PAIRED
    assert len(SampledTokens(content / "noise-2/euler-2")) == PAIRED


def test_more_images_than_there_are_are_refused_before_anything_is_sampled(places: Places) -> None:
    with pytest.raises(
        ConfigError, match=rf"evaluation.images=1000: test has {PAIRED} pairs, lower it or add images"
    ):
        _run(_spec(places, images=1000))


def test_a_regression_is_sampled_once_and_has_no_noise(places: Places) -> None:
    _train(places, _translator(kind="regression"))
    content, counts = _run(_spec(places))
    assert counts == {
        "samplers": ["direct-1"],
        "images": PAIRED,
        "nfe": {"direct-1": 1.0},
        "noise": {"direct-1": 1},
        "noise_images": 4,
    }
    assert [path.name for path in content.iterdir()] == ["direct-1"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the samplers that were really run, in order, with the numbers of their noise seeds."""
    names: list[str] = []
    plain = stage._Draw.tokens

    def tokens(draw: Any) -> Any:
        names.append(f"{draw.sampler.name} {draw.number}")
        yield from plain(draw)

    monkeypatch.setattr(stage._Draw, "tokens", tokens)
    return names


def test_another_sampler_or_noise_seed_leaves_the_others_as_they_are(
    places: Places, drawn: list[str]
) -> None:
    first, _ = _run(_spec(places, samplers=["euler-2", "euler-1"], noise_seeds=1))
    tokens = SampledTokens(first / "euler-2")[:]
    drawn.clear()
    content, counts = _run(_spec(places, samplers=["heun-2", "euler-2"], noise_seeds=2))
    assert drawn == ["heun-2 0", "heun-2 1", "euler-2 1"]
    assert np.array_equal(SampledTokens(content / "euler-2")[:], tokens)
    assert counts["nfe"] == {"heun-2": 3.0, "euler-2": 2.0}
    fresh = read_json(places.samples("flow", "test") / "run.json")["rates"]
    assert set(fresh) == {"images_per_s heun-2", "images_per_s euler-2"}


def test_result_is_the_same_whether_stores_were_kept_or_made(places: Places, tmp_path: Path) -> None:
    _run(_spec(places, samplers=["euler-1"]))
    _run(_spec(places, samplers=["euler-1", "euler-2"]))
    kept = read_json(places.samples("flow", "test") / "manifest.json")
    shutil.rmtree(places.samples("flow", "test"))
    _run(_spec(places, samplers=["euler-1", "euler-2"]))
    assert read_json(places.samples("flow", "test") / "manifest.json") == kept


def test_a_killed_attempt_goes_on_with_the_sampler_in_hand(
    places: Places, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(places, samplers=["euler-1", "euler-2"], noise_seeds=2)
    with monkeypatch.context() as patch:
        plain = stage.write_tokens

        def killed(store: Path, *arguments: Any, **settings: Any) -> Any:
            if store.name == "euler-2":
                raise KeyboardInterrupt
            return plain(store, *arguments, **settings)

        patch.setattr(stage, "write_tokens", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.run(spec)
    drawn.clear()
    _run(spec)
    assert drawn == ["euler-2 0", "euler-2 1"]


@pytest.mark.parametrize("change", ["checkpoint", "seed", "code", "images", "damage"])
def test_what_samples_depend_on_makes_them_anew(places: Places, drawn: list[str], change: str) -> None:
    spec = _spec(places, samplers=["euler-2"], noise_seeds=1)
    content, _ = _run(spec)
    drawn.clear()
    changed = _spec(places, samplers=["euler-2", "euler-1"], noise_seeds=1)
    if change == "checkpoint":
        _train(places, _translator())
        write_json(
            places.train("flow") / "manifest.json",
            {"content": "content", "stage": "train", "counts": {"x": 1}},
        )
    elif change == "seed":
        changed = _spec(places, samplers=["euler-2", "euler-1"], noise_seeds=1, seed=9)
    elif change == "code":
        changed = replace(changed, code=("code@2",))
    elif change == "images":
        changed = _spec(places, PAIRED - 2, samplers=["euler-2", "euler-1"], noise_seeds=1)
    else:
        with (content / "euler-2" / "tokens" / "c.0.0.0").open("r+b") as file:
            file.truncate(10)
    _run(changed)
    assert drawn == ["euler-2 0", "euler-1 0"]


def test_rates_are_those_of_the_first_noise_seed(places: Places) -> None:
    _run(_spec(places))
    rates = read_json(places.samples("flow", "test") / "run.json")["rates"]
    assert set(rates) == {f"images_per_s {name}" for name in SAMPLING["samplers"]}
    assert min(rates.values()) > 0


def test_samples_that_are_not_finite_are_rejected_by_key_with_one_warning(
    places: Places, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = Translator.load
    lost = [2, 7]

    def diverged(folder: Path) -> Translator:
        translator = load(folder)
        encode = translator.network.encode_condition
        rows = _pairs(places).source()[lost]

        def encode_condition(source: torch.Tensor, keep: torch.Tensor | None = None) -> Any:
            wrong = torch.from_numpy(rows).to(source)
            scaled = translator.statistics.source.apply(wrong)
            is_lost = (source[:, None] == scaled[None]).all(dim=(2, 3)).any(dim=1)
            return encode(source.masked_fill(is_lost[:, None, None], torch.nan), keep)

        monkeypatch.setattr(translator.network, "encode_condition", encode_condition)
        return translator

    monkeypatch.setattr(Translator, "load", diverged)
    monkeypatch.setattr(stage, "BATCH", 4)
    with caplog.at_level(logging.WARNING, logger="flowkit"):
        content, counts = _run(_spec(places, samplers=["heun-2", "adaptive-1"], noise_seeds=2))
    keys = [_key(tar, member) for tar in TARS for member in range(MEMBERS) if member != BROKEN]
    for name in ("heun-2", "adaptive-1"):
        assert SampledTokens(content / name).refused_keys == [keys[row] for row in lost]
        assert SampledTokens(content / name).keys == [key for row, key in enumerate(keys) if row not in lost]
        assert SampledTokens(content / "noise-1" / name).refused_keys == [keys[2]]
    assert counts["images"] == PAIRED
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        "samples_not_finite=6 of 2 images with heun-2, heun-2 noise 1, adaptive-1, adaptive-1 noise 1"
        in warning
    )
    assert f"{keys[2]}, {keys[7]}" in warning


def test_an_identical_remake_leaves_an_identical_manifest(places: Places) -> None:
    spec = _spec(places)
    stage.run(spec)
    manifest = (places.samples("flow", "test") / "manifest.json").read_bytes()
    stage.run(replace(spec, code=("code@2",)))
    assert (places.samples("flow", "test") / "manifest.json").read_bytes() == manifest


def test_planned_size_counts_the_stores_of_noise(places: Places) -> None:
    folder = places.samples("flow", "test")
    _run(_spec(places))
    planned = samples_size(TOKENS, TARGET_WIDTH, [PAIRED] * 5 + [4] * 8, noise_folders=2)
    found = [folder, *folder.rglob("*")]
    real = Amount(sum(path.stat().st_size for path in found if path.is_file()), len(found))
    assert planned.files == pytest.approx(real.files, rel=0.02)
    assert planned.bytes == pytest.approx(real.bytes, rel=0.15)
