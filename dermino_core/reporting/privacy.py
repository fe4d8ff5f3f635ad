"""What a run cost each hospital's privacy budget, as HTML."""

from __future__ import annotations

from dermino_core.reporting.markup import escape, table
from dermino_core.reporting.numbers import UNDEFINED, count, decimal
from dermino_core.results import Results


def privacy_explanation(results: Results) -> str:
    """What epsilon means here, and what it does not cover."""
    units = {privacy.unit for privacy in results.privacy.values()}
    protected = "all training images of one patient together" if "patient" in units else "one image"
    text = (
        f"Each hospital added its own noise while training, so that the model would be almost as "
        f"likely without {protected}: the smaller epsilon, the less can be told. Epsilon is what "
        "the hospital's own ledger reserved for this run, all rounds together. It covers the "
        "training images' influence on the model. It does not cover the measurements on the test "
        "images, which are sums over many images without added noise."
    )
    return f"<p>{escape(text)}</p>"


def privacy_table(results: Results) -> str:
    """Epsilon of every hospital beside the accuracy it got for it."""
    aurocs = {
        site.name: site.evaluations["global"].auroc.value
        for site in results.sites
        if "global" in site.evaluations
    }
    rows = []
    for name, privacy in sorted(results.privacy.items()):
        units = UNDEFINED if privacy.units is None else f"{count(privacy.units)} {privacy.unit}s"
        warning = f'<span class="why">{escape(privacy.warning)}</span>' if privacy.warning else ""
        rows.append(
            [
                f"<bdi>{escape(name)}</bdi>",
                f"{privacy.epsilon:.3g}",
                f"{privacy.delta:.0e}",
                units,
                decimal(privacy.noise_multiplier),
                decimal(aurocs.get(name)),
                warning,
            ]
        )
    head = ["Hospital", "Epsilon", "Delta", "Protects", "Noise multiplier", "AUROC there", "Note"]
    return table(head, rows, label="Privacy cost per hospital")
