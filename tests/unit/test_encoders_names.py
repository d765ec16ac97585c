"""Names of encoders: which part is a path, and which code may be reached by who only asks for weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowkit.encoders.names import FAMILIES, form_with_file
from flowkit.encoders.registry import FAMILY_MODULES
from flowkit.encoders.weight_registry import NAME_MODULES, brought_weights, encoder_family
from flowkit.errors import EncoderError
from flowkit.provenance import code_fingerprint
from flowkit.sections import Encoder


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("demo-eva", None),
        ("open_clip:ViT-L-14/openai", None),
        ("open_clip:ViT-L-14/openai=x.pt", "x.pt"),
        ("open_clip:ViT-L-14/openai=weights", "weights"),
        ("open_clip:ViT-L-14/openai=runs/rate=0.1/x.pt", "runs/rate=0.1/x.pt"),
        ("open_clip:ViT-L-14/runs/rate=0.1/x.pt", "runs/rate=0.1/x.pt"),
        ("open_clip:ViT-L-14//data/x", "/data/x"),
        ("open_clip:ViT-L-14/openai/", "openai"),
        *(
            (f"open_clip:ViT-L-14/x{suffix}", f"x{suffix}")
            for suffix in (".safetensors", ".pt", ".pth", ".bin")
        ),
        ("open_clip:ViT-L-14/x.json", None),
        ("eva_clip:EVA-CLIP-8B", None),
        ("eva_clip:EVA-CLIP-8B/shards", "shards"),
        ("eva_clip:EVA-CLIP-8B//data/x.pt", "/data/x.pt"),
    ],
)
def test_what_the_user_brings(
    name: str, path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies in the working directory: a folder with the name of a tag is not the weights."""
    monkeypatch.chdir(tmp_path)
    for folder in ("openai", "EVA-CLIP-8B"):
        (tmp_path / folder).mkdir()
    assert brought_weights(name) == (Path(path) if path else None)
    assert Encoder(name=name).name == name


def test_a_tag_without_its_file_is_an_error() -> None:
    with pytest.raises(EncoderError, match=r"no file after the tag; expected open_clip:ViT-L-14/openai=FILE"):
        brought_weights("open_clip:ViT-L-14/openai=")
    with pytest.raises(ValueError, match="open_clip:<model>/<tag>=<path>"):
        Encoder(name="open_clip:ViT-L-14/openai=")


def test_the_form_with_a_file_is_a_name_with_that_file() -> None:
    for name in ("open_clip:ViT-L-14/openai", "open_clip:ViT-L-14/openai=old.pt", "eva_clip:EVA-CLIP-8B"):
        assert brought_weights(form_with_file(name)) == Path("FILE")
        assert encoder_family(form_with_file(name)) == encoder_family(name)


def test_every_family_has_its_modules() -> None:
    assert FAMILY_MODULES.keys() == FAMILIES.keys()
    assert NAME_MODULES.keys() == {family for family, has_models in FAMILIES.items() if has_models}
    root = Path(__file__).parents[2]
    for module in (*FAMILY_MODULES.values(), *NAME_MODULES.values()):
        assert root.joinpath(*module.split(".")).with_suffix(".py").is_file()


def _reached(module: str) -> set[str]:
    return {re.sub("@.*", "", one) for one in code_fingerprint(module)} - {"flowkit.encoders"}


def test_who_asks_for_weights_reaches_no_forward_code() -> None:
    """An edit of a forward pass must not make the weights stage fetch 33 GB again."""
    read = {
        "names",
        "weight_registry",
        "weight_files",
        "weight_hub",
        "open_clip_names",
        "eva_names",
        "open_clip_text",
    }
    wanted = {"flowkit.hub_access"} | {f"flowkit.encoders.{name}" for name in read}
    assert _reached("flowkit.encoders.weight_registry") == wanted


def test_who_computes_reaches_the_names_too() -> None:
    """There the tag's settings are read: an edit of them changes features."""
    assert "flowkit.encoders.open_clip_names" in _reached(FAMILY_MODULES["open_clip"])
    assert "flowkit.encoders.eva_names" in _reached(FAMILY_MODULES["eva_clip"])
    assert "flowkit.encoders.weight_registry" not in _reached("flowkit.encoders.registry")


def test_asking_for_names_loads_no_model_library() -> None:
    """Snakemake imports both in every process."""
    code = (
        "import sys, flowkit.encoders.registry; from flowkit.encoders.weight_registry import brought_weights;"
        "brought_weights('open_clip:ViT-L-14/openai'); brought_weights('eva_clip:EVA-CLIP-8B/x');"
        "print(sorted({'torch', 'open_clip', 'timm', 'huggingface_hub', 'transformers'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
