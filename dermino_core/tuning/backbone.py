"""The tuned backbone as a folder that `--backbone` takes, like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy.typing as npt

from dermino_core.backbone import BackboneCard, load_network, save_backbone
from dermino_core.tuning.adapters import Adaptation, check_fits, merged


def write_tuned_backbone(
    folder: Path,
    spec: str,
    adaptation: Adaptation,
    arrays: Mapping[str, npt.NDArray],
    *,
    about: Mapping[str, object] | None = None,
    name: str | None = None,
) -> BackboneCard:
    """Write the backbone that `spec` names with the arrays merged into its weights.

    Parameters
    ----------
    folder
        Receives model.safetensors and model.json.
    arrays
        As :meth:`dermino_core.tuning.adapters.Adaptation.shapes` names them; others are ignored.
    about
        More for model.json.
    name
        For people; the folder by default.

    Raises
    ------
    DerminoError
        CONFIG_INVALID for a backbone that is no plain ViT or does not fit; what loading raises.
    """
    from dermino_core.tuning.network import check_plain

    model, weights, card = load_network(spec)
    check_plain(model)
    tuned = merged(adaptation, arrays, weights, card.width)
    return save_backbone(
        folder,
        tuned,
        architecture=card.architecture,
        preprocessing=card.preprocessing,
        about={
            "tuned_from": {"name": Path(card.name).stem, "fingerprint": card.fingerprint},
            "tuned": asdict(adaptation),
            **(about or {}),
        },
        name=name,
    )


def check_backbone(spec: str, adaptation: Adaptation) -> None:
    """Refuse a backbone that cannot be tuned so.

    Raises
    ------
    DerminoError
        CONFIG_INVALID for one that is no plain ViT or does not fit; what loading it raises.
    """
    from dermino_core.tuning.network import check_plain

    model, weights, card = load_network(spec)
    check_plain(model)
    check_fits(adaptation, weights, card.width)
