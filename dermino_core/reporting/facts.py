"""Run facts: what a reader needs to repeat the run or to doubt it. HTML."""

from __future__ import annotations

from dermino_core.reporting.markup import clean, escape, table
from dermino_core.reporting.numbers import count, duration, join_names
from dermino_core.results import Results

ENGINES = {
    "inprocess": "simulation in one process",
    "ray": "simulation with Ray",
    "deployment": "real deployment over the network",
}


def facts_list(results: Results) -> str:
    """A definition list of the run's settings."""
    backbone = results.backbone
    weights = "pretrained" if backbone.pretrained else "random weights"
    architecture = f", {backbone.architecture}" if backbone.architecture != backbone.name else ""
    fingerprint = clean(backbone.fingerprint)
    facts = [
        ("Task", results.task),
        ("Classes", ", ".join(results.classes)),
        ("Strategy", results.strategy),
        ("Secure aggregation", "yes" if results.secure_aggregation else "no"),
        ("Personal models", "yes" if results.personal else "no"),
        ("Rounds", f"{results.rounds_done} of {results.rounds_planned}"),
        ("Backbone", f"{backbone.name}{architecture} ({weights}, {backbone.width} features)"),
        ("Fingerprint", fingerprint[:16] + ("…" if len(fingerprint) > 16 else "")),
        ("Precision", backbone.precision),
        ("Seed", str(results.seed)),
        ("Engine", ENGINES[results.engine]),
        ("Machine", results.machine),
        ("dermino", f"{results.dermino_version} (results schema {results.schema_version})"),
        ("Date", results.created),
        ("Missing hospitals", join_names(results.missing_sites, limit=50) or "none"),
    ]
    if results.seconds:
        stages = (f"{stage} {duration(spent)}" for stage, spent in results.seconds.items())
        facts.append(("Time", ", ".join(stages)))
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts-list">{items}</dl>'


def rejections_table(results: Results) -> str:
    """Who did not count in which round, and why."""
    rows = [
        [
            {"statistics": "statistics", "evaluate": "final test"}.get(
                record.kind, str(record.round)
            ),
            f"<bdi>{escape(rejection.site)}</bdi>",
            f"{escape(rejection.sentence)} <code>{escape(rejection.code)}</code>",
        ]
        for record in results.rounds
        for rejection in record.rejected
    ]
    if not rows:
        return "<p>Every reply that was asked for arrived and was used.</p>"
    return table(["Round", "Hospital", "Why it did not count"], rows, label="Rejected replies")


def sent_explanation(results: Results) -> str:
    """What a message holds, as far as the strategy fixes it."""
    parts: list[str] = []
    if results.engine != "deployment":
        parts.append(
            "This was a simulation on one machine, so nothing crossed a network; the bytes are "
            "those of the messages that would have."
        )
    if results.secure_aggregation:
        parts.append(
            "Each training reply was masked (secure aggregation): the coordinator could read the "
            "sum over the hospitals and no single hospital's part, neither its model nor its "
            "number of images nor its test results. That is why this page has no numbers of single "
            "hospitals; each has its own on its own machine."
        )
    elif results.strategy == "fedavg":
        classes, width = len(results.classes), results.backbone.width
        parts.append(
            f"With the strategy fedavg a training reply holds two arrays, the linear head: its "
            f"weights ({classes} × {count(width)}) and its biases ({classes}), together "
            f"{count(classes * (width + 1) * 4)} bytes as 32-bit numbers, with the "
            "number of images and the measurements on this page; the first one also holds the "
            "head the hospital trained alone, if the cross-site matrix was asked for. Images and "
            "their features are not part of any message."
        )
    else:
        parts.append(
            f"What a message holds is fixed by the strategy “{results.strategy}”: the site half of "
            "its source file."
        )
    if results.personal:
        parts.append(
            "This run made personal models: with the final evaluation every hospital was sent the "
            "sums of all hospitals together, less its own the sums of the others. The personal "
            "models stayed where they were made."
        )
    return f"<p>{escape(' '.join(parts))}</p>"
