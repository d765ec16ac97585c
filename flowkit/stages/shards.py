"""Stage `shards`: the tars of a data set, drawn, made from archives or taken stock of, with their sizes and digests.

Tars of a hub are no concern of this stage: `fetch` leaves each of them as a result of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowkit.paths import LOCATION
from flowkit.progress import Progress
from flowkit.provenance import write_json
from flowkit.shards.catalogue import choose_tars, describe_tar, list_tars
from flowkit.shards.space import demand_space
from flowkit.stages.session import Session, Spec, committed, open_session


def run(spec: Spec) -> None:
    """Write or list the tars of `target.dataset`; the manifest's counts hold one description per tar."""
    dataset = spec.target["dataset"]
    values = spec.values["datasets"][dataset]
    inputs = [spec.places.archives(dataset)] if values["kind"] == "coco" else []
    with open_session(spec, spec.places.shards(dataset), inputs) as session:
        if values["kind"] == "folder":
            tars = choose_tars(
                list_tars(Path(values["path"])), values["first_shard"], values["shards"], where=values["path"]
            )
            _commit(session, tars, location=str(Path(values["path"]).resolve()))
        elif not session.is_done:
            tars = _from_coco(session, values, inputs[0]) if inputs else _draw(session, values)
            _commit(session, tars, location=".")


def _draw(session: Session, values: dict[str, Any]) -> list[Path]:
    if values["kind"] == "solids":
        from flowkit.shards.demo_solids import write_solids

        return write_solids(
            session.work,
            objects=values["objects"],
            objects_per_shard=values["objects_per_shard"],
            views=values["views"],
            seed=values["seed"],
        )
    from flowkit.shards.demo_shapes import write_shards

    return write_shards(
        session.work,
        images=values["images"],
        images_per_shard=values["images_per_shard"],
        seed=values["seed"],
    )


def _from_coco(session: Session, values: dict[str, Any], archives: Path) -> list[Path]:
    from flowkit.shards.coco import write_coco_shards

    content, manifest = committed(archives)
    pictures, annotations = (content / name for name in manifest["counts"]["archives"])
    demand_space(session.work, pictures.stat().st_size, "the tars made of the archives")
    progress = Progress("shards", values["images"], "image")
    tars = write_coco_shards(
        pictures,
        annotations,
        values["captions"],
        session.work,
        images=values["images"],
        images_per_shard=values["images_per_shard"],
        instances_member=values["instances"],
        progress=progress.advance,
    )
    progress.close()
    return tars


def _commit(session: Session, tars: list[Path], *, location: str) -> None:
    # where the tars lie is no content: moving a folder of tars makes nothing run again
    write_json(session.work / LOCATION, location)
    session.commit({"tars": [describe_tar(tar) for tar in tars]}, untracked=(LOCATION,))
