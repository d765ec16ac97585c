"""The sections of a configuration: every setting, its range, its default and what it means.

One frozen pydantic model per section. How they make an experiment, and how a run overrides some of them, is in
`flowkit.config`. Machine settings (partition, memory, account, paths) live in profiles, never here.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from flowkit.validation import Number, Section, Switch, Whole

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
_FACTOR = r"[0-9]+([.][0-9]+)?"
SamplerName = Annotated[
    str,
    Field(
        pattern=rf"^((euler|midpoint|heun)-[1-9][0-9]{{0,3}}(-shift{_FACTOR})?|adaptive-[1-9])"
        rf"(-guidance{_FACTOR})?(-mean([2-9]|[1-9][0-9]))?$"
    ),
]
Baseline = Literal[
    "constant",
    "nearest",
    "procrustes",
    "ridge_token",
    "ridge",
    "ridge_ot",
    "ridge_ot_flat",
    "true",
    "true_fp16",
    "true_jpeg75",
    "true_crop",
]
SHORTEST_STEP = 1e-6
"""Below it, a velocity from clean tokens is divided by next to nothing; `flow.solvers` refuses such grids."""
CEILINGS: tuple[Baseline, ...] = ("true_fp16", "true_jpeg75", "true_crop")
"""The target encoder's own tokens, made anew in another way: what no translation needs to be better than."""
UNROUNDED: Baseline = "true_fp16"
"""The ceiling whose tokens are kept in float32."""
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
USUAL_BASELINES: tuple[Baseline, ...] = tuple(name for name in BASELINES if name != "ridge_ot_flat")
"""Those that hold at any size: the transport of flattened tokens needs their covariance."""


class Data(Section):
    """Which data set plays which part."""

    train: Name = Field("train", description="Data set that the runs are trained on.")
    validation_shards: Whole = Field(
        1, ge=1, description="Last N tars of the training set, held out for evaluation during training."
    )
    evaluation: Name = Field("evaluation", description="Data set that all figures of the report come from.")
    layout: Literal["cls_patches", "patches", "pooled"] = Field(
        "cls_patches",
        description="What is translated: class token and patches, patches alone, or the projected image embedding.",
    )
    source_tokens: Literal["all", "cls"] = Field(
        "all",
        description="Source tokens that are given: all, or the class token in the place of every other one.",
    )
    shuffle: Literal["random", "blocks"] = Field(
        "random",
        description="Order of training: any pair anywhere, or blocks of 8 neighbours for disks slow at random reads.",
    )

    @model_validator(mode="after")
    def _hides_something(self) -> Data:
        if self.layout != "cls_patches" and self.source_tokens == "cls":
            raise ValueError(f"source_tokens=cls goes with layout=cls_patches, not with {self.layout}")
        return self


class Encoder(Section):
    """A frozen image encoder."""

    name: str = Field(
        description="'demo-eva', 'demo-vit', 'open_clip:<model>/<tag>', 'open_clip:<model>/<tag>=<path>', "
        "'open_clip:<model>/<path>' where all tags of the model were trained alike, 'eva_clip:EVA-CLIP-8B' or "
        "'eva_clip:EVA-CLIP-8B/<path>'."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the forward pass.")

    @field_validator("name")
    @classmethod
    def _known_family(cls, name: str) -> str:
        if re.fullmatch(r"demo-eva|demo-vit|open_clip:[\w.-]+/.+(?<!=)|eva_clip:EVA-CLIP-8B(/.+)?", name):
            return name
        raise ValueError(
            "expected 'demo-eva', 'demo-vit', 'open_clip:<model>/<tag>', 'open_clip:<model>/<tag>=<path>', "
            "'eva_clip:EVA-CLIP-8B' or 'eva_clip:EVA-CLIP-8B/<path>'"
        )


class Encoders(Section):
    """The encoder to translate from, the encoder to translate to, and how features are extracted."""

    source: Encoder = Field(description="Encoder whose tokens are the condition.")
    target: Encoder = Field(description="Encoder whose tokens are predicted.")
    batch_size: Whole = Field(
        64, gt=0, description="Images per forward pass; batches are fixed by member index."
    )
    decode: Literal["exact", "fast"] = Field(
        "exact", description="Pixels as open_clip makes them, or up to 0.06 off in a third of the time."
    )
    compile: Switch = Field(False, description="Compile the encoders with torch.compile; pays on a GPU.")
    source_storage: Literal["float16", "int8"] = Field(
        "float16",
        description="How source tokens are kept for training; int8 halves the bytes at a measured error.",
    )
    retrain_demo_towers: Switch = Field(
        False, description="Train the demo towers instead of using the ones that come with flowkit."
    )

    @model_validator(mode="after")
    def _target_reads_text(self) -> Encoders:
        if self.target.name.startswith("eva_clip:"):
            raise ValueError(
                f"target={self.target.name} has no text tower, which captions and prompts need; take open_clip's"
            )
        return self


class Model(Section):
    """The translation network."""

    architecture: Literal["blip3o", "lumina_next"] = Field("blip3o", description="Network family.")
    size: Literal["demo", "tiny", "small", "base", "large", "huge"] = Field(
        "base", description="Width, depth and heads."
    )
    adapter_layers: Whole | None = Field(
        None,
        ge=0,
        le=12,
        description="Layers of the gated condition adapter; 0 is one linear projection, null the size's.",
    )
    cross_attention: Switch = Field(True, description="Attend to the condition in every block.")
    aligned_condition: Switch = Field(
        True, description="Add the condition token of the same position to the embedding of x_t."
    )
    views: Literal["joint", "single"] = Field(
        "joint",
        description="Where a sample is several views of an object: translate them together, or each by itself.",
    )
    head: Literal["linear", "earlier"] = Field(
        "linear", description="Output projection; 'earlier' is the rank-limited head of the earlier work."
    )


class Objective(Section):
    """What the network is trained to do."""

    kind: Literal["flow", "regression", "earlier"] = Field(
        "flow", description="Rectified flow, plain regression, or the earlier recipe with its defects."
    )
    prediction: Literal["clean", "velocity"] = Field("clean", description="What the network's output means.")
    clean_weight: Number = Field(1.0, ge=0, description="Weight of the squared error of the clean estimate.")
    velocity_weight: Number = Field(0.0, ge=0, description="Weight of the squared error of the velocity.")
    semantic_weight: Number = Field(
        0.0, ge=0, description="Weight of the squared error of the clean estimate in the four-part loss."
    )
    cosine_weight: Number = Field(0.0, ge=0, description="Weight of one minus the cosine per token.")
    consistency_weight: Number = Field(
        0.0, ge=0, description="Weight of one minus the cosine of token means."
    )
    time: Literal["uniform", "logit_normal", "beta"] = Field(
        "uniform", description="Distribution of t over the rest of the batch."
    )
    time_beta: tuple[Number, Number] = Field(
        (0.5, 0.5), description="a and b of Beta(a, b), from 0.5 on; (0.5, 0.5) is U-shaped."
    )
    share_at_zero: Number = Field(0.5, ge=0, le=1, description="Share of each batch at t = 0.")
    time_gate: Switch = Field(
        True, description="The network sees t x_t, so one Euler step is the regression."
    )
    start_noise: Literal["isotropic", "target_covariance"] = Field(
        "target_covariance", description="Distribution of x_0."
    )
    clock: Literal["ascending", "earlier"] = Field(
        "ascending", description="Time that the sampler tells the network; 'earlier' is the reversed one."
    )
    condition_dropout: Number = Field(0.0, ge=0, lt=1, description="Share of samples without condition.")
    feature_scale: Literal["none", "factor", "standardize", "target_norm"] = Field(
        "factor",
        description="Raw features, one number for all, statistics per channel, or the channel weights of the target "
        "tower's own final norm; undone after sampling.",
    )

    @model_validator(mode="after")
    def _has_a_loss(self) -> Objective:
        weights = (self.clean_weight, self.velocity_weight, self.semantic_weight, self.cosine_weight)
        if not any(weights) and not self.consistency_weight:
            raise ValueError("all loss weights are 0, give at least one of them a weight")
        return self


class Train(Section):
    """Optimisation."""

    steps: Whole = Field(20_000, gt=0, description="Optimiser steps.")
    epochs: Number | None = Field(
        None, gt=0, description="Passes over the training pairs; given, it stands in for steps."
    )
    batch_size: Whole = Field(256, gt=0, description="Samples per step, over all processes.")
    gradient_accumulation: Whole = Field(
        1, gt=0, description="Parts that a process works through its share of a batch in, to save memory."
    )
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="Muon for the matrices that tokens pass and AdamW for the rest, or AdamW alone."
    )
    muon_learning_rate: Number = Field(0.04, gt=0, description="Peak learning rate of Muon.")
    muon_momentum: Number = Field(
        0.95, ge=0, lt=1, description="Momentum of Muon; a few hundred steps want 0.9."
    )
    learning_rate: Number = Field(2e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup_steps: Whole = Field(30, ge=0, description="Steps of linear warm-up.")
    final_learning_rate_share: Number = Field(
        0.02, ge=0, le=1, description="Learning rate at the end of the cosine, as a share of the peak."
    )
    weight_decay: Number = Field(0.0, ge=0, description="Decoupled weight decay of the matrices.")
    clip_norm: Number = Field(1.0, gt=0, description="Limit of the gradient norm.")
    adaptive_clipping: Switch = Field(
        True, description="Halve the limit while the running mean of norms is above it."
    )
    ema_decay: Number = Field(0.99, ge=0, lt=1, description="Decay of the averaged weights that are saved.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Arithmetic of the forward and backward pass."
    )
    activation_checkpointing: Switch = Field(
        False, description="Compute blocks again in the backward pass: a third more work for far less memory."
    )
    compile: Switch = Field(False, description="Compile the blocks with torch.compile; pays on a GPU.")
    parallel: Literal["auto", "ddp", "fsdp"] = Field(
        "auto", description="With several processes: a copy in each, or shards; auto shards large and huge."
    )
    seed: Whole = Field(0, ge=0, description="Seed of weights, order, noise and times.")
    evaluate_every: Whole = Field(200, gt=0, description="Steps between evaluations on held-out tars.")
    validation_samples: Whole = Field(256, gt=0, description="Held-out samples per evaluation.")
    checkpoint_every: Whole = Field(
        100, gt=0, description="Steps between checkpoints that a killed job resumes from."
    )


class Sampling(Section):
    """How a trained run makes tokens."""

    samplers: tuple[SamplerName, ...] = Field(
        ("heun-50", "midpoint-2", "euler-1"),
        min_length=1,
        description="Named <solver>-<steps>, or adaptive-<d> with a tolerance of 10^-d; then, as wanted, -shift<s> for "
        "steps that crowd at the noise end, -guidance<g>, -mean<K> for the mean of K samples.",
    )
    noise_seeds: Whole = Field(
        2,
        ge=1,
        le=64,
        description="Samples per image, each from noise of its own; their spread is measured.",
    )
    noise_images: Whole | None = Field(
        None, gt=1, description="Only the first N images get more than one sample; null means all."
    )
    weights: Literal["last", "best"] = Field(
        "last", description="Weights at the end of training, or at the best evaluation on held-out tars."
    )
    guidance_scale: Number = Field(
        1.0, ge=0, description="Classifier-free guidance of samplers that name none; 1 is none."
    )
    seed: Whole = Field(0, ge=0, description="Seed of the start noise; each image has its own stream.")

    @field_validator("samplers")
    @classmethod
    def _distinct(cls, samplers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(samplers)) != len(samplers):
            raise ValueError("the same sampler is named twice")
        for sampler in samplers:
            if (found := re.match(rf"[a-z]+-(\d+)-shift({_FACTOR})", sampler)) is None:
                continue
            steps, shift = int(found[1]), float(found[2])
            if shift == 0:
                raise ValueError(
                    f"{sampler}: a time shift of 0 leaves all steps at the noise end, give a positive one"
                )
            # what is left of time before the last step: 1 - u / (u + s - s u) with u = 1 - 1 / steps
            if shift / (steps - 1 + shift) < SHORTEST_STEP:
                raise ValueError(
                    f"{sampler}: its last step is shorter than {SHORTEST_STEP}, take fewer steps or shift"
                )
        return samplers


class Evaluation(Section):
    """What is measured."""

    images: Whole = Field(
        1000,
        gt=1,
        description="The first N pairs of the evaluation set are scored.",
    )
    consumer: str | None = Field(
        None,
        pattern=r"^shap-e-prior:.+",
        description="Model that translations are tried on: `shap-e-prior:FOLDER`, the folder of openai/shap-e-img2img "
        "on this machine; null measures nothing of the kind.",
    )
    bootstrap_draws: Whole = Field(1000, ge=100, description="Bootstrap draws over images for intervals.")
    seed: Whole = Field(0, ge=0, description="Seed of the bootstrap and of the shuffled pairs.")


class ClosedForms(Section):
    """How the closed-form baselines are fitted."""

    images: Whole = Field(
        10_000, gt=1, description="Training pairs that they are fitted on at most, evenly spaced over all."
    )
    inputs: Whole = Field(
        4096,
        gt=1,
        description="Source values of an image that ridge sees at most; more of them are projected onto as many "
        "principal directions.",
    )


class Goals(Section):
    """Demands that the verdicts on the first page are measured against."""

    ridge_gap_closed: Number = Field(
        0.5, le=1, description="Share of the R2 gap between ridge and 1 that run 'flow' closes, at least."
    )
    text_retrieval: Number = Field(
        0.98,
        ge=0,
        le=1,
        description="Text-image R@1 of run 'flow', as a share of that of true features, at least.",
    )
    few_evaluations: Whole = Field(
        4,
        gt=0,
        description="Network evaluations with which run 'flow' is no worse than with heun-50, at most.",
    )
    dispersion: tuple[Number, Number] = Field(
        (0.5, 2.0), description="Dispersion ratio of a usable seed spread, from and to; 1 is calibrated."
    )
    regression_share: Number = Field(
        0.99, ge=0, le=2, description="R2 of run 'flow' as a share of that of run 'regression', at least."
    )
    flow_r2: Number | None = Field(
        None, description="R2 of run 'flow' with its best sampler of few evaluations, at least."
    )
    regression_r2: Number | None = Field(None, description="R2 of run 'regression', at least.")
    above_earlier_recipe: Number | None = Field(
        None, description="R2 of run 'flow' above that of run 'earlier_recipe', at least."
    )

    @field_validator("dispersion")
    @classmethod
    def _is_a_range(cls, dispersion: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= dispersion[0] < dispersion[1]:
            raise ValueError("expected two numbers, the smaller one first")
        return dispersion


class Report(Section):
    """What the pages show."""

    title: str = Field("flowkit", description="Title of the report.")
    gallery_images: Whole = Field(
        24, gt=2, le=200, description="Images in a gallery: best, worst and random."
    )
