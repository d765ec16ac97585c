"""A tiny prior with the settings of openai/shap-e-img2img, but for its size, and the pipeline around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer

LATENTS, LATENT_WIDTH = 6, 8


def tiny_prior(channels: int, *, seed: int = 0) -> PriorTransformer:
    """A random prior that takes patches of `channels` channels, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            embedding_dim=LATENT_WIDTH,
            num_embeddings=LATENTS,
            additional_embeddings=0,
            time_embed_act_fn="gelu",
            norm_in_type="layer",
            embedding_proj_norm_type="layer",
            encoder_hid_proj_type=None,
            added_emb_type=None,
            time_embed_dim=64,
            embedding_proj_dim=channels,
            clip_embed_dim=2 * LATENT_WIDTH,
        )
    return prior.eval()


def heun_scheduler() -> HeunDiscreteScheduler:
    """The scheduler of openai/shap-e-img2img."""
    return HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
        clip_sample_range=1.0,
    )


def write_weights(folder: Path, channels: int, **changed: Any) -> Path:
    """Lie down prior and scheduler as a folder of the hub does."""
    tiny_prior(channels, **changed).save_pretrained(folder / "prior", safe_serialization=True)
    heun_scheduler().save_pretrained(folder / "scheduler")
    return folder
