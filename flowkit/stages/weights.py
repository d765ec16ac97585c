"""Stage `weights`: the weights file of an encoder, in place and with its digest.

The demo towers come with the package; with `encoders.retrain_demo_towers` they are trained here. Weights of open_clip encoders are
found by tag or path.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from flowkit.encoders.registry import encoder_family
from flowkit.provenance import write_json
from flowkit.stages.session import Session, Spec, committed, open_session

FILE = "weights.safetensors"


def run(spec: Spec) -> None:
    """Commit the weights of `target.encoder`."""
    name = spec.values["encoder"]["name"]
    with open_session(spec, spec.places.weights(spec.target["encoder"]), []) as session:
        if session.is_done:
            return
        if encoder_family(name) == "open_clip":
            from flowkit.encoders.open_clip_tower import find_weights

            shutil.copyfile(find_weights(name), session.work / FILE)
        elif spec.values["encoders"]["retrain_demo_towers"]:
            _retrain(session, name)
        else:
            from flowkit.encoders.demo_towers import ASSETS

            shutil.copyfile(ASSETS / f"{name}.safetensors", session.work / FILE)
        session.commit({"encoder": name})


def _retrain(session: Session, name: str) -> None:
    from flowkit.encoders.demo_towers import save_demo_tower
    from flowkit.encoders.tower_training import measure_tower, train_tower

    save_demo_tower(train_tower(name), session.work / FILE)
    figures: dict[str, Any] = dict(measure_tower(name, session.work / FILE))
    write_json(session.work / "accuracies.json", figures)


def weights_of(spec: Spec, encoder_id: str) -> tuple[Path, str]:
    """Return the path and the sha256 of the committed weights of an encoder."""
    content, manifest = committed(spec.places.weights(encoder_id))
    return content / FILE, manifest["files"][FILE]
