"""`dermino-client check`: everything that joining does, except connect."""

from __future__ import annotations

import numpy as np

from dermino_client.prepare import PreparedSite, prepare_site
from dermino_client.site import Site
from dermino_core.console import say


def check_site(site: Site) -> PreparedSite:
    """Prepare a site and say what was found.

    Raises
    ------
    DerminoError
        Whatever is wrong with the site file, the data or the backbone.
    """
    say(f"{site.name}: site file {site.file}")
    prepared = prepare_site(site)
    say(
        f"{site.name}: {prepared.images_used} of {prepared.images_total} images used, "
        f"{prepared.unreadable} unreadable, {prepared.decoded} newly embedded"
    )
    for reason, count in prepared.left_out.items():
        if count:
            say(f"{site.name}: {count} images {reason}")
    for half in ("train", "test"):
        _, labels, groups = prepared.half(half)
        counts = np.bincount(labels, minlength=len(prepared.classes))
        shown = ", ".join(f"{n} {c}" for c, n in zip(prepared.classes, counts, strict=True))
        say(f"{site.name}: {half}: {len(labels)} images of {len(set(groups))} groups ({shown})")
    card = prepared.card
    say(
        f"{site.name}: backbone {card.name}, {card.width} features, {prepared.precision}, "
        f"fingerprint {card.fingerprint[:16]}"
    )
    if site.segmentation is not None:
        _check_masks(site)
    return prepared


def _check_masks(site: Site) -> None:
    from dermino_client.segmentation_prepare import prepare_masks

    masks = prepare_masks(site)
    say(
        f"{site.name}: segmentation: {len(masks.train)} training images in {masks.views} views, "
        f"{len(masks.test)} test images of {len(set(masks.units))} groups, {masks.left_out} left "
        f"out, {masks.embedded} newly embedded; {masks.image_size} pixels, {masks.depths} depths"
    )
    for note in masks.notes:
        say(f"{site.name}: segmentation: {note}")
