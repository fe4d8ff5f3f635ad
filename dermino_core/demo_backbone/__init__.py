"""The backbone that comes with dermino, so that the first run starts from something learned.

A ViT of 2.8 million parameters, pretrained by `dermino pretrain` on drawn lesions, whose weights
are kept in half precision. It has seen no photograph: it is for trying dermino, not for skin.
`model.json` says what it is, `pretrain.toml` how it was made, `record.json` what was measured.
"""

from __future__ import annotations

from pathlib import Path


def demo_folder() -> Path:
    """The backbone folder, as installed."""
    return Path(__file__).parent
