"""Three presets: what fills the fields that a configuration file leaves out.

`recommended` is the default: each field's own default, for groups with 5,000 to 500,000 images who
start from DINOv2 weights, and the reasons are these.

- Dermatology augmentation: a lesion has no up, so flips and right angles; diagnosis reads colour,
  so hue moves by 0.02 at most, nothing is made gray and nothing is solarised.
- Heads start random; their gradients would wreck a pretrained backbone. So the backbone is frozen
  for the first part of the run (`optimiser.head_warmup`), its learning rate is a fraction of the
  heads', and self-distillation weighs half and KoLeo a tenth of what they do in DINOv2: with their
  weights, on 700 labelled images, the backbone's gradient had a norm of 7 to 11 where that of the
  supervised loss alone had 2 to 4, and clipping at 3 then slows down what the labels teach.
- The teacher's memory is capped at a tenth of the run: with a momentum of 0.996 to 1 a run of 500
  steps would export the weights it started with.
- Heads and targets: separate heads, Sinkhorn-Knopp on the logits, patch loss averaged over the
  crops that have a mask, supervision by cosine (the product of a LayerNormed class token with a raw
  text embedding saturates the sigmoid).

`paper` takes the text of DermINO literally where it is consistent. `dinov2` follows DINOv2's code
(no supervision: the paper's baseline of that name) in crops, colours, masks, heads, the reading of
the losses, momentum and position embeddings; its learning rate is the paper's 2e-3 (DINOv2's own
short recipe has 4e-3), targets come from Sinkhorn-Knopp as in DINOv2's ViT-L recipe (its default
is centering: `loss.targets`), stochastic depth rises with the block where DINOv2's is even, and
tokens and position embeddings do not decay, which they do there.
"""

from __future__ import annotations

from typing import Any, Literal

PresetName = Literal["recommended", "paper", "dinov2"]

_DINOV2: dict[str, Any] = {
    "model": {"drop_path": 0.3, "position_resize": "dinov2"},
    "heads": {"shared": True},
    "augmentation": {
        "vertical_flip": 0.0,
        "right_angles": 0.0,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale": 0.2,
        "blur": (0.0, 0.9, 0.5),
        "solarise": 0.2,
    },
    "loss": {
        "image": 1.0,
        "patch": 1.0,
        "koleo": 0.1,
        "supervised": 0.0,
        "patch_mean_over": "all_crops",
    },
    "teacher": {"horizon": 0.0},
    "optimiser": {"learning_rate": 2e-3, "head_warmup": 0.0, "head_learning_rate": 0.0},
}

PRESETS: dict[PresetName, dict[str, Any]] = {
    "recommended": {},
    "dinov2": _DINOV2,
    "paper": {
        **_DINOV2,
        "heads": {"shared": False},
        "loss": {
            **_DINOV2["loss"],
            "supervised": 1.0,
            "supervised_form": "literal",
            "supervised_mean_over": "all_images",
            "pairs": "same",
            "sinkhorn_after": "softmax",
        },
        "optimiser": {**_DINOV2["optimiser"], "scaling": "none"},
        "run": {"epochs": 100, "batch_size": 256},
    },
}
"""Preset -> section -> field -> value."""
