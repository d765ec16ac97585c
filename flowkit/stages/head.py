"""Stage `head`: the target encoder's final norm and projection, so that nobody after it loads the encoder."""

from __future__ import annotations

from safetensors.torch import save

from flowkit.encoders.registry import load_encoder
from flowkit.paths import HEAD
from flowkit.stages.inputs import weights_of
from flowkit.stages.session import Spec, open_session


def run(spec: Spec) -> None:
    """Commit `head.safetensors` of `target.encoder`."""
    encoder_id, name = spec.target["encoder"], spec.values["encoder"]["name"]
    with open_session(
        spec, spec.places.head(encoder_id), [spec.places.weights(spec.target["weights"])]
    ) as session:
        if session.is_done:
            return
        head = load_encoder(name, weights_of(spec)[0]).head()
        (session.work / HEAD).write_bytes(save({key: value.contiguous() for key, value in head.items()}))
        session.commit({key: list(value.shape) for key, value in head.items()})
