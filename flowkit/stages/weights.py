"""Stage `weights`: where the weights of an encoder lie, and their digest.

The demo towers come with the package; with `encoders.retrain_demo_towers` they are trained here, and their accuracies
stand beside the weights. Other weights come by tag or as a file or folder of the user's. What is there already, also in
the cache of the hub's own tools, stays where it is: EVA-CLIP-8B takes 33 GB. What is fetched goes into this result.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from flowkit.encoders.weight_registry import (
    RemoteWeights,
    brought_weights,
    encoder_family,
    fetch_tokenizer,
    find_weights,
    weight_files,
)
from flowkit.errors import EncoderError
from flowkit.paths import LOCATION
from flowkit.progress import Progress, logger
from flowkit.provenance import digest_of, file_digest, read_json, write_json
from flowkit.shards.remote import RemoteFile, arrived_bytes, download
from flowkit.shards.space import demand_space
from flowkit.stages.inputs import file_identity
from flowkit.stages.session import Session, Spec, committed, open_session, reuse

ACCURACIES = "accuracies.json"
MEASURED_IMAGES = 1000


def run(spec: Spec) -> None:
    """Commit the place and the digest of the weights of `target.encoder`."""
    name = spec.values["encoder"]["name"]
    brought = brought_weights(name)
    if brought is not None and not brought.exists():
        raise EncoderError(f"{brought}: weights of encoder {name!r} are not there, correct the path")
    content = [] if brought is None else [_digest(brought)]
    folder = spec.places.weights(spec.target["encoder"])
    with open_session(spec, folder, [], content) as session:
        if session.is_done and _is_in_place(folder):
            return
        made = session.work / "made"
        made.mkdir(exist_ok=True)
        if spec.values.get("encoders", {}).get("retrain_demo_towers"):
            file = _retrain(made, name)
        elif encoder_family(name).startswith("demo-"):
            file = made / "weights.safetensors"
            shutil.copyfile(find_weights(name), file)
        else:
            file = find_weights(name, made, download=partial(_download, folder))
            fetch_tokenizer(name)
        _commit(session, made, name, file)


def _is_in_place(folder: Path) -> bool:
    """True if weights that stayed where the user has them are there and are the same."""
    content, manifest = committed(folder)
    location = read_json(content / LOCATION)
    path = content / location["path"]
    if all(file_identity(Path(name)) == identity for name, identity in location["outside"].items()):
        return True
    return path.exists() and _digest(path) == manifest["counts"]["sha256"] and _renew(content, location)


def _renew(content: Path, location: dict[str, Any]) -> bool:
    """Take down the identities of files that were copied or touched and are still the same; returns True."""
    outside = {name: file_identity(Path(name)) for name in location["outside"]}
    write_json(content / LOCATION, {**location, "outside": outside})
    return True


def _commit(session: Session, made: Path, name: str, file: Path) -> None:
    is_here = file.is_relative_to(made)
    path = file.relative_to(made) if is_here else file.absolute()
    outside = {} if is_here else {str(one.absolute()): file_identity(one) for one in weight_files(file)}
    counts = {"encoder": name, "file": file.name, "sha256": _digest(file)}
    write_json(made / LOCATION, {"path": str(path), "outside": outside})
    session.commit(counts, untracked=(LOCATION,), folder=made)
    logger.info("encoder=%s weights=%s sha256=%s", name, "here" if is_here else file, counts["sha256"])


def _download(folder: Path, file: RemoteWeights, to: Path) -> Path:
    if reuse(folder, to.name, file.sha256, to):
        return to
    demand_space(to.parent, file.bytes - arrived_bytes(to), f"weights {to.name}")
    progress = Progress(f"fetch {to.name}", file.bytes, "byte")
    found = download(
        RemoteFile(file.url, file.bytes, file.sha256), to, progress=progress.advance, headers=file.headers
    )
    progress.close()
    return found


def _digest(path: Path) -> str:
    """Return the sha256 of a weights file, or one over the digests of the files in a folder."""
    if path.is_file():
        return file_digest(path)
    return digest_of({file.name: file_digest(file) for file in weight_files(path)})


def _retrain(folder: Path, name: str) -> Path:
    from flowkit.encoders.demo_towers import save_demo_tower
    from flowkit.encoders.registry import load_encoder
    from flowkit.encoders.tower_training import RECIPES, measure_tower, train_tower
    from flowkit.shards import demo_pictures as pictures
    from flowkit.shards.demo_shapes import HARD_NEGATIVE_GROUP, class_prompts

    recipe = RECIPES[name]
    half = recipe.images // 2
    progress = Progress(f"train {name}", recipe.steps, "step")
    plain = pictures.draw_pictures(pictures.TOWER_TRAINING_SEED, half)
    state = train_tower(
        name,
        pictures.shorten_captions(plain, every=recipe.short_caption_every),
        pictures.draw_hard_negatives(pictures.TOWER_HARD_NEGATIVE_SEED, half // HARD_NEGATIVE_GROUP),
        group_size=HARD_NEGATIVE_GROUP,
        recipe=recipe,
        report=lambda step, loss: progress.advance(step - progress.done),
    )
    progress.close()
    file = folder / "weights.safetensors"
    save_demo_tower(state, file)
    names, prompts = class_prompts()
    fresh = pictures.draw_pictures(pictures.TOWER_MEASURING_SEED, MEASURED_IMAGES)
    encoder = load_encoder(name, file)
    measured = measure_tower(encoder, fresh, classes=fresh.classes, class_names=names, prompts=prompts)
    write_json(folder / ACCURACIES, measured)
    logger.info("encoder=%s %s", name, " ".join(f"{key}={value:.3f}" for key, value in measured.items()))
    return file
