"""From an export to a 3-D model: Shap-E's latents of translated images, with diffusers and no image encoder.

    flowkit export --config FILE --run flow --to handed-over --set 'export.consumers=[shap-e-diffusers]'
    python docs/examples/shap_e_from_export.py handed-over/flow/heun-50/shap-e-diffusers shap-e-img2img latents.npz

The second argument is a folder as `hf download openai/shap-e-img2img` leaves it, of which the parts `prior` and
`scheduler` are used. The latents [N, 1024 * 1024] are what Shap-E's renderer turns into pictures or a mesh; the
loop is that of diffusers' ShapEImg2ImgPipeline. To have the pipeline do all of it, renderer included:

    pipeline = ShapEImg2ImgPipeline.from_pretrained(folder)
    with given_image_embeds(pipeline, read_export(export).of(keys)) as image:
        pictures = pipeline(image, guidance_scale=3.0).images

It lies here and not in the package, because it needs diffusers, which flowkit itself does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer

from flowkit.export.hooks import prior_condition
from flowkit.export.reading import read_export

BATCH = 4


@torch.no_grad()
def latents_of(
    embeddings_NTD: torch.Tensor,
    prior: PriorTransformer,
    scheduler: HeunDiscreteScheduler,
    *,
    guidance_scale: float = 3.0,
    steps: int = 64,
    seed: int = 0,
) -> torch.Tensor:
    """Return latents [N, numbers of one] of images whose exported rows are `embeddings_NTD`."""
    condition = prior_condition(embeddings_NTD, is_guided=True)
    size = (len(embeddings_NTD), prior.config.num_embeddings, prior.config.embedding_dim)
    scheduler.set_timesteps(steps)
    latents = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        made = prior(both, timestep=timestep, proj_embedding=condition).predicted_image_embedding
        without, given = made[..., : size[2]].chunk(2)  # behind it lies the variance
        guided = without + guidance_scale * (given - without)
        latents = scheduler.step(guided, timestep=timestep, sample=latents).prev_sample
    return latents.flatten(1)


def main(export_folder: Path, weights: Path, out: Path, *, steps: int = 64) -> None:
    """Write latents and keys of all images of an export."""
    export = read_export(export_folder)
    prior = PriorTransformer.from_pretrained(
        weights / "prior", local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    ).eval()
    scheduler = HeunDiscreteScheduler.from_pretrained(weights / "scheduler", local_files_only=True)
    made = [
        latents_of(export.embeddings[first : first + BATCH], prior, scheduler, steps=steps)
        for first in range(0, len(export.keys), BATCH)
    ]
    np.savez(out, latents=torch.cat(made).numpy(), keys=np.array(export.keys))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
