"""Which code and which data files of the package a stage reaches with the values of its spec.

Where a registry chooses one of several modules, only the chosen one counts: an edit in one encoder family, or in the
earlier recipe, concerns nobody who does not use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowkit.encoders.registry import FAMILY_MODULES, encoder_family
from flowkit.encoders.weight_registry import NAME_MODULES
from flowkit.model.registry import ARCHITECTURE_MODULES
from flowkit.provenance import code_fingerprint

EARLIER, EARLIER_MODULE = "earlier", "flowkit.flow.earlier"
TOWER_TRAINING = {
    "flowkit.encoders.registry",
    "flowkit.encoders.tower_training",
    "flowkit.encoders.demo_towers",
    "flowkit.shards.demo_pictures",
    "flowkit.shards.demo_shapes",
}
DRAWING = {"flowkit.shards.demo_shapes", "flowkit.shards.demo_raster"}
DATASET_MODULES = {
    "demo": DRAWING,
    "solids": {*DRAWING, "flowkit.shards.demo_solids", "flowkit.shards.demo_rays"},
    "coco": {"flowkit.shards.coco", "flowkit.shards.coco_categories"},
}
FETCHING = {"flowkit.hub_access", "flowkit.encoders.weight_hub"} | {
    f"flowkit.shards.{name}" for name in ("hub", "remote", "retries", "space")
}
"""Not tracked: what is fetched is checked by digest, so how it is fetched cannot change it."""
TEMPLATES = "report/templates"
SHARED_TEMPLATES = {"base.html.j2", "parts.html.j2"}
OF_RUNS = {"run.html.j2"}
"""Templates of the page of a run; all others but the shared ones are of the report as a whole."""


def code_of(stage: str, values: dict[str, Any]) -> tuple[str, ...]:
    """Return the fingerprint of the code that a stage reaches with these values."""
    leave_out = {*FETCHING, "flowkit.encoders.open_clip_text"}
    if stage in ("shards", "texts", "evaluate"):
        (dataset,) = values["datasets"].values()
        leave_out |= set().union(*DATASET_MODULES.values()) - DATASET_MODULES.get(dataset["kind"], set())
    encoder = values.get("encoder", {})
    if encoder:
        family = encoder_family(encoder["name"])
        for modules in (FAMILY_MODULES, NAME_MODULES):
            leave_out |= set(modules.values()) - {modules.get(family)}
    files = _templates(stage) if stage in ("page", "report") else ()
    if stage == "weights" and not values.get("encoders", {}).get("retrain_demo_towers"):
        leave_out |= TOWER_TRAINING
        if encoder_family(encoder["name"]).startswith("demo-"):
            files = (f"encoders/assets/{encoder['name']}.safetensors",)
    choices = (values.get("objective", {}), values.get("model", {}))
    if architecture := values.get("model", {}).get("architecture"):
        leave_out |= {module for name, module in ARCHITECTURE_MODULES.items() if name != architecture}
    if not any(EARLIER in chosen.values() for chosen in choices):
        leave_out.add(EARLIER_MODULE)
    return code_fingerprint(f"flowkit.stages.{stage}", frozenset(leave_out), files)


def _templates(stage: str) -> tuple[str, ...]:
    """Return the templates that a stage fills, and what it copies beside them."""
    root = Path(__file__).parents[1]
    found = sorted(path for path in (root / TEMPLATES).iterdir() if path.is_file())
    mine = [
        path for path in found if path.name in SHARED_TEMPLATES or (path.name in OF_RUNS) == (stage == "page")
    ]
    return tuple(path.relative_to(root).as_posix() for path in mine)
