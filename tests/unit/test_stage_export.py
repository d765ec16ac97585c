"""Stage `export`: results and folders of the user's, raw scale, refusals, and jobs."""

from __future__ import annotations

import errno
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_material import (
    CHANNELS,
    IMAGES,
    KEYS,
    SAMPLERS,
    TOKENS,
    WIDTH,
    export_spec,
    head_tensors,
    true_tokens,
    write_manifest,
    write_results,
    write_samples,
)
from paired_material import FLOW, MODEL, Pairs

from flowkit.encoders.head import apply_head
from flowkit.errors import ConfigError, StageError, StoreError
from flowkit.export import exporter
from flowkit.export.consumers import CONSUMERS
from flowkit.export.reading import read_export
from flowkit.features.samples import SampledTokens
from flowkit.paths import CLOSED_FORM, Places
from flowkit.provenance import file_digest, read_json, write_json
from flowkit.sampling.sampler import parse_sampler, sample
from flowkit.stages import export as stage
from flowkit.stages import export_into as stage_into
from flowkit.stages.session import Spec, committed, session_key
from flowkit.training.statistics import fit_statistics
from flowkit.translator import Translator, build_network

ALL = tuple(CONSUMERS)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return write_results(tmp_path)


def test_every_consumer_gets_its_form_of_the_first_sampler(places: Places) -> None:
    stage.run(export_spec(places, *ALL))
    content, manifest = committed(places.export("flow"))
    tokens = SampledTokens(places.samples("flow", "test") / "content" / SAMPLERS[0])[:]
    expected = {
        "channels_first": tokens[:, 1:].transpose(0, 2, 1),
        "channels_last": tokens[:, 1:],
        "pooled": torch.nn.functional.normalize(
            apply_head(torch.from_numpy(tokens), head_tensors()), dim=1
        ).numpy(),
    }
    assert {path.name for path in content.iterdir()} == {SAMPLERS[0]}
    for name in ALL:
        found = read_export(content / SAMPLERS[0] / name)
        assert found.keys == KEYS
        np.testing.assert_allclose(found.embeddings.numpy(), expected[CONSUMERS[name].form], atol=1e-6)
        assert found.description["consumer"] == name
        assert found.description["run"] == "flow"
        assert found.description["encoder"] == "open_clip:ViT-L-14-quickgelu/openai"
        assert found.description["made_from"]["samples/test"] == "content"
    assert manifest["counts"]["exports"][SAMPLERS[0]]["point-e"] == [IMAGES, CHANNELS, TOKENS - 1]
    for name, digest in manifest["files"].items():
        assert file_digest(content / name) == digest


def test_one_form_lies_there_once(places: Places) -> None:
    stage.run(export_spec(places, "point-e", "shap-e"))
    content, _ = committed(places.export("flow"))
    first, second = (
        content / SAMPLERS[0] / name / "embeddings.safetensors" for name in ("point-e", "shap-e")
    )
    assert first.samefile(second)


def test_it_is_adopted_and_made_again_for_other_values(places: Places) -> None:
    stage.run(export_spec(places, "point-e"))
    content, _ = committed(places.export("flow"))
    made = (content / SAMPLERS[0] / "point-e" / "embeddings.safetensors").stat().st_mtime_ns
    stage.run(export_spec(places, "point-e"))
    assert (content / SAMPLERS[0] / "point-e" / "embeddings.safetensors").stat().st_mtime_ns == made
    stage.run(export_spec(places, "point-e", samplers=(SAMPLERS[1],), file_format="npz"))
    other, _ = committed(places.export("flow"))
    assert [path.name for path in other.iterdir()] == [SAMPLERS[1]]
    assert (other / SAMPLERS[1] / "point-e" / "embeddings.npz").is_file()


def test_true_tokens_are_those_of_the_stores(places: Places) -> None:
    stage.run(export_spec(places, "shap-e-diffusers", "openshape", run="true", layout="patches"))
    content, _ = committed(places.export("true"))
    found = read_export(content / CLOSED_FORM / "shap-e-diffusers")
    assert np.array_equal(found.embeddings.numpy(), true_tokens()[:, 1:].astype(np.float32))
    assert read_export(content / CLOSED_FORM / "openshape").embeddings.shape == (IMAGES, WIDTH)


def test_a_standardised_translators_export_is_on_the_raw_scale(tmp_path: Path) -> None:
    """What a network makes in standardised channels leaves the export in the target's own units."""
    pairs = Pairs(64)
    places = write_results(tmp_path, tokens=pairs.target[:IMAGES].numpy())
    shift, spread = (
        torch.linspace(-40, 40, pairs.target.shape[2]),
        torch.logspace(-1, 2, pairs.target.shape[2]),
    )
    pairs.target = pairs.target * spread + shift
    statistics = fit_statistics(pairs, feature_scale="standardize", start_noise=FLOW.start_noise)
    translator = Translator(build_network(MODEL, seed=5).eval(), MODEL, FLOW, "standardize", statistics)
    (made,) = sample(
        translator, [(KEYS, pairs.source[:IMAGES])], parse_sampler("euler-1"), seed=0, guidance_scale=1.0
    )
    write_samples(places, "scaled", {"euler-1": made.tokens_BTC.numpy()})
    stage.run(export_spec(places, "shap-e-diffusers", run="scaled"))
    content, _ = committed(places.export("scaled"))
    rows = read_export(content / "euler-1" / "shap-e-diffusers").embeddings
    np.testing.assert_allclose(rows.numpy(), made.tokens_BTC[:, 1:].half().float().numpy())
    # an untrained network says 0 in every standardised channel, which is the mean of the raw ones
    mean_D = pairs.target.mean(dim=(0, 1))
    torch.testing.assert_close(rows, mean_D.expand_as(rows), rtol=2e-3, atol=2e-3)
    assert mean_D.abs().max() > 20  # on the standardised scale it would be 0


def test_what_was_refused_is_named_in_the_log(places: Places, caplog: pytest.LogCaptureFixture) -> None:
    tokens = true_tokens().astype(np.float32)
    tokens[4] = np.nan
    write_samples(places, "lost", {"euler-1": tokens})
    with caplog.at_level(logging.WARNING):
        stage.run(export_spec(places, "point-e", run="lost"))
    assert "left_out=1" in caplog.text
    assert KEYS[4] in caplog.text


@pytest.mark.parametrize("encoder", ["demo-vit", "open_clip:ViT-B-16/openai"])
def test_stores_of_the_wrong_encoder_are_refused(tmp_path: Path, encoder: str) -> None:
    places = write_results(tmp_path, encoder=encoder)
    with pytest.raises(ConfigError, match=f"these tokens are of {encoder}"):
        stage.run(export_spec(places, "point-e"))
    stage.run(export_spec(places, "point-e", any_encoder=True))
    content, _ = committed(places.export("flow"))
    described = read_json(content / SAMPLERS[0] / "point-e" / "export.json")
    assert (described["encoder"], described["any_encoder"]) == (encoder, True)


def test_pooled_from_patches_is_refused(places: Places) -> None:
    with pytest.raises(ConfigError, match="the tower makes of its class token"):
        stage.run(export_spec(places, "openshape", layout="patches"))


@pytest.mark.parametrize(
    ("layout", "shape", "says"),
    [
        (
            "patches",
            (TOKENS, CHANNELS),
            "5 tokens of 12 channels, expected 4 of 12 .*data.layout=cls_patches would fit",
        ),
        (
            "cls_patches",
            (TOKENS - 1, CHANNELS),
            "4 tokens of 12 .*expected 5 of 12 .*data.layout=patches would fit",
        ),
        (
            "pooled",
            (TOKENS, CHANNELS),
            "5 tokens of 12 channels, expected 1 of 6 .*data.layout=cls_patches would fit",
        ),
        ("pooled", (1, CHANNELS), "1 tokens of 12 channels, expected 1 of 6 .*no layout fits them"),
        (
            "cls_patches",
            (1, WIDTH),
            "1 tokens of 6 channels, expected 5 of 12 .*data.layout=pooled would fit",
        ),
    ],
)
def test_samples_of_another_layout_are_refused(
    places: Places, layout: str, shape: tuple[int, int], says: str
) -> None:
    write_samples(places, "old", {"euler-1": np.ones((IMAGES, *shape), np.float16)})
    consumer = "openshape" if layout == "pooled" else "point-e"
    with pytest.raises(StoreError, match=f"samples of old, euler-1: {says}"):
        stage.run(export_spec(places, consumer, run="old", layout=layout))
    assert not (places.export("old") / "manifest.json").exists()


@pytest.mark.parametrize(("layout", "shape"), [("patches", (TOKENS - 1, CHANNELS)), ("pooled", (1, WIDTH))])
def test_samples_of_the_configured_layout_are_taken(
    places: Places, layout: str, shape: tuple[int, int]
) -> None:
    tokens = np.random.default_rng(0).normal(size=(IMAGES, *shape)).astype(np.float16)
    write_samples(places, "other", {"euler-1": tokens})
    consumer = "openshape" if layout == "pooled" else "shap-e-diffusers"
    stage.run(export_spec(places, consumer, run="other", layout=layout))
    rows = read_export(committed(places.export("other"))[0] / "euler-1" / consumer).embeddings
    expected = torch.from_numpy(tokens.astype(np.float32))
    if layout == "pooled":
        expected = torch.nn.functional.normalize(expected[:, 0], dim=1)
    torch.testing.assert_close(rows, expected)


def test_samples_of_other_images_are_refused(places: Places) -> None:
    tokens = true_tokens()
    write_samples(places, "fewer", {"euler-1": tokens[:7]})
    with pytest.raises(StoreError, match="7 images, expected 10; sample the run again"):
        stage.run(export_spec(places, "point-e", run="fewer"))
    exchanged = [KEYS[1], KEYS[0], *KEYS[2:]]
    write_samples(places, "exchanged", {"euler-1": tokens}, keys=exchanged)
    with pytest.raises(StoreError, match="place 0 holds image 'image-01', expected 'image-00'"):
        stage.run(export_spec(places, "point-e", run="exchanged"))


def test_an_export_without_a_row_is_an_error(places: Places, tmp_path: Path) -> None:
    lost = np.full((IMAGES, TOKENS, CHANNELS), np.nan, np.float32)
    write_samples(places, "lost", {"euler-1": lost})
    with pytest.raises(StoreError, match=r"no row is left to export: 10 samples refused when .*has diverged"):
        list(stage_into.run_into([export_spec(places, "point-e", run="lost")], tmp_path / "mine"))
    assert not list((tmp_path / "mine").iterdir())


def test_a_sampler_that_was_not_run_is_refused(places: Places) -> None:
    with pytest.raises(ConfigError, match="run flow was sampled with heun-2, euler-1"):
        stage.run(export_spec(places, "point-e", samplers=("heun-7",)))


def test_a_folder_of_the_users_gets_the_same_files_and_digests(places: Places, tmp_path: Path) -> None:
    spec = export_spec(places, "point-e", "openshape")
    (written,) = stage_into.run_into([spec], tmp_path / "mine")
    assert written == tmp_path / "mine" / "flow"
    assert not places.export("flow").exists()
    manifest = read_json(written / "manifest.json")
    for name, digest in manifest["files"].items():
        assert file_digest(written / name) == digest
    stage.run(spec)
    assert committed(places.export("flow"))[1]["files"] == manifest["files"]


def test_nothing_is_written_over_what_is_there(places: Places, tmp_path: Path) -> None:
    specs = [export_spec(places, "point-e", run="true"), export_spec(places, "point-e")]
    (tmp_path / "mine" / "flow").mkdir(parents=True)
    with pytest.raises(StageError, match=r"mine/flow: exists, and exports are not written over"):
        list(stage_into.run_into(specs, tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["flow"]


def test_a_failed_export_leaves_nothing(places: Places, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        list(
            stage_into.run_into(
                [export_spec(places, "point-e", "openshape", layout="patches")], tmp_path / "mine"
            )
        )
    assert not list((tmp_path / "mine").iterdir())


def _sampled_by_stage(places: Places) -> Spec:
    """The run records of a training and of the samples that were made from it."""
    write_manifest(places.train("flow"), {})
    values = {"sampling": {"weights": "best", "guidance_scale": 1.5, "seed": 7}}
    target = {"run": "flow", "dataset": "test", "source": "source", "target": "target"}
    spec = Spec("sample", target, values, places, ("sampling@1",))
    folder = places.samples("flow", "test")
    write_json(folder / "run.json", {"stage": "sample", "spec": spec.as_dict(), "code": list(spec.code)})
    key = session_key(spec, [places.train("flow"), places.pairs("test", "source", "target")])
    write_json(folder / "state" / f"made-{key}.json", {"content": "content"})
    return spec


def _described(places: Places, **asked: Any) -> dict[str, Any]:
    stage.run(export_spec(places, "point-e", **asked))
    content, _ = committed(places.export(asked.get("run", "flow")))
    (found,) = content.glob("*/point-e/export.json")
    return dict(read_json(found))


def test_an_export_says_what_it_was_made_from(places: Places) -> None:
    _sampled_by_stage(places)
    described = _described(places)
    assert described["source_encoder"]["name"] == "demo-eva"
    assert described["source_encoder"]["weights_sha256"] == "sha256 of source"
    assert described["encoder_weights_sha256"] == "sha256 of target"
    assert described["preprocessing"] == {"resize": "that of target"}
    assert (described["grid"], described["patch_order"]) == ([2, 2], "row by row, from the top left")
    assert described["views"] == 1
    assert described["translated"] == {
        "checkpoint": "content",
        "weights": "best",
        "guidance_scale": 1.5,
        "noise_seed": 7,
    }
    assert len(described["flowkit"]["code"]) == 16
    assert _described(places, run="true")["translated"] is None


def test_a_checkpoint_that_was_replaced_is_not_named(places: Places) -> None:
    """Trained again and not sampled again: the samples are not of the checkpoint that lies there now."""
    _sampled_by_stage(places)
    write_json(places.train("flow") / "manifest.json", {"content": "later", "stage": "train", "counts": {}})
    assert _described(places)["translated"]["checkpoint"] is None


def test_weights_from_a_file_are_named_as_such_and_no_path_leaves_the_machine(tmp_path: Path) -> None:
    places = write_results(tmp_path, encoder="open_clip:ViT-L-14-quickgelu/openai=/secret/place/mine.pt")
    spec = export_spec(places, "point-e")
    (written,) = stage_into.run_into([spec], tmp_path / "mine")
    described = read_json(written / SAMPLERS[0] / "point-e" / "export.json")
    assert described["encoder"] == "open_clip:ViT-L-14-quickgelu/openai=mine.pt"
    assert "from a file" in described["encoder_weights"]
    assert "not compared" in described["encoder_weights"]
    assert described["encoder_weights_sha256"] == "sha256 of target"
    assert described["source_encoder"]["weights"] == "as published under this name"
    for path in written.rglob("*.json"):
        text = path.read_text()
        assert "/secret" not in text
        assert str(tmp_path) not in text
    assert read_json(written / "manifest.json")["code"] == list(spec.code)


def test_two_at_once_give_one_whole_export(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both begin before there is anything; whoever ends later is refused, and nothing of the two is mixed."""
    specs = [export_spec(places, "point-e", samplers=(sampler,)) for sampler in SAMPLERS]
    begun, own_folder = threading.Barrier(2), stage_into._own_folder

    def together(final: Path) -> Path:
        made = own_folder(final)
        begun.wait(30)
        return made

    def one(spec: Spec) -> Path | str:
        try:
            return next(stage_into.run_into([spec], tmp_path / "mine"))
        except StageError as error:
            return str(error)

    monkeypatch.setattr(stage_into, "_own_folder", together)
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(one, specs))
    (written,) = [end for end in ends if isinstance(end, Path)]
    (refused,) = [end for end in ends if isinstance(end, str)]
    assert re.search(r"mine/flow: (exists|Directory not empty)", refused)
    manifest = read_json(written / "manifest.json")
    assert list(manifest["counts"]["exports"]) == [SAMPLERS[ends.index(written)]]
    for name, digest in manifest["files"].items():
        assert file_digest(written / name) == digest
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["flow"]


def test_a_name_that_is_taken_meanwhile_is_left_alone(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the rename somebody puts a folder there."""
    theirs = tmp_path / "mine" / "flow" / "theirs"
    looks = iter([lambda folder: None, lambda folder: theirs.mkdir(parents=True)])
    monkeypatch.setattr(stage_into, "demand_new", lambda folder: next(looks)(folder))
    with pytest.raises(StageError, match=r"mine/flow: Directory not empty.*name another one"):
        list(stage_into.run_into([export_spec(places, "point-e")], tmp_path / "mine"))
    assert [path.name for path in theirs.parent.iterdir()] == ["theirs"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["flow"]


def test_places_that_hold_no_folder_are_refused_in_one_line(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = export_spec(places, "point-e")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StageError, match=r"^\S+/file: is a file, and exports go into a folder; name another one$"
    ):
        list(stage_into.run_into([spec], tmp_path / "file"))
    with pytest.raises(StageError, match=r"file/below: Not a directory; exports go into a new folder"):
        list(stage_into.run_into([spec], tmp_path / "file" / "below"))

    def refuse(**_: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(stage_into.tempfile, "mkdtemp", refuse)
    with pytest.raises(
        StageError, match=r"mine: Permission denied; exports go into a new folder that can be"
    ):
        list(stage_into.run_into([spec], tmp_path / "mine"))


def test_without_hard_links_the_files_are_copies(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(exporter.os, "link", refuse)
    (written,) = stage_into.run_into([export_spec(places, "point-e", "shap-e")], tmp_path / "mine")
    first, second = (read_export(written / SAMPLERS[0] / name) for name in ("point-e", "shap-e"))
    assert torch.equal(first.embeddings, second.embeddings)
    assert first.keys == second.keys == KEYS
    assert second.description["consumer"] == "shap-e"
