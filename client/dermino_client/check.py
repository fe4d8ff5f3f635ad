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
    return prepared
