"""From a pretraining run to its figures: which numbers each plot shows, and its caption."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dermino_core.reporting.figures import Figure, grid
from dermino_core.reporting.plots.curves import Points, bin_size, curves_plot
from dermino_core.reporting.plots.legend import model_legend
from dermino_core.reporting.plots.scatter import classes_legend, classes_plot, names_plot
from dermino_core.reporting.pretraining_run import LARGEST, PretrainingRun
from dermino_core.reporting.projection import Projection


@dataclass(frozen=True)
class Panel:
    """One plot: its title, the logged names with their titles, its caption, how it is drawn."""

    title: str
    lines: dict[str, str]
    caption: str = ""
    probe: bool = False
    level: float | None = None
    share: bool = False
    logarithmic: bool = False


MEASURED = (
    Panel(
        "AUROC on the monitor’s test images",
        {"knn_auroc": "kNN", "linear_auroc": "linear probe"},
        "Higher is better; dashed: guessing.",
        probe=True,
        level=0.5,
    ),
    Panel(
        "Rank of the features (RankMe)",
        {"rank_me": "RankMe"},
        "Directions that the features use.",
        probe=True,
    ),
)

LOSSES = (
    Panel(
        "Losses as share of ln K",
        {"uniform/image": "image level", "uniform/patch": "patch level"},
        "100 % is what a model that knows nothing has.",
        share=True,
    ),
    Panel("Supervised loss", {"loss/supervised": "supervised"}, "Disease prototypes, BCE."),
    Panel("KoLeo", {"loss/koleo": "KoLeo"}, "Lower: images are spread further apart."),
    Panel(
        "Distance to the starting backbone",
        {"loss/anchor": "anchor"},
        "1 − cosine of the class tokens.",
    ),
    Panel("Loss", {"loss": "loss"}, "The weighted sum that is minimised."),
)

INSIDE = (
    Panel(
        "Teacher",
        {
            "teacher/entropy": "entropy, share of ln K",
            "teacher/prototypes_in_use": "prototypes in use",
        },
        "Prototypes: of as many as a batch can use.",
        share=True,
    ),
    Panel(
        "Learning rate",
        {"learning_rate": "backbone", "head_learning_rate": "heads"},
        "Logarithmic; none is drawn while the backbone is frozen.",
        logarithmic=True,
    ),
    Panel("Teacher’s momentum", {"momentum": "momentum"}),
    Panel("Teacher’s temperature", {"teacher_temperature": "temperature"}),
    Panel("Weight decay", {"weight_decay": "weight decay"}),
)

SPEED = (
    Panel("Images per second", {"images_per_second": "images per second"}),
    Panel("Time spent waiting for images", {"data_wait": "waiting"}, share=True),
)


def panels(run: PretrainingRun, chosen: tuple[Panel, ...], *, key: str) -> str:
    """The panels of which something was logged, side by side. HTML, empty without any."""
    figures: list[Figure] = []
    longest = 0
    for index, panel in enumerate(chosen):
        lines: dict[str, Points] = {}
        for name, title in panel.lines.items():
            points = run.points(name, probe=panel.probe)
            if panel.logarithmic:
                points = [point for point in points if point[1] > 1 / LARGEST]
            if points:
                lines[title] = points
                longest = max(longest, len(points))
        if lines:
            figures.append(_figure(panel, lines, name=f"{key}-{index}"))
    return (grid(figures) if figures else "") + _thinning_note(longest)


def gradients(run: PretrainingRun) -> Panel:
    """A panel of the gradient norms, with a line for each part of the model that logged one."""
    parts = sorted({name for r in run.steps for name in r if name.startswith("gradient/")})
    return Panel(
        "Gradient norms",
        {name: name.partition("/")[2].replace("_", " ") for name in parts},
        "Before they are clipped; logarithmic.",
        logarithmic=True,
    )


def maps(projection: Projection) -> str:
    """The t-SNE figures. HTML."""
    figures: list[Figure] = []
    if len(projection.cls_xy):
        counts = Counter(str(text) for text in projection.cls_label)
        names = [text for text, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        place = {text: index for index, text in enumerate(names)}
        classes = [place[str(text)] for text in projection.cls_label]
        svg = classes_plot(projection.cls_xy, classes, names, name="map-images")
        legend = classes_legend(names, [counts[text] for text in names])
        figures.append(
            Figure(
                "Images of the monitor",
                svg,
                "Class tokens of the backbone at the end, by label (number of images).",
                legend,
            )
        )
    if len(projection.prototype_xy):
        names = [str(text) for text in projection.prototype_name]
        svg, named = names_plot(projection.prototype_xy, names, name="map-prototypes")
        left = len(names) - named
        note = f" {left} of {len(names)} names found no room." if left else ""
        figures.append(Figure("Disease prototypes", svg, f"As learnt by the end of the run.{note}"))
    return grid(figures) if figures else ""


def _figure(panel: Panel, lines: dict[str, Points], *, name: str) -> Figure:
    svg = curves_plot(
        lines,
        title=panel.title,
        name=name,
        level=panel.level,
        share=panel.share,
        logarithmic=panel.logarithmic,
    )
    legend = model_legend(list(lines), line=True) if len(panel.lines) > 1 else ""
    return Figure(panel.title, svg, panel.caption, legend)


def _thinning_note(records: int) -> str:
    size = bin_size(records)
    return f'<p class="note">Each point is the mean of {size} records.</p>' if size > 1 else ""
