"""The one schema of `results.json`.

The coordinator writes it, reports and tables read it. Undefined numbers are `null` with a reason,
never 0 or 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dermino_core.backbone_card import BackboneCard
from dermino_core.errors import DerminoError

SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Estimate(_Model):
    """A number with its bootstrap interval. All `None` where it is undefined."""

    value: float | None = Field(ge=-1, le=1)
    low: float | None = Field(default=None, ge=-1, le=1, description="2.5th percentile")
    high: float | None = Field(default=None, ge=-1, le=1, description="97.5th percentile")
    standard_error: float | None = Field(
        default=None, ge=0, description="standard deviation of the replicates"
    )
    undefined_because: str | None = None


class RocCurve(_Model):
    """ROC curve on a fixed grid, so that its points name no single patient.

    `true_positive_rate`, `low` and `high` (pointwise 95 % band) belong to
    `false_positive_rate`; values are shares in 0..1.
    """

    false_positive_rate: list[float]
    true_positive_rate: list[float]
    low: list[float]
    high: list[float]


class Calibration(_Model):
    """Predicted against observed share of the positive class, in equal-width bins.

    For more than two classes: top-label confidence against accuracy. Empty bins hold `None`.
    """

    edges: list[float]
    predicted: list[float | None]
    observed: list[float | None]
    count: list[int]
    expected_calibration_error: float | None


class Evaluation(_Model):
    """One model on the test images of one site."""

    n: int = Field(ge=0)
    class_counts: dict[str, int]
    auroc: Estimate
    f1: Estimate
    balanced_accuracy: Estimate | None = Field(
        default=None, description="mean recall over the classes that have test images"
    )
    f1_of_largest_class: float | None = Field(
        default=None, ge=0, le=1, description="macro F1 of calling every image the largest class"
    )
    roc: RocCurve | None = None
    calibration: Calibration | None = None


class Difference(_Model):
    """One model minus another on the same test images: a paired bootstrap."""

    auroc: Estimate
    f1: Estimate
    balanced_accuracy: Estimate | None = None


class Transfer(_Model):
    """What one exchange with one site cost."""

    site: str
    seconds: float = Field(
        description="computing at the site, without the transport; 0 without a usable reply"
    )
    bytes_to_site: int
    bytes_from_site: int
    messages: int = Field(default=1, ge=0, description="messages to the site")


class Rejection(_Model):
    """Why a site's reply, or its silence, did not count in a round."""

    site: str
    code: str
    sentence: str


class Suspicion(_Model):
    """A site whose update does not fit the others': a reason to ask, not a proof."""

    site: str
    reason: Literal["length", "direction"]
    value: float = Field(description="length over the others' median, or cosine with their mean")
    score: float = Field(description="robust z-score of it among the others")
    sentence: str


class RoundRecord(_Model):
    """One line of `metrics.jsonl`: the statistics, a training round, or the final evaluation."""

    round: int = Field(
        description="1-based; the statistics before have 0, the final evaluation rounds + 1"
    )
    kind: Literal["statistics", "train", "evaluate"]
    seconds: float = Field(description="wall clock at the coordinator, transport included")
    sites: list[str] = Field(description="sites whose reply was used")
    rejected: list[Rejection] = []
    kept: list[str] = Field(
        default=[], description="sites whose sums an earlier run left; they were not asked"
    )
    transfers: list[Transfer] = []
    examples: dict[str, int] = Field(default={}, description="site -> images trained on")
    train_loss: dict[str, float] = Field(default={}, description="site -> mean loss, last epoch")
    examples_total: int | None = Field(
        default=None, description="images trained on at all sites, where that is all that is known"
    )
    auroc: dict[str, float | None] = Field(
        default={}, description="site -> AUROC of the global model after this round"
    )
    f1: dict[str, float | None] = {}
    dice: dict[str, float | None] = Field(
        default={}, description="segmentation: site -> mean Dice of the head after this round"
    )
    update_length: dict[str, float] = Field(
        default={}, description="site -> length of the change it sent; where updates are compared"
    )
    update_cosine: dict[str, float] = Field(
        default={}, description="site -> cosine of its change with the other sites' mean direction"
    )
    suspicious: list[Suspicion] = []


class SiteDistance(_Model):
    """How far a site is from the others, what chance alone gives on average, and a z-score."""

    value: float = Field(ge=0)
    chance: float = Field(ge=0)
    score: float


class SiteLikeness(_Model):
    """What a site told of its training images, and how it lies to the others."""

    site: str
    images: int
    class_counts: dict[str, int | None] = Field(description="None: not told")
    few: list[str] = Field(default=[], description="classes below the minimum, where that is told")
    drift: SiteDistance | None = Field(
        default=None, description="mean feature from the others', in standard deviations"
    )
    class_shares: SiteDistance | None = Field(
        default=None, description="total variation distance of the class shares from the others'"
    )
    contrast: float | None = Field(
        default=None, description="cosine of how its classes differ with how the others' do"
    )


class SiteStatistics(_Model):
    """What was told and found before anything was trained. Numbers derived from it, no features."""

    min_count: int = Field(description="the coordinator's; a site may have a larger one")
    sites: list[SiteLikeness]
    suspicious: list[Suspicion] = Field(default=[], description="classes against the others'")


class ModelSummary(_Model):
    """A model's mean over the sites, weighted equally, with the interval of that mean."""

    auroc: Estimate
    f1: Estimate
    balanced_accuracy: Estimate | None = None


class JoiningPoint(_Model):
    """AUROC with so many labels. Means over the draws, with 95 % intervals.

    The intervals hold the chance of which images were tested and, but for all labels, of which
    were labelled. Differences are paired: same draw, same test images.
    """

    labels: int = Field(ge=0, description="labelled training images, mean over the draws")
    draws: int = Field(ge=1)
    alone: Estimate
    federated: Estimate
    personal: Estimate
    personal_minus_alone: Estimate
    federated_minus_alone: Estimate
    personal_minus_federated: Estimate


class JoiningCurve(_Model):
    """One hospital's points, from no label to all it has; all labels are always there."""

    n_train: int = Field(ge=0)
    n_test: int = Field(ge=0)
    points: list[JoiningPoint] = Field(min_length=1, max_length=20)

    @property
    def all_labels(self) -> JoiningPoint:
        """The point of all labels that the hospital has."""
        return self.points[-1]


class SiteResult(_Model):
    """One hospital: its data, and every model on its test images."""

    name: str
    images_total: int = Field(description="rows of the site's table")
    images_used: int = Field(description="in the train or the test half, and readable")
    unreadable: int
    n_train: int
    n_test: int
    train_class_counts: dict[str, int]
    precision: str = Field(default="unknown", description="arithmetic of the backbone there")
    evaluations: dict[str, Evaluation] = Field(description="model key -> evaluation")
    global_minus: dict[str, Difference] = Field(
        default={}, description="model key -> the federated model minus that model, paired"
    )
    joining: JoiningCurve | None = Field(
        default=None, description="what joining gives it, against the number of its labels"
    )


class SitePrivacy(_Model):
    """What a run cost a site's privacy budget, as the site accounted for it."""

    epsilon: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    unit: Literal["patient", "image"]
    units: int | None = Field(default=None, description="patients or images; None: not told")
    noise_multiplier: float | None = Field(default=None, description="None: not told")
    warning: str | None = Field(default=None, description="why this epsilon says little")


class SiteTotals(_Model):
    """What is known of all sites together when single sites' numbers stay with them."""

    sites: list[str]
    images_total: int
    images_used: int
    unreadable: int
    n_train: int
    n_test: int
    train_class_counts: dict[str, int]


class ModelDescription(_Model):
    """What a model key in this file means."""

    key: str
    title: str
    description: str


class CrossSite(_Model):
    """AUROC of the model of site i (rows) on the test images of site j (columns)."""

    rows: list[str]
    columns: list[str]
    auroc: list[list[float | None]]
    f1: list[list[float | None]]


class BackboneInfo(_Model):
    """The frozen backbone that every number in this file rests on."""

    name: str
    architecture: str
    fingerprint: str
    width: int
    precision: str
    pretrained: bool = Field(description="False for random weights: the numbers mean nothing")

    @classmethod
    def of(cls, card: BackboneCard, precision: str) -> BackboneInfo:
        """The part of a backbone's card that results carry."""
        return cls(
            name=card.name,
            architecture=card.architecture,
            fingerprint=card.fingerprint,
            width=card.width,
            precision=precision,
            pretrained=card.pretrained,
        )

    @property
    def unfit_because(self) -> str | None:
        """Why its numbers say nothing about skin; None for one that has seen photographs."""
        if not self.pretrained:
            return "has random weights"
        return "has seen drawn lesions only" if self.name == "demo" else None


class Results(_Model):
    """Everything a run found. `results.json` is exactly this."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["federation"] = "federation"
    dermino_version: str
    created: str = Field(description="ISO 8601, UTC")
    title: str
    task: str
    classes: list[str] = Field(description="the last one is the positive class of a binary task")
    strategy: str
    engine: Literal["inprocess", "ray", "deployment"]
    rounds_planned: int
    rounds_done: int
    seed: int
    backbone: BackboneInfo
    machine: str = Field(description="where the coordinator ran: processor, cores, memory")
    models: list[ModelDescription]
    sites: list[SiteResult]
    mean: dict[str, ModelSummary] = Field(description="model key -> mean over sites")
    mean_global_minus: dict[str, Difference] = Field(
        default={}, description="model key -> mean over sites of the paired differences"
    )
    cross_site: CrossSite | None = None
    secure_aggregation: bool = False
    personal: bool = Field(
        default=False, description="every site was sent the sums of all, for a model of its own"
    )
    totals: SiteTotals | None = Field(
        default=None, description="under secure aggregation, in place of `sites`"
    )
    privacy: dict[str, SitePrivacy] = Field(
        default={}, description="site -> its privacy cost; empty: trained without a guarantee"
    )
    statistics: SiteStatistics | None = Field(
        default=None, description="of the sites before training; None: not asked for"
    )
    rounds: list[RoundRecord]
    seconds: dict[str, float] = Field(default={}, description="stage -> seconds")
    missing_sites: list[str] = []
    withdrawn: list[str] = Field(
        default=[], description="sites whose part was taken out of the sums, as if never asked"
    )
    warnings: list[str] = []

    @property
    def site_names(self) -> list[str]:
        """The hospitals behind these numbers, also where only their sums are known."""
        return self.totals.sites if self.totals else [site.name for site in self.sites]


Schema = TypeVar("Schema", bound=BaseModel)


def read_results(path: Path) -> Results:
    """Read a federation's `results.json`, or the one in a run folder; see :func:`read_as`."""
    return read_as(Results, path)


def read_as(schema: type[Schema], path: Path) -> Schema:
    """Read the `results.json` of any kind of run, or the one in its folder.

    Raises
    ------
    DerminoError
        `RESULTS_INVALID` if it is missing, damaged, or of another kind or schema version.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        return schema.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DerminoError(
            "RESULTS_INVALID",
            "There are no results here.",
            where=file,
            fix="Give the run folder of a run that finished; resume an unfinished one first.",
        ) from None
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        version = schema.model_fields["schema_version"].default
        raise DerminoError(
            "RESULTS_INVALID",
            f"This file is not a results file of schema version {version}: "
            f"{str(error).splitlines()[0]}",
            where=file,
            fix="Write it again with the version of dermino that made the run.",
        ) from error
