"""Exports: rows, keys and description of every form, what is left out, and memory that does not grow with images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from flowkit.encoders.head import apply_head
from flowkit.errors import ConfigError, StoreError
from flowkit.export import exporter
from flowkit.export.consumers import CONSUMERS, consumer_named, demand_expected_encoder
from flowkit.export.exporter import Content, write_export
from flowkit.export.reading import read_export
from flowkit.export.sources import ArrayTokens, StoredTokens
from flowkit.features.samples import write_tokens
from flowkit.provenance import file_digest, read_json

IMAGES, TOKENS, CHANNELS, WIDTH = 11, 5, 12, 7
KEYS = [f"image-{number:02d}" for number in range(IMAGES)]


@pytest.fixture
def tokens() -> NDArray[np.float16]:
    return np.random.default_rng(3).normal(0, 4, (IMAGES, TOKENS, CHANNELS)).astype(np.float16)


@pytest.fixture
def head() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "norm.weight": torch.rand(CHANNELS, generator=generator) + 0.5,
        "norm.bias": torch.randn(CHANNELS, generator=generator),
        "norm.epsilon": torch.tensor([1e-5]),
        "projection.weight": torch.randn(WIDTH, CHANNELS, generator=generator),
    }


@pytest.fixture
def stored(tmp_path: Path, tokens: NDArray[np.float16]) -> StoredTokens:
    write_tokens(tmp_path / "store", [tokens[:4], tokens[4:]], {}, keys=KEYS)
    return StoredTokens(tmp_path / "store")


@pytest.fixture(params=["one chunk", "an image at a time"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one chunk":
        monkeypatch.setattr(exporter, "CHUNK_BYTES", 1)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("file_format", ["safetensors", "npz"])
def test_grids_are_numpys(
    tmp_path: Path, stored: StoredTokens, tokens: NDArray[np.float16], file_format: str
) -> None:
    patches = tokens[:, 1:].astype(np.float32)
    for name, expected in (
        ("point-e", patches.transpose(0, 2, 1)),
        ("shap-e", patches.transpose(0, 2, 1)),
        ("shap-e-diffusers", patches),
    ):
        made = write_export(
            tmp_path / name, CONSUMERS[name], stored, Content("cls_patches"), file_format=file_format
        )  # type: ignore[arg-type]
        export = read_export(tmp_path / name)
        assert np.array_equal(export.embeddings.numpy(), expected)
        assert export.keys == KEYS
        assert (made["shape"], made["dropped"], made["dtype"]) == (
            list(expected.shape),
            "class token",
            "float32",
        )


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("name", ["openshape", "point-e-imagevec"])
def test_pooled_is_the_heads_embedding_of_length_one(
    tmp_path: Path,
    stored: StoredTokens,
    tokens: NDArray[np.float16],
    head: dict[str, torch.Tensor],
    name: str,
) -> None:
    write_export(tmp_path / "out", CONSUMERS[name], stored, Content("cls_patches", head=head))
    found = read_export(tmp_path / "out").embeddings
    expected = torch.nn.functional.normalize(apply_head(torch.from_numpy(tokens).float(), head), dim=1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found.norm(dim=1), torch.ones(IMAGES), atol=1e-6)


def test_pooled_layout_needs_no_head(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(1).normal(size=(3, 1, WIDTH)).astype(np.float32)
    source = ArrayTokens(embeddings, KEYS[:3])
    write_export(tmp_path / "out", CONSUMERS["openshape"], source, Content("pooled"))
    expected = embeddings[:, 0] / np.linalg.norm(embeddings[:, 0], axis=1, keepdims=True)
    assert np.allclose(read_export(tmp_path / "out").embeddings.numpy(), expected, atol=1e-6)


def test_patches_layout_drops_nothing(tmp_path: Path, stored: StoredTokens) -> None:
    made = write_export(tmp_path / "out", CONSUMERS["point-e"], stored, Content("patches"))
    assert (made["shape"], made["dropped"]) == ([IMAGES, CHANNELS, TOKENS], "")


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("file_format", ["safetensors", "npz"])
def test_images_that_are_not_finite_are_left_out_and_named(tmp_path: Path, file_format: str) -> None:
    values = np.random.default_rng(2).normal(size=(IMAGES, TOKENS, CHANNELS)).astype(np.float32)
    values[3, 2, 1], values[7, 0, 0], values[8, 4, 5], values[9] = np.nan, np.inf, -np.inf, 3e38
    made = write_export(
        tmp_path / "out",
        CONSUMERS["shap-e-diffusers"],
        ArrayTokens(values, KEYS),
        Content("cls_patches"),
        file_format=file_format,  # type: ignore[arg-type]
    )
    kept = [0, 1, 2, 4, 5, 6, 9, 10]  # large, but finite
    export = read_export(tmp_path / "out")
    assert export.keys == [KEYS[row] for row in kept]
    assert np.array_equal(export.embeddings.numpy(), values[kept, 1:])
    assert made["left_out"]["rows"][exporter.LOST] == [KEYS[row] for row in (3, 7, 8)]


def test_samples_that_were_refused_are_named(tmp_path: Path, tokens: NDArray[np.float16]) -> None:
    values = tokens.astype(np.float32)
    values[5] = 1e6  # beyond float16
    write_tokens(tmp_path / "store", [values], {}, keys=KEYS)
    made = write_export(
        tmp_path / "out", CONSUMERS["shap-e"], StoredTokens(tmp_path / "store"), Content("cls_patches")
    )
    assert made["left_out"]["samples"][exporter.REFUSED] == [KEYS[5]]
    assert read_export(tmp_path / "out").keys == KEYS[:5] + KEYS[6:]


def test_an_embedding_without_direction_is_left_out(tmp_path: Path) -> None:
    values = np.ones((3, 1, 4), np.float32)
    values[1] = 0
    write_export(tmp_path / "out", CONSUMERS["openshape"], ArrayTokens(values, KEYS[:3]), Content("pooled"))
    assert read_export(tmp_path / "out").keys == [KEYS[0], KEYS[2]]


def test_an_embedding_whose_length_overflows_is_left_out(tmp_path: Path) -> None:
    """Its numbers are finite and its length is not: divided by it, they would be zeros that look like an embedding."""
    values = np.ones((3, 1, 4), np.float32)
    values[1] = 3e38
    made = write_export(
        tmp_path / "out", CONSUMERS["openshape"], ArrayTokens(values, KEYS[:3]), Content("pooled")
    )
    export = read_export(tmp_path / "out")
    assert (export.keys, made["left_out"]["rows"][exporter.LOST]) == ([KEYS[0], KEYS[2]], [KEYS[1]])
    torch.testing.assert_close(export.embeddings.norm(dim=1), torch.ones(2))


def test_an_export_of_no_row_is_refused(tmp_path: Path) -> None:
    values = np.full((3, TOKENS, CHANNELS), np.nan, np.float32)
    with pytest.raises(StoreError, match="point-e: no row is left to export: 3 rows not finite"):
        write_export(
            tmp_path / "out", CONSUMERS["point-e"], ArrayTokens(values, KEYS[:3]), Content("cls_patches")
        )
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("_chunks")
def test_views_become_rows_of_their_own(tmp_path: Path, head: dict[str, torch.Tensor]) -> None:
    values = np.random.default_rng(5).normal(size=(4, 3 * TOKENS, CHANNELS)).astype(np.float32)
    values[2, TOKENS] = np.nan  # the second view of the third object
    source, content = ArrayTokens(values, KEYS[:4]), Content("cls_patches", views=3, head=head)
    write_export(tmp_path / "grid", CONSUMERS["point-e"], source, content)
    grid = read_export(tmp_path / "grid")
    by_view = values.reshape(12, TOKENS, CHANNELS)
    kept = [row for row in range(12) if row != 7]
    assert grid.keys == [f"{KEYS[row // 3]}.{row % 3}" for row in kept]
    assert np.array_equal(grid.embeddings.numpy(), by_view[kept, 1:].transpose(0, 2, 1))
    write_export(tmp_path / "pooled", CONSUMERS["openshape"], source, content)
    assert read_export(tmp_path / "pooled").keys == grid.keys


def test_tokens_that_are_no_whole_views_are_refused(tmp_path: Path, stored: StoredTokens) -> None:
    with pytest.raises(StoreError, match=r"5 tokens per image are no 2 views"):
        write_export(tmp_path / "out", CONSUMERS["point-e"], stored, Content("cls_patches", views=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "layout", "reason"),
    [
        ("openshape", "patches", "class token, and data.layout=patches has none"),
        ("point-e-imagevec", "patches", "a mean of patches is no stand-in"),
        ("shap-e", "pooled", "holds one vector per image"),
        ("shap-e-diffusers", "pooled", "cls_patches or patches"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    tmp_path: Path, stored: StoredTokens, name: str, layout: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        write_export(tmp_path / "out", CONSUMERS[name], stored, Content(layout))
    assert not (tmp_path / "out").exists()


def test_the_nearest_consumer_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"'shape-e' is no consumer.*did you mean 'shap-e'"):
        consumer_named("shape-e")


def test_a_wrong_encoder_is_refused_but_for_a_trial() -> None:
    for name in ("demo-vit", "open_clip:ViT-B-16/openai", "open_clip:ViT-L-14-quickgelu/dfn2b"):
        with pytest.raises(
            ConfigError, match=rf"point-e was trained on .*, these tokens are of {name}.*any_encoder"
        ):
            demand_expected_encoder("point-e", name, any_encoder=False)
        demand_expected_encoder("point-e", name, any_encoder=True)
    for name in ("open_clip:ViT-L-14-quickgelu/openai", "open_clip:ViT-L-14-quickgelu/openai=/my/file.pt"):
        demand_expected_encoder("point-e", name, any_encoder=False)


def test_a_damaged_record_leaves_no_file_that_looks_whole(tmp_path: Path, stored: StoredTokens) -> None:
    data = next(path for path in (tmp_path / "store/tokens").iterdir() if path.name.startswith("c"))
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    with pytest.raises(StoreError, match="checksum"):
        write_export(tmp_path / "out", CONSUMERS["point-e"], stored, Content("cls_patches"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("file_format", ["safetensors", "npz"])
def test_the_same_tokens_give_the_same_bytes(tmp_path: Path, stored: StoredTokens, file_format: str) -> None:
    for name in ("a", "b"):
        write_export(
            tmp_path / name, CONSUMERS["point-e"], stored, Content("cls_patches"), file_format=file_format
        )  # type: ignore[arg-type]
    files = [sorted(path for path in (tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [file_digest(path) for path in files[0]] == [file_digest(path) for path in files[1]]
    assert len(files[0]) == 3


def test_the_file_is_what_other_readers_expect(tmp_path: Path, stored: StoredTokens) -> None:
    write_export(
        tmp_path / "out", CONSUMERS["point-e"], stored, Content("cls_patches"), about={"run": "flow"}
    )
    found = load_file(tmp_path / "out/embeddings.safetensors")
    assert list(found) == ["embeddings"]
    described = read_json(tmp_path / "out/export.json")
    assert described["run"] == "flow"
    assert "before the tower's final norm" in described["norm"]


def test_a_key_that_is_not_there_is_an_error(tmp_path: Path, stored: StoredTokens) -> None:
    write_export(tmp_path / "out", CONSUMERS["point-e"], stored, Content("cls_patches"))
    export = read_export(tmp_path / "out")
    assert torch.equal(export.of([KEYS[4], KEYS[1]]), export.embeddings[[4, 1]])
    with pytest.raises(StoreError, match=r"'image-99' is not among the 11 keys"):
        export.of(["image-99"])


MEMORY = """
import resource, sys
from pathlib import Path
from flowkit.export.consumers import CONSUMERS
from flowkit.export.exporter import Content, write_export
from flowkit.export.sources import StoredTokens
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store, out = Path(sys.argv[1]), Path(sys.argv[2])
write_export(out / "small", CONSUMERS["point-e"], StoredTokens(store / "small"), Content("cls_patches"))
before = peak()
write_export(out / "large", CONSUMERS["point-e"], StoredTokens(store / "large"), Content("cls_patches"))
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """An export of 240 MiB takes no more than one of 16 MiB, but for what the libraries keep."""
    shape = (16, 257, 1024)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    for name, batches in (("small", 1), ("large", 15)):
        write_tokens(tmp_path / "store" / name, (values for _ in range(batches)), {})
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "store", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "out/large/embeddings.safetensors").stat().st_size > 15 * 16 * 2**20
    assert int(done.stdout) * 1024 < 24 * 2**20
