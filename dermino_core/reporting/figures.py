"""From results to figures: which data each plot shows, its caption, and how many are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dermino_core.reporting.markup import escape
from dermino_core.reporting.numbers import (
    amount_of_bytes,
    decimal,
    duration,
    estimate_html,
    plural,
)
from dermino_core.reporting.plots.calibration import calibration_plot
from dermino_core.reporting.plots.cost import cost_plot
from dermino_core.reporting.plots.forest import Group, forest_plot
from dermino_core.reporting.plots.roc import roc_plot
from dermino_core.reporting.plots.rounds import DRAWN_SITES, rounds_plot
from dermino_core.reporting.roles import models_of, roles_of
from dermino_core.results import Results, RoundRecord, Transfer

SMALL_MULTIPLES = 12
FOREST_SITES = 15
SPELT_OUT_ROUNDS = 4


@dataclass(frozen=True)
class Figure:
    """A plot with its heading and caption, all HTML."""

    title: str
    svg: str
    caption: str = ""
    legend: str = ""

    def html(self) -> str:
        """The `<figure>`."""
        caption = f"<p>{self.caption}</p>" if self.caption else ""
        return (
            f"<figure><figcaption><h3>{self.title}</h3>{caption}{self.legend}"
            f"</figcaption>{self.svg}</figure>"
        )


def grid(figures: list[Figure], *, small: bool = False) -> str:
    """Figures side by side as the width allows."""
    css_class = "grid small" if small else "grid"
    return f'<div class="{css_class}">{"".join(f.html() for f in figures)}</div>'


def limit_note(drawn: int, total: int) -> str:
    """Says so when not every hospital is drawn."""
    if drawn >= total:
        return ""
    return (
        f'<p class="note">The first {drawn} of {plural(total, "hospital")} are drawn; '
        "the tables hold them all.</p>"
    )


def _site_title(name: str) -> str:
    return f"<bdi>{escape(name)}</bdi>"


def forest(results: Results) -> str:
    """AUROC of all models: the mean, then every hospital."""
    models = models_of(results)
    drawn = results.sites[:FOREST_SITES]
    groups: list[Group] = []
    if results.mean:
        means = [
            (i, model.title, results.mean[model.key].auroc)
            for i, model in enumerate(models)
            if model.key in results.mean
        ]
        groups.append(("Mean over hospitals", means))
    for site in drawn:
        rows = [
            (i, model.title, site.evaluations[model.key].auroc)
            for i, model in enumerate(models)
            if model.key in site.evaluations
        ]
        groups.append((site.name, rows))
    if not groups:
        return ""
    figure = Figure("AUROC with 95 % intervals", forest_plot(groups, name="forest"))
    return f"<div>{figure.html()}{limit_note(len(drawn), len(results.sites))}</div>"


def roc_grid(results: Results) -> tuple[str, int]:
    """ROC small multiples and how many hospitals they show."""
    models, shared = models_of(results), roles_of(results).shared
    figures: list[Figure] = []
    drawn = results.sites[:SMALL_MULTIPLES]
    for index, site in enumerate(drawn):
        svg = roc_plot(site, models, banded=shared, name=f"roc{index}")
        evaluation = site.evaluations.get(shared)
        caption = ""
        if evaluation is not None:
            caption = f"AUROC {estimate_html(evaluation.auroc)}, n = {evaluation.n}"
        if svg is not None:
            figures.append(Figure(_site_title(site.name), svg, caption))
    return (grid(figures, small=True) if figures else ""), len(drawn)


def calibration_grid(results: Results) -> tuple[str, int]:
    """Calibration small multiples of the federated model, and how many hospitals they show."""
    shared = roles_of(results).shared
    keys = [model.key for model in models_of(results)]
    figures: list[Figure] = []
    drawn = results.sites[:SMALL_MULTIPLES]
    for index, site in enumerate(drawn):
        evaluation = site.evaluations.get(shared)
        if evaluation is None or evaluation.calibration is None:
            continue
        calibration = evaluation.calibration
        svg = calibration_plot(
            calibration,
            site=site.name,
            model=keys.index(shared),
            multiclass=len(results.classes) > 2,
            name=f"cal{index}",
        )
        caption = (
            f"Expected calibration error "
            f'<span class="value">{decimal(calibration.expected_calibration_error)}</span>, '
            f"n = {evaluation.n}"
        )
        figures.append(Figure(_site_title(site.name), svg, caption))
    return (grid(figures, small=True) if figures else ""), len(drawn)


def rounds_figures(results: Results) -> list[Figure]:
    """AUROC and training loss by round; the final evaluation closes the AUROC line."""
    names = [site.name for site in results.sites]
    figures: list[Figure] = []
    auroc = [(r.round, _round_label(r), r.auroc) for r in results.rounds if r.auroc]
    svg = rounds_plot(
        auroc, names, title="AUROC of the federated model", chance=0.5, name="rounds-auroc"
    )
    if svg is not None:
        figures.append(Figure("AUROC after each round", svg, "The federated model on test images."))
    loss = [(r.round, _round_label(r), r.train_loss) for r in results.rounds if r.train_loss]
    svg = rounds_plot(loss, names, title="Training loss", chance=None, name="rounds-loss")
    if svg is not None:
        figures.append(
            Figure("Training loss", svg, "Mean loss in the last local epoch; lower is better.")
        )
    return figures


def cost_names(results: Results) -> list[str]:
    """The names in the stacks: up to six hospitals and, of more, the rest as one."""
    names = list(
        dict.fromkeys(
            [
                *(site.name for site in results.sites),
                *(transfer.site for record in results.rounds for transfer in record.transfers),
            ]
        )
    )
    if len(names) <= DRAWN_SITES:
        return names
    kept = names[: DRAWN_SITES - 1]
    return [*kept, f"{len(names) - len(kept)} others"]


def cost_figures(results: Results) -> list[Figure]:
    """Seconds, and bytes that left the hospitals, by round and hospital."""
    names = cost_names(results)
    records = [record for record in results.rounds if record.transfers]
    panels: list[tuple[str, str, Callable[[Transfer], float], Callable[[float], str], str]] = [
        (
            "Computing time per round",
            f"Hospitals compute at the same time. {_wall_clock(results)}",
            lambda transfer: transfer.seconds,
            duration,
            "seconds",
        ),
        (
            "Bytes that left the hospitals",
            "Everything the hospitals sent to the coordinator.",
            lambda transfer: float(transfer.bytes_from_site),
            amount_of_bytes,
            "bytes",
        ),
    ]
    figures: list[Figure] = []
    for title, caption, amount, written, key in panels:
        bars = [(_round_label(record), _stack(record, names, amount)) for record in records]
        svg = cost_plot(bars, names, title=title, written=written, name=f"cost-{key}")
        if svg is not None:
            figures.append(Figure(title, svg, caption))
    return figures


def _wall_clock(results: Results) -> str:
    """Wall clock of the rounds, each or, if there are many, from the shortest to the longest."""
    seconds = [record.seconds for record in results.rounds]
    if len(seconds) > SPELT_OUT_ROUNDS:
        spread = f"{duration(min(seconds))} to {duration(max(seconds))} a round"
    else:
        spread = ", ".join(duration(spent) for spent in seconds)
    return f"Wall clock with transport: {spread}."


def _round_label(record: RoundRecord) -> str:
    return {"statistics": "before", "evaluate": "final"}.get(record.kind, str(record.round))


def _stack(
    record: RoundRecord, names: list[str], amount: Callable[[Transfer], float]
) -> Mapping[str, float]:
    stack: dict[str, float] = {}
    for transfer in record.transfers:
        name = transfer.site if transfer.site in names else names[-1]
        stack[name] = stack.get(name, 0.0) + amount(transfer)
    return stack
