"""What exports promise to their consumers, on diffusers' own code with small random weights.

The tower has the architecture of openai's ViT-L/14 - 1024 wide, 256 patches of 14 pixels, QuickGELU - with two blocks,
and the prior the settings of openai/shap-e-img2img but for its size. True features that went through the export
make the prior say what it says to diffusers' own encoder; every fault that an export could have is planted and seen.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from diffusers import PriorTransformer, ShapEImg2ImgPipeline
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from typer.testing import CliRunner
from unit.prior_material import LATENT_WIDTH, LATENTS, heun_scheduler, tiny_prior, write_weights
from unit.reference_material import random_reference, same_tower

from flowkit.encoders.contract import FrozenEncoder
from flowkit.errors import StoreError
from flowkit.export import layouts
from flowkit.export.consumers import CONSUMERS
from flowkit.export.exporter import Content, write_export
from flowkit.export.hooks import (
    given_embeddings,
    given_image_embeds,
    prior_condition,
    shape_similarity,
)
from flowkit.export.layouts import Grid
from flowkit.export.reading import read_export
from flowkit.export.sources import ArrayTokens, StoredTokens, TokenSource
from flowkit.features.samples import write_tokens

BAR = 1e-5
SEEN = 1e-3
"""A fault must change the prior's output by this much at least, a hundred times the bar."""
KEYS = ["one", "two", "three"]
LAYER_NORM = torch.nn.functional.layer_norm
GRID_FILL, APPLY_HEAD = Grid.fill, layouts.apply_head
EXAMPLE = Path(__file__).parents[2] / "docs/examples/shap_e_from_export.py"


@dataclass(frozen=True)
class Scene:
    """Three images, the tower that flowkit makes, and diffusers' pipeline with the same weights."""

    pixels_NCHW: torch.Tensor
    encoder: FrozenEncoder
    pipeline: ShapEImg2ImgPipeline
    tokens_NTD: torch.Tensor

    @property
    def prior(self) -> PriorTransformer:
        return self.pipeline.prior

    def output(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What the prior says at a fixed latent and time."""
        latents = torch.randn(
            len(embeddings), LATENTS, LATENT_WIDTH, generator=torch.Generator().manual_seed(3)
        )
        with torch.no_grad():
            return self.prior(latents, timestep=500, proj_embedding=embeddings).predicted_image_embedding

    def reference(self) -> torch.Tensor:
        """What it says to the image encoder of the pipeline itself."""
        with torch.no_grad():
            return self.output(self.pipeline._encode_image(self.pixels_NCHW, "cpu", 1, False))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    torch.set_num_threads(1)
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        projection_dim=768,
        num_hidden_layers=2,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    reference = random_reference(config, "quick_gelu")
    vision = CLIPVisionModel(config).eval()
    wanted = vision.state_dict()
    theirs = {key.removeprefix("vision_model."): value for key, value in reference.state_dict().items()}
    vision.load_state_dict({key: theirs[key.removeprefix("vision_model.")] for key in wanted})
    pipeline = ShapEImg2ImgPipeline(
        prior=tiny_prior(1024),
        image_encoder=vision,
        image_processor=None,
        scheduler=heun_scheduler(),
        shap_e_renderer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    encoder = same_tower(tmp_path_factory.mktemp("tower"), reference)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 240, 300, 3), dtype=np.uint8)
    pixels = torch.stack([encoder.preprocess(Image.fromarray(picture)) for picture in pictures])
    return Scene(pixels, encoder, pipeline, encoder.encode(pixels)[0])


def exported(folder: Path, name: str, tokens: TokenSource | torch.Tensor) -> torch.Tensor:
    """Tokens with class token through the export and back."""
    source = ArrayTokens(tokens.numpy(), KEYS[: len(tokens)]) if isinstance(tokens, torch.Tensor) else tokens
    write_export(folder, CONSUMERS[name], source, Content("cls_patches"))
    return read_export(folder).embeddings


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_true_features_make_what_diffusers_own_encoder_makes(scene: Scene, tmp_path: Path) -> None:
    rows = exported(tmp_path / "out", "shap-e-diffusers", scene.tokens_NTD)
    assert rows.shape == (3, 256, 1024)
    found, expected = scene.output(rows), scene.reference()
    assert relative(found, expected) <= BAR
    torch.testing.assert_close(found, expected, rtol=0, atol=BAR)


def test_a_store_costs_its_rounding_and_nothing_else(scene: Scene, tmp_path: Path) -> None:
    write_tokens(tmp_path / "store", [scene.tokens_NTD.numpy()], {}, keys=KEYS)
    rows = exported(tmp_path / "out", "shap-e-diffusers", StoredTokens(tmp_path / "store"))
    with torch.no_grad():
        theirs = scene.pipeline._encode_image(scene.pixels_NCHW, "cpu", 1, False)
    assert relative(rows, theirs) < 2**-11
    assert relative(scene.output(rows), scene.output(theirs.half().float())) <= 1e-3
    assert relative(scene.output(rows), scene.reference()) <= 1e-3


def test_the_originals_form_is_the_same_grid_channels_first(scene: Scene, tmp_path: Path) -> None:
    """Point-E and Shap-E permute [N, D, T] to [N, T, D] before their norm: what they see is what diffusers sees."""
    rows = exported(tmp_path / "out", "shap-e", scene.tokens_NTD)
    assert rows.shape == (3, 1024, 256)
    assert relative(scene.output(rows.permute(0, 2, 1)), scene.reference()) <= BAR


def _final_norm(scene: Scene, rows: torch.Tensor) -> torch.Tensor:
    head = scene.encoder.head()
    return LAYER_NORM(rows, (1024,), head["norm.weight"], head["norm.bias"], 1e-5)


FAULTS: dict[str, Callable[[Scene, torch.Tensor], torch.Tensor]] = {
    "clipped": lambda _, rows: rows.clamp(-1, 1),
    "clipped at three spreads": lambda _, rows: rows.clamp(-3 * rows.std(), 3 * rows.std()),
    "channels taken for patches": lambda _, rows: rows.transpose(1, 2).reshape(3, 256, 1024),
    "final norm applied": _final_norm,
    "class token kept": lambda scene, rows: torch.cat([scene.tokens_NTD[:, :1], rows[:, :-1]], 1),
    "standardised channels": lambda _, rows: (rows - rows.mean((0, 1))) / rows.std((0, 1)),
    "one channel shifted": lambda _, rows: rows + 3 * rows.std() * torch.eye(1024)[7],
    "images exchanged": lambda _, rows: rows[[1, 2, 0]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_seen(scene: Scene, tmp_path: Path, fault: str) -> None:
    rows = exported(tmp_path / "out", "shap-e-diffusers", scene.tokens_NTD)
    assert relative(scene.output(FAULTS[fault](scene, rows)), scene.reference()) > SEEN


def _interleaved(self: Grid, out: torch.Tensor, tokens_BTD: torch.Tensor) -> list[int]:
    """Even channels before odd ones."""
    lost = GRID_FILL(self, out, tokens_BTD)
    out.copy_(torch.cat([out[..., ::2], out[..., 1::2]], -1))
    return lost


def _normalised(self: Grid, out: torch.Tensor, tokens_BTD: torch.Tensor) -> list[int]:
    """A norm over channels with weights, as the tower's final one has: the consumer's own norm does not undo it."""
    lost = GRID_FILL(self, out, tokens_BTD)
    out.copy_(LAYER_NORM(out, out.shape[-1:]) * torch.linspace(0.5, 2, out.shape[-1]))
    return lost


def _last_dropped(self: Grid, out: torch.Tensor, tokens_BTD: torch.Tensor) -> list[int]:
    """The class token kept, the last patch left out."""
    return GRID_FILL(self, out, torch.cat([tokens_BTD[:, -1:], tokens_BTD[:, :-1]], 1))


def _scaled(self: Grid, out: torch.Tensor, tokens_BTD: torch.Tensor) -> list[int]:
    """Every other channel a twentieth too large."""
    lost = GRID_FILL(self, out, tokens_BTD)
    out[:, :, ::2] *= 1.05
    return lost


MISMADE = {
    "channel order": _interleaved,
    "a norm of its own": _normalised,
    "wrong token dropped": _last_dropped,
    "half of the channels scaled": _scaled,
}


@pytest.mark.parametrize("fault", MISMADE)
def test_rows_that_are_made_wrongly_are_seen(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The comparison of the first test fails for an export whose own code is at fault."""
    monkeypatch.setattr(Grid, "fill", MISMADE[fault])
    rows = exported(tmp_path / "out", "shap-e-diffusers", scene.tokens_NTD)
    assert relative(scene.output(rows), scene.reference()) > SEEN


def _embeddings(scene: Scene, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Exported embeddings, and those of the pipeline's tower through transformers' own norm, with our projection."""
    head = scene.encoder.head()
    source = ArrayTokens(scene.tokens_NTD.numpy(), KEYS)
    write_export(folder, CONSUMERS["openshape"], source, Content("cls_patches", head=head))
    with torch.no_grad():
        pooled = scene.pipeline.image_encoder(scene.pixels_NCHW).pooler_output  # behind the final norm
        expected = torch.nn.functional.normalize(pooled @ head["projection.weight"].T, dim=1)
    return read_export(folder).embeddings, expected


def test_pooled_rows_are_the_towers_own(scene: Scene, tmp_path: Path) -> None:
    found, expected = _embeddings(scene, tmp_path / "out")
    assert relative(found, expected) <= BAR


POOLED_FAULTS: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "another image's class token": (
        "apply_head",
        lambda tokens, head: APPLY_HEAD(tokens.roll(1, 0), head),
    ),
    "no final norm": ("apply_head", lambda tokens, head: tokens[:, 0] @ head["projection.weight"].T),
    "channel order": ("apply_head", lambda tokens, head: APPLY_HEAD(tokens, head).roll(1, 1)),
}


@pytest.mark.parametrize("fault", POOLED_FAULTS)
def test_pooled_rows_that_are_made_wrongly_are_seen(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    name, wrong = POOLED_FAULTS[fault]
    monkeypatch.setattr(layouts, name, wrong)
    found, expected = _embeddings(scene, tmp_path / "out")
    assert relative(found, expected) > SEEN


UNSEEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "patches of one length": lambda rows: torch.nn.functional.normalize(rows, dim=2) * 30,
    "transposed grid": lambda rows: rows.reshape(3, 16, 16, 1024).transpose(1, 2).reshape(3, 256, 1024),
}


@pytest.mark.parametrize("fault", UNSEEN)
def test_what_the_prior_cannot_see_is_seen_in_the_rows(scene: Scene, tmp_path: Path, fault: str) -> None:
    """Its condition passes a norm and has no positions: neither lengths of patches nor their order reach the output."""
    rows = exported(tmp_path / "out", "shap-e-diffusers", scene.tokens_NTD)
    changed = UNSEEN[fault](rows)
    assert relative(scene.output(changed), scene.reference()) < SEEN
    assert relative(changed, scene.tokens_NTD[:, 1:]) > SEEN
    assert torch.equal(rows, scene.tokens_NTD[:, 1:])


def test_translated_features_change_the_output_continuously(scene: Scene, tmp_path: Path) -> None:
    """A smaller error makes a smaller change, in proportion where it is small."""
    error = torch.randn(scene.tokens_NTD.shape, generator=torch.Generator().manual_seed(5))
    sizes = [2.0**-number for number in range(9)]
    changes = []
    for number, size in enumerate(sizes):
        rows = exported(tmp_path / str(number), "shap-e-diffusers", scene.tokens_NTD + size * error)
        changes.append(relative(scene.output(rows), scene.reference()))
    assert all(later < earlier for earlier, later in pairwise(changes))
    slopes = [change / size for change, size in zip(changes, sizes, strict=True)]
    assert max(slopes[4:]) / min(slopes[4:]) < 1.1
    assert max(slopes) < 1.5 * slopes[-1]


def test_the_pipeline_takes_rows_in_the_place_of_images(scene: Scene, tmp_path: Path) -> None:
    """Whole sampling with guidance and two drafts per image, without its image encoder."""
    rows = exported(tmp_path / "out", "shap-e-diffusers", scene.tokens_NTD)
    latents = torch.randn(6, LATENTS * LATENT_WIDTH, generator=torch.Generator().manual_seed(1))
    options = {
        "num_inference_steps": 3,
        "output_type": "latent",
        "guidance_scale": 3.0,
        "num_images_per_prompt": 2,
    }
    expected = scene.pipeline(scene.pixels_NCHW, latents=latents.clone(), **options).images
    with given_image_embeds(scene.pipeline, rows) as image:
        found = scene.pipeline(image, latents=latents.clone(), **options).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    again = scene.pipeline(scene.pixels_NCHW, latents=latents.clone(), **options).images
    assert torch.equal(again, expected), "after the hook the pipeline encodes images again"
    with (
        pytest.raises(StoreError, match="3 exported rows for a batch of 2 images"),
        given_image_embeds(scene.pipeline, rows),
    ):
        scene.pipeline(torch.zeros(2, 1), **options)


class Original(torch.nn.Module):
    """How Point-E's and Shap-E's models answer their samplers: they encode the images that are named."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(1))

    def cached_model_kwargs(
        self, batch_size: int, model_kwargs: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        if "images" in model_kwargs:
            raise AssertionError("would encode images")
        return {"embeddings": torch.zeros(batch_size, 4, 2), "low_res": model_kwargs["low_res"]}


def conditions(model: Original, batch_size: int, model_kwargs: dict[str, object]) -> dict[str, torch.Tensor]:
    """What both samplers make of the answer where there is guidance."""
    found = model.cached_model_kwargs(batch_size, model_kwargs)  # type: ignore[arg-type]
    return {key: torch.cat([value, torch.zeros_like(value)]) for key, value in found.items()}


class Split(torch.nn.Module):
    """How Shap-E wraps its models: the method of the wrapped one is an attribute of the wrapping object itself."""

    def __init__(self) -> None:
        super().__init__()
        self.wrapped = Original()
        self.cached_model_kwargs = self.wrapped.cached_model_kwargs


@pytest.fixture(params=[Original, Split])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return request.param()


def test_the_originals_take_rows_in_the_place_of_images(model: Original) -> None:
    rows, low = torch.randn(3, 4, 2), torch.randn(3, 6, 5)
    with given_embeddings(model, rows) as images:
        assert len(images) == 3
        found = conditions(model, 3, {"images": images})
        assert list(found) == ["embeddings"]
        assert torch.equal(found["embeddings"][:3], rows)
        upsampled = conditions(model, 3, {"images": images, "low_res": low})
        assert torch.equal(upsampled["low_res"][:3], low)
        assert not conditions(model, 3, {"low_res": low})["embeddings"].any(), "no images, no rows"
        with pytest.raises(StoreError, match="3 exported rows for a batch of 4 images"):
            conditions(model, 4, {"images": [*images, images[0]]})
    for _ in range(2):  # as before, and after a second use
        with pytest.raises(AssertionError, match="would encode"):
            conditions(model, 3, {"images": images})
        with given_embeddings(model, rows):
            pass


def test_nested_hooks_give_back_the_one_outside(model: Original) -> None:
    outer, inner = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    with given_embeddings(model, outer) as images:
        with given_embeddings(model, inner):
            assert torch.equal(conditions(model, 3, {"images": images})["embeddings"][:3], inner)
        assert torch.equal(conditions(model, 3, {"images": images})["embeddings"][:3], outer)
    with pytest.raises(AssertionError, match="would encode"):
        conditions(model, 3, {"images": images})


def test_a_pipelines_hooks_may_be_nested(scene: Scene) -> None:
    outer, inner = torch.randn(1, 4, 1024), torch.randn(1, 4, 1024)
    own = scene.pipeline._encode_image
    with given_image_embeds(scene.pipeline, outer) as image:
        with given_image_embeds(scene.pipeline, inner):
            assert torch.equal(scene.pipeline._encode_image(image, "cpu", 1, False), inner)
        assert torch.equal(scene.pipeline._encode_image(image, "cpu", 1, False), outer)
    assert scene.pipeline._encode_image == own


def test_a_stand_in_is_no_picture_to_anyone() -> None:
    """A model that was forgotten must fail; as None its images would be black ones."""
    with given_embeddings(Original(), torch.randn(2, 4, 2)) as images:
        pass
    preprocess = Compose([Resize(8), CenterCrop(8), ToTensor()])  # as CLIP's own
    for image in images:
        assert image is not None
        with pytest.raises(TypeError):
            preprocess(image)
        with pytest.raises(TypeError, match="needs a hook of its own"):
            np.asarray(image)


def test_a_pipeline_in_half_precision_takes_rows(scene: Scene, tmp_path: Path) -> None:
    """Rows are float32; the weights that they meet may not be."""
    rows = exported(tmp_path / "out", "shap-e-diffusers", scene.tokens_NTD)
    pipeline = ShapEImg2ImgPipeline(
        prior=tiny_prior(1024).half(),
        image_encoder=scene.pipeline.image_encoder,
        image_processor=None,
        scheduler=heun_scheduler(),
        shap_e_renderer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(3, LATENTS * LATENT_WIDTH, generator=torch.Generator().manual_seed(1))
    options = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 3.0}
    with given_image_embeds(pipeline, rows) as image:
        found = pipeline(image, latents=latents.half(), **options).images
    with given_image_embeds(scene.pipeline, rows) as image:
        expected = scene.pipeline(image, latents=latents, **options).images
    assert relative(found.float(), expected) < 0.02


def test_guidance_puts_zeros_first() -> None:
    rows = torch.ones(2, 3, 4)
    assert torch.equal(prior_condition(rows, is_guided=True), torch.cat([torch.zeros(2, 3, 4), rows]))
    assert prior_condition(rows, is_guided=False) is rows


def test_shapes_of_another_clip_are_refused() -> None:
    images = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    assert torch.allclose(shape_similarity(images, 5 * images).diagonal(), torch.ones(3))
    with pytest.raises(StoreError, match=r"8 channels and shapes 12.*pointbert-vitl14-rgb"):
        shape_similarity(images, torch.randn(3, 12))


def test_the_example_makes_latents_of_an_export(scene: Scene, tmp_path: Path) -> None:
    exported(tmp_path / "out", "shap-e-diffusers", scene.tokens_NTD)
    example = runpy.run_path(str(EXAMPLE))
    weights = write_weights(tmp_path / "weights", 1024)
    example["main"](tmp_path / "out", weights, tmp_path / "latents.npz", steps=4, device="cpu")
    with np.load(tmp_path / "latents.npz") as made:
        assert made["keys"].tolist() == KEYS
        assert made["latents"].shape == (3, LATENTS * LATENT_WIDTH)
        latents = torch.from_numpy(made["latents"])
    start = example["start_noise"](KEYS, (LATENTS, LATENT_WIDTH), seed=0).flatten(1)
    theirs = scene.pipeline(
        scene.pixels_NCHW,
        latents=start * _initial_sigma(),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, theirs.flatten(1), rtol=1e-3, atol=1e-3)
    alone = [str(tmp_path / "out"), str(weights), str(tmp_path / "alone.npz"), "--key", KEYS[2]]
    command = typer.Typer()
    command.command()(example["main"])
    done = CliRunner().invoke(command, [*alone, "--steps", "4", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "alone.npz") as made:
        assert made["keys"].tolist() == [KEYS[2]]
        torch.testing.assert_close(torch.from_numpy(made["latents"]), latents[2:], rtol=1e-3, atol=1e-3)


def test_the_example_refuses_another_form(scene: Scene, tmp_path: Path) -> None:
    exported(tmp_path / "out", "shap-e", scene.tokens_NTD)
    example = runpy.run_path(str(EXAMPLE))
    with pytest.raises(ValueError, match=r"is for shap-e, laid out as channels_first.*shap-e-diffusers"):
        example["main"](tmp_path / "out", tmp_path, tmp_path / "latents.npz")


def _initial_sigma() -> float:
    """The pipeline scales only latents that it draws itself."""
    scheduler = heun_scheduler()
    scheduler.set_timesteps(4)
    return float(scheduler.init_noise_sigma)
