"""Bars of extraction, each a ratio of images per CPU second against the bare work in the same run.

The pictures are 640 x 480 JPEGs of the size that photographs have (about 80 kB at quality 90): noise with a falling
spectrum, in which colour varies less than brightness. Bare decoding is PIL and open_clip's transform on bytes that lie
in memory, a bare forward pass takes pixels that are decoded already; extraction reads the tar, checks it, decodes,
encodes, and writes a store with checksums. On a GPU, EVA-CLIP-8B and CLIP ViT-L/14 with random weights are measured
as well.
"""

from __future__ import annotations

import io
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from rows import Row, row

from flowkit.encoders.contract import FrozenEncoder
from flowkit.encoders.demo_towers import PREPROCESSING as DEMO_PREPROCESSING
from flowkit.encoders.open_clip_encoder import OpenClipEncoder
from flowkit.encoders.registry import load_encoder
from flowkit.features.decoding import decoded_batches
from flowkit.features.extraction import extract_tar
from flowkit.shards.reader import Sample, list_samples, read_samples

WIDTH, HEIGHT, QUALITY = 640, 480, 90
PHOTOGRAPHS, DISTINCT = 384, 32
VIT_IMAGES, VIT_BATCH, DEMO_BATCH, INPUT_BATCH = 8, 4, 64, 16
VIT_PIXELS = PreprocessCfg(size=224)
Work = Callable[[], int]
"""Does one piece of work and returns the number of images."""


def rows(folder: Path, *, repeats: int = 7) -> list[Row]:
    """Measure everything; data are made below `folder` if they are not there yet."""
    bench = Bench(folder / "extraction")
    bench.make()
    found = [*input_rows(bench, repeats), demo_row(bench, repeats), vit_row(bench, repeats)]
    if torch.cuda.is_available():
        from gpu_bench import gpu_rows

        found += gpu_rows(bench, repeats)
    return found


@dataclass(frozen=True)
class Rate:
    """Images per second of processor time and of wall time."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Bench:
    """The pictures, in a tar and as bytes."""

    folder: Path

    @property
    def tar(self) -> Path:
        return self.folder / "photographs.tar"

    def make(self) -> None:
        """Write the tar unless it is there."""
        if self.tar.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        pictures = [photograph(number) for number in range(DISTINCT)]
        partial = self.tar.with_suffix(".partial")
        with tarfile.open(partial, "w") as tar:
            for number in range(PHOTOGRAPHS):
                caption = f"noise number {number % DISTINCT}".encode()
                for extension, content in (("jpg", pictures[number % DISTINCT]), ("txt", caption)):
                    member = tarfile.TarInfo(f"{number:05d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        partial.rename(self.tar)

    def images(self, count: int) -> list[bytes]:
        return [
            sample.image for sample in islice(read_samples(self.tar), count) if isinstance(sample, Sample)
        ]

    def extract(self, encoder: FrozenEncoder, count: int, batch_size: int, **options: Any) -> int:
        """Write a new store; returns the number of its samples."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        return extract_tar(
            self.tar, encoder, store, batch_size=batch_size, attributes={}, limit=count, **options
        ).samples


def input_rows(bench: Bench, repeats: int) -> list[Row]:
    """From the tar to pixels with one thread, both ways, beside PIL and open_clip's transform."""
    encoder = random_open_clip()
    images = bench.images(PHOTOGRAPHS)

    def ours(decode: str) -> Work:
        return lambda: read_through(bench.tar, encoder, PHOTOGRAPHS, decode)

    works = {"bare": bare_decode(images, VIT_PIXELS), "exact": ours("exact"), "fast": ours("fast")}
    rates = measure(works, repeats)
    return [
        ratio_row("input path / bare PIL and transform", rates, "exact", ("bare",), 0.95),
        ratio_row("fast input path / bare PIL and transform", rates, "fast", ("bare",), 2.0),
    ]


def demo_row(bench: Bench, repeats: int) -> Row:
    """The demo tower, which is so small that decoding dominates."""
    encoder = load_encoder("demo-vit")
    images = bench.images(PHOTOGRAPHS)
    works = {
        "decode": bare_decode(images, DEMO_PREPROCESSING),
        "forward": bare_forward(encoder, images, DEMO_BATCH),
        "extraction": lambda: bench.extract(encoder, PHOTOGRAPHS, DEMO_BATCH),
    }
    rates = measure(works, repeats)
    name = "extraction, demo tower / slower of bare decode and forward"
    return ratio_row(name, rates, "extraction", ("decode", "forward"), 0.9)


def vit_row(bench: Bench, repeats: int) -> Row:
    """ViT-B/16 at 224 px, where the forward pass dominates."""
    encoder = random_open_clip()
    works = {
        "forward": bare_forward(encoder, bench.images(VIT_IMAGES), VIT_BATCH),
        "extraction": lambda: bench.extract(encoder, VIT_IMAGES, VIT_BATCH),
    }
    rates = measure(works, repeats)
    return ratio_row("extraction, ViT-B/16 / bare forward", rates, "extraction", ("forward",), 0.9)


def random_open_clip(
    model_name: str = "ViT-B-16", *, precision: str = "fp32", device: str = "cpu"
) -> OpenClipEncoder:
    """An open_clip model with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(model_name, pretrained=None)
    return OpenClipEncoder(
        model_name,
        model,
        preprocessing=VIT_PIXELS,
        tokenizer=lambda: open_clip.get_tokenizer(model_name),
        precision=precision,
        device=device,
    )


def bare_decode(images: list[bytes], pixels: PreprocessCfg) -> Work:
    """What everybody writes: PIL, RGB, open_clip's transform."""
    transform = image_transform_v2(pixels, is_train=False)

    def work() -> int:
        for content in images:
            transform(Image.open(io.BytesIO(content)).convert("RGB"))
        return len(images)

    return work


def bare_forward(encoder: FrozenEncoder, images: list[bytes], batch_size: int) -> Work:
    """The encoder on pixels that are there."""
    pixels = [encoder.preprocess(Image.open(io.BytesIO(content)).convert("RGB")) for content in images]
    batches = [torch.stack(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]

    def work() -> int:
        with torch.inference_mode():
            for batch in batches:
                encoder.encode(batch)
        return len(pixels)

    return work


def read_through(tar: Path, encoder: FrozenEncoder, count: int, decode: Any) -> int:
    """Make the pixels of the first `count` members as extraction does."""
    found = 0
    batches = decoded_batches(
        list_samples(tar), encoder, start=0, stop=count, batch_size=INPUT_BATCH, decode=decode
    )
    with closing(batches):
        for batch in batches:
            found += len(batch.rows)
            batch.release()
    return found


def measure(works: dict[str, Work], repeats: int) -> dict[str, list[Rate]]:
    """Do every work once for nothing, then all of them there and back, so that a slow drift meets all alike."""
    for work in works.values():
        work()
    found: dict[str, list[Rate]] = {name: [] for name in works}
    for _ in range(repeats):
        spent = {name: [0.0, 0.0, 0.0] for name in works}
        for name in [*works, *reversed(works)]:
            cpu, wall = time.process_time(), time.perf_counter()
            images = works[name]()
            one = (images, time.process_time() - cpu, time.perf_counter() - wall)
            spent[name] = [sum(pair) for pair in zip(spent[name], one, strict=True)]
        for name, (images, cpu, wall) in spent.items():
            found[name].append(Rate(images / cpu, images / wall))
    return found


def ratio_row(
    name: str, rates: dict[str, list[Rate]], contender: str, peers: Iterable[str], demand: float
) -> Row:
    """Images per CPU second of the contender over the slowest of the peers, repeat by repeat."""
    turns = list(zip(rates[contender], *(rates[peer] for peer in peers), strict=True))
    wall = statistics.median(own.wall / min(peer.wall for peer in others) for own, *others in turns)
    each = {
        f"{which}_images_per_cpu_s": round(statistics.median(rate.cpu for rate in rates[which]), 2)
        for which in rates
    }
    ratios = [own.cpu / min(peer.cpu for peer in others) for own, *others in turns]
    return row(name, ratios, demand, wall=round(wall, 3), **each)


def photograph(number: int) -> bytes:
    """A JPEG of smooth noise, mostly grey."""
    dice = np.random.default_rng(number)
    radius = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    radius[0, 0] = 1
    waves = np.fft.rfft2(dice.standard_normal((4, HEIGHT, WIDTH))) / radius**1.45
    grey, *colours = np.fft.irfft2(waves, s=(HEIGHT, WIDTH))
    pixels = np.stack([128 + 45 * grey / grey.std() + 10 * colour / colour.std() for colour in colours], -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
