"""Named sizes of the diffusion transformer. Imports nothing, so that a configuration can show them without torch.

Grouped-query attention: `heads` query heads share `kv_heads` key and value heads. `ffn_width` is the hidden width of
SwiGLU; `adapter_layers` the depth of the condition adapter (0: one linear projection).
"""

from __future__ import annotations

SIZES: dict[str, dict[str, int]] = {
    "demo": {"width": 128, "depth": 3, "heads": 4, "kv_heads": 2, "ffn_width": 256, "adapter_layers": 0},
    "tiny": {"width": 384, "depth": 6, "heads": 6, "kv_heads": 2, "ffn_width": 1024, "adapter_layers": 6},
    "small": {"width": 512, "depth": 8, "heads": 8, "kv_heads": 4, "ffn_width": 1536, "adapter_layers": 6},
    "base": {"width": 768, "depth": 12, "heads": 12, "kv_heads": 4, "ffn_width": 2048, "adapter_layers": 6},
    "large": {"width": 1024, "depth": 20, "heads": 16, "kv_heads": 8, "ffn_width": 4096, "adapter_layers": 6},
    "huge": {"width": 1280, "depth": 22, "heads": 20, "kv_heads": 10, "ffn_width": 5120, "adapter_layers": 6},
}
