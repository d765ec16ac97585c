"""The 80 object categories of COCO 2017, by id.

Their ids go from 1 to 90 with gaps, so only the order is used; ids are those of the annotations that are read.
"""

from __future__ import annotations

COCO_CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
PROMPT = "a photo of a {}."
"""The template of the CLIP paper (Radford et al. 2021, section 3.1.4), word for word: no "an" before vowels."""


def class_prompts() -> tuple[list[str], list[str]]:
    """Return the 80 class names and their prompts (`traffic light`, `a photo of a traffic light.`)."""
    return list(COCO_CATEGORIES), [PROMPT.format(name) for name in COCO_CATEGORIES]
