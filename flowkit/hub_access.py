"""Where the hub of Hugging Face is, and who asks: HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import os

PUBLIC_ENDPOINT = "https://huggingface.co"
LIBRARY = "flowkit"


def hub_endpoint() -> str:
    """Return the hub's address without a slash at its end; HF_ENDPOINT names another one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or PUBLIC_ENDPOINT


def hub_headers() -> dict[str, str]:
    """Return the headers of a request, with the login if there is one; they are for the hub's own host alone."""
    from huggingface_hub.utils import build_hf_headers

    return {name: value for name, value in build_hf_headers(library_name=LIBRARY).items() if value}
