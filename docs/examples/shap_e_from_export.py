"""From an export to a 3-D model: Shap-E's latents of translated images, with diffusers and no image encoder.

    hf download openai/shap-e-img2img --local-dir shap-e-img2img
    flowkit export --config FILE --run flow --to handed-over --set export.consumers=shap-e-diffusers
    python docs/examples/shap_e_from_export.py handed-over/flow/heun-50/shap-e-diffusers shap-e-img2img latents.npz

Of the weights the parts `prior` and `scheduler` are used. The latents [N, 1024 * 1024] are what Shap-E's renderer
turns into pictures or a mesh; the loop is that of diffusers' ShapEImg2ImgPipeline. An image takes about 230 TFLOP (64
steps of two evaluations), so a handful is the default; the noise of an image is a function of its key, so which others
are asked for does not change it. To have the pipeline do all of it, renderer included:

    pipeline = ShapEImg2ImgPipeline.from_pretrained(folder)
    with given_image_embeds(pipeline, read_export(export).of(keys)) as image:
        pictures = pipeline(image, guidance_scale=3.0).images

It lies here and not in the package, because it needs diffusers, which flowkit itself does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import HeunDiscreteScheduler, PriorTransformer

from flowkit.export.hooks import prior_condition
from flowkit.export.reading import Export, read_export
from flowkit.flow.noise import keyed_normal

BATCH = 4
FORM = "channels_last"


@torch.no_grad()
def latents_of(
    embeddings_NTD: torch.Tensor,
    keys: Sequence[str],
    prior: PriorTransformer,
    scheduler: HeunDiscreteScheduler,
    *,
    guidance_scale: float = 3.0,
    steps: int = 64,
    seed: int = 0,
) -> torch.Tensor:
    """Return latents [N, numbers of one] of images whose exported rows are `embeddings_NTD`, on the prior's device."""
    device, dtype = prior.device, prior.dtype
    condition = prior_condition(embeddings_NTD, is_guided=True).to(device, dtype)
    size = (prior.config.num_embeddings, prior.config.embedding_dim)
    scheduler.set_timesteps(steps, device=device)
    noise = start_noise(keys, size, seed=seed)
    latents = noise.to(device, dtype) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        made = prior(both, timestep=timestep, proj_embedding=condition).predicted_image_embedding
        without, given = made[..., : size[1]].chunk(2)  # behind it lies the variance
        guided = without + guidance_scale * (given - without)
        latents = scheduler.step(guided, timestep=timestep, sample=latents).prev_sample
    return latents.flatten(1)


def start_noise(keys: Sequence[str], size: tuple[int, int], *, seed: int) -> torch.Tensor:
    """Return normal noise [N, *size], each image's by its key."""
    return keyed_normal([("shap-e", key, seed) for key in keys], size, "cpu")


def demand_form(export: Export) -> None:
    """Raise `ValueError` unless an export is for this model."""
    description = export.description
    if description["layout"] != FORM:
        raise ValueError(
            f"this export is for {description['consumer']}, laid out as {description['layout']}; Shap-E of diffusers "
            f"takes {FORM}: export with export.consumers=shap-e-diffusers"
        )


def main(
    export_folder: Annotated[Path, typer.Argument(help="FOLDER/<run>/<sampler>/shap-e-diffusers.")],
    weights: Annotated[Path, typer.Argument(help="openai/shap-e-img2img as `hf download` leaves it.")],
    out: Annotated[Path, typer.Argument(help="Where latents and keys go, as npz.")],
    images: Annotated[int, typer.Option(min=1, help="How many images, the first ones.")] = 4,
    keys: Annotated[list[str] | None, typer.Option("--key", help="This image; may be given again.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
) -> None:
    """Write Shap-E's latents of some images of an export."""
    export = read_export(export_folder)
    demand_form(export)
    chosen = list(keys) if keys else export.keys[:images]
    rows = export.of(chosen)
    prior = PriorTransformer.from_pretrained(
        weights / "prior", local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    )
    prior.eval().to(device)
    scheduler = HeunDiscreteScheduler.from_pretrained(weights / "scheduler", local_files_only=True)
    made = []
    for first in range(0, len(chosen), BATCH):
        part = slice(first, first + BATCH)
        made.append(latents_of(rows[part], chosen[part], prior, scheduler, steps=steps, seed=seed).cpu())
    np.savez(out, latents=torch.cat(made).float().numpy(), keys=np.array(chosen))


if __name__ == "__main__":
    typer.run(main)
