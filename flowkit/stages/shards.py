"""Stage `shards`: the tars of a data set, drawn or taken stock of, with their sizes and digests."""

from __future__ import annotations

from pathlib import Path

from flowkit.paths import LOCATION
from flowkit.provenance import write_json
from flowkit.shards.catalogue import describe_tar, list_tars
from flowkit.stages.session import Session, Spec, open_session


def run(spec: Spec) -> None:
    """Write or list the tars of `target.dataset`; the manifest's counts hold one description per tar."""
    dataset = spec.target["dataset"]
    values = spec.values["datasets"][dataset]
    with open_session(spec, spec.places.shards(dataset), []) as session:
        if values["kind"] == "folder":
            tars = list_tars(Path(values["path"]))[: values["shards"]]
            _commit(session, tars, location=str(Path(values["path"]).resolve()))
        elif not session.is_done:
            from flowkit.shards.demo_shapes import write_shards

            tars = write_shards(
                session.work,
                images=values["images"],
                images_per_shard=values["images_per_shard"],
                seed=values["seed"],
            )
            _commit(session, tars, location=".")


def _commit(session: Session, tars: list[Path], *, location: str) -> None:
    # where the tars lie is no content: moving a folder of tars makes nothing run again
    write_json(session.work / LOCATION, location)
    session.commit({"tars": [describe_tar(tar) for tar in tars]}, untracked=(LOCATION,))
