"""Stage `convert`: token stores of half the size, int8 with a scale per token after standardising the channels.

Each tar commits by itself; the manifest's counts hold the error table. Afterwards the content of the float16 store may
be deleted: nothing but this stage reads it.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from flowkit.features.int8 import convert_store
from flowkit.features.store import TokenStore
from flowkit.paths import converted
from flowkit.progress import Progress, logger
from flowkit.stages.session import Spec, committed, open_session
from flowkit.stages.stores import digests_of_store


def run(spec: Spec) -> None:
    """Commit an int8 store for each tar in `target.tars`."""
    dataset, encoder_id = spec.target["dataset"], spec.target["encoder"]
    tars = spec.target["tars"].split(",")
    progress = Progress(f"convert {encoder_id}", len(tars), "tar")
    for tar in tars:
        one = replace(spec, target={**spec.target, "tars": tar})
        source = spec.places.store(dataset, encoder_id, tar)
        made = spec.places.store(dataset, converted(encoder_id), tar)
        with open_session(one, made, [source], digests=digests_of_store) as session:
            if not session.is_done:
                errors = convert_store(TokenStore(committed(source)[0]), session.work)
                logger.info("tar=%s min_cosine_standardised=%.6f", tar, errors.min_cosine_standardised)
                session.commit({"samples": errors.samples, "errors": asdict(errors)})
        progress.advance()
    progress.close()
