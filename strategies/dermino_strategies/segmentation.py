"""Segmentation heads on frozen patch features, trained together: FedAvg (McMahan et al. 2017).

The hospital: trains the head it was sent for the local epochs on its own images and masks, Adam
anew in every round, one cosine over the whole run. What leaves it: the head's floating-point
state (weights, biases, running means and variances of batch norm), the number of its training
images and the loss of its last epoch. The coordinator: the mean of the heads, each weighted by
its images, batch norm's running statistics like everything else; counters of batches stay home,
because with a fixed momentum nothing depends on them.

Linear head and UperNet are those of :mod:`dermino_core.evaluation.segmentation_heads` (paper,
section 4.2.3), loss and training loop those of `dermino evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dermino_core.errors import DerminoError
from dermino_core.evaluation.measure import measured
from dermino_core.evaluation.segmentation_scores import METRICS, overlap_scores
from dermino_core.evaluation.segmentation_settings import SegmentationSettings
from dermino_core.evaluation.segmentation_turns import TURNS, turned, turned_levels
from dermino_core.metrics import bootstrap_weights
from dermino_core.results import Estimate
from dermino_core.segmentation_results import Overlap
from dermino_strategies.base import Arrays, Settings, SiteUpdate, check_arrays
from dermino_strategies.running_sum import RunningSum

if TYPE_CHECKING:
    from dermino_core.evaluation.segmentation_heads import Head

Rows = npt.NDArray[np.integer]
Batch = tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]
Scores = npt.NDArray[np.float64]

USUAL_ROUNDS = 10

_SCORED_AT_ONCE = 16


class SegmentationMethod(Settings):
    """What the sites train, and how; the same at every site."""

    head: Literal["linear", "upernet"] = "linear"
    local_epochs: int = Field(default=2, ge=1, le=1000, description="epochs in each round")
    learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="default: 5e-3 of the linear head, 1e-3 of UperNet"
    )
    batch_size: int = Field(default=4, ge=2, le=1024)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    dice_weight: float = Field(default=1.0, ge=0, le=1000)
    channels: int = Field(default=64, ge=1, le=1024, description="of every level of UperNet")
    image_size: int = Field(default=224, ge=16, le=2048, description="pixels a side")
    augment: bool = Field(default=True, description="mirror and turn training images at random")

    @property
    def rate(self) -> float:
        """The learning rate. Few steps a round bring the linear head nowhere at the paper's 1e-3:
        on drawn hospitals 10 rounds of 2 epochs gave a mean Dice of 0.79, and 0.83 at 5e-3."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 5e-3 if self.head == "linear" else 1e-3

    @property
    def depths(self) -> int:
        """Depths of the backbone that the head looks at."""
        return 1 if self.head == "linear" else 4

    def for_training(self, epochs: int) -> SegmentationSettings:
        """As the core's training loop and a model folder want it."""
        return SegmentationSettings(
            image_size=self.image_size,
            epochs=epochs,
            learning_rate=self.rate,
            dropout=self.dropout,
            batch_size=self.batch_size,
            dice_weight=self.dice_weight,
            channels=self.channels,
            flips=self.augment,
        )


class PatchData(Protocol):
    """Where a head gets patch features and masks from."""

    def __len__(self) -> int:
        """Images."""
        ...

    def take(self, rows: Rows, depths: int, views: npt.NDArray[np.floating], turns: Rows) -> Batch:
        """Features [B, depths, h, w, D] and masks [B, S, S] of some images.

        `views`, in [0, 1), choose among the views that an image was embedded in; `turns` lay the
        grid and its mask down another way, see :mod:`~.evaluation.segmentation_turns`.
        """
        ...


@dataclass(frozen=True)
class SitePatches:
    """One half of a site's images.

    Attributes
    ----------
    features
        float16 [n, V, L, h, w, D]; view v is the image under turn v, as the backbone saw it.
    masks
        uint8 [n, S, S], 0 or 1, of the image as it is.
    """

    features: npt.NDArray[np.float16]
    masks: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, rows: Rows, depths: int, views: npt.NDArray[np.floating], turns: Rows) -> Batch:
        """See :class:`PatchData`."""
        chosen = (np.asarray(views) * self.features.shape[1]).astype(np.int64)
        features, masks = [], []
        for row, view, turn in zip(rows, chosen, turns, strict=True):
            features.append(turned_levels(self.features[row, view, -depths:], int(turn)))
            masks.append(turned(turned(self.masks[row], int(view)), int(turn)))
        return np.stack(features), np.stack(masks)


@dataclass(frozen=True)
class PooledPatches:
    """The images of several sites, one after the other."""

    parts: Sequence[PatchData]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def take(self, rows: Rows, depths: int, views: npt.NDArray[np.floating], turns: Rows) -> Batch:
        """See :class:`PatchData`."""
        ends = np.cumsum([len(part) for part in self.parts])
        batches: list[Batch] = []
        for place, row in enumerate(rows):
            part = int(np.searchsorted(ends, row, side="right"))
            own = np.array([row - (ends[part] - len(self.parts[part]))])
            one = slice(place, place + 1)
            batches.append(self.parts[part].take(own, depths, views[one], turns[one]))
        features, masks = zip(*batches, strict=True)
        return np.concatenate(features), np.concatenate(masks)


def initial_arrays(method: SegmentationMethod, width: int, seed: int) -> Arrays:
    """What the first round starts from: a fresh head under the seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return arrays_of(_fresh(method, width))


def arrays_of(head: Head) -> Arrays:
    """The head's floating-point state as float32 arrays, by torch's names."""
    return {
        name: value.detach().cpu().float().contiguous().numpy().copy()
        for name, value in head.state_dict().items()
        if value.is_floating_point()
    }


def head_of(method: SegmentationMethod, width: int, arrays: Arrays) -> Head:
    """The head that arrays stand for, in evaluation mode.

    Raises
    ------
    ValueError
        If names or shapes are not those of this head.
    """
    import torch

    head = _fresh(method, width)
    check_arrays(arrays_of(head), arrays)
    state = head.state_dict() | {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
    head.load_state_dict(state, strict=True)
    return head.eval()


def _fresh(method: SegmentationMethod, width: int) -> Head:
    from dermino_core.evaluation.segmentation_heads import build_head

    return build_head(method.head, width, channels=method.channels, dropout=method.dropout)


def site_update(
    data: PatchData,
    method: SegmentationMethod,
    arrays: Arrays,
    *,
    width: int,
    round_: int,
    rounds: int,
    seed: int,
    device: str = "cpu",
) -> SiteUpdate:
    """Site half: the global head after the local epochs.

    Order of images, dropout and turns depend on the run's seed and the round alone.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` for fewer than two images; `RUN_FAILED` if the loss is not finite.
    """
    from dermino_core.evaluation.segmentation_training import train_head

    own = round_seed(seed, round_)
    rng = np.random.default_rng([own, 1])

    def batch_of(rows: Rows) -> Batch:
        n = len(rows)
        if not method.augment:
            return data.take(rows, method.depths, np.zeros(n), np.zeros(n, np.int64))
        return data.take(rows, method.depths, rng.random(n), rng.integers(0, TURNS, n))

    losses: list[float] = []
    head = train_head(
        lambda: head_of(method, width, arrays),
        batch_of,
        len(data),
        method.for_training(method.local_epochs),
        seed=own,
        device=device,
        title=None,
        part=(round_ - 1, rounds),
        on_epoch=losses.append,
    )
    return SiteUpdate(arrays_of(head), len(data), {"train-loss": losses[-1]})


def round_seed(seed: int, round_: int) -> int:
    """The seed of one round's training, the same at every site."""
    return int(np.random.SeedSequence([seed, round_]).generate_state(1)[0])


def aggregate(updates: Mapping[str, SiteUpdate]) -> Arrays:
    """Coordinator half: the mean of the heads, weighted by images, in float64, sites in order.

    `updates` maps site names to checked updates; at least one.
    """
    running = RunningSum(updates)
    for site in sorted(updates):
        update = updates[site]
        weighted = {
            name: update.examples * a.astype(np.float64) for name, a in update.arrays.items()
        }
        running.add(site, weighted)
    images = sum(update.examples for update in updates.values())
    return {name: (total / images).astype(np.float32) for name, total in running.total().items()}


def check_update(like: Arrays, update: SiteUpdate) -> None:
    """Refuse an update that would poison the head.

    Raises
    ------
    ValueError
        In words that name no path.
    """
    check_head(like, update.arrays)
    if update.examples < 1:
        raise ValueError(f"claims to have trained on {update.examples} images")
    if not all(np.isfinite(value) for value in update.metrics.values()):
        raise ValueError("its loss is not finite")


def check_head(like: Arrays, arrays: Arrays) -> None:
    """Hold a head from the other side to names, shapes and types, and its variances to be some.

    Raises
    ------
    ValueError
        In words that name no path.
    """
    check_arrays(like, arrays)
    for name, array in arrays.items():
        if name.endswith("running_var") and (array < 0).any():
            raise ValueError(f"array '{name}' holds a negative variance")


def train_alone(
    data: PatchData,
    method: SegmentationMethod,
    *,
    width: int,
    rounds: int,
    seed: int,
    device: str = "cpu",
) -> Arrays:
    """The baseline: the same schedule and seed in a federation of this data only.

    Raises
    ------
    DerminoError
        As :func:`site_update`.
    """
    arrays = initial_arrays(method, width, seed)
    for round_ in range(1, rounds + 1):
        update = site_update(
            data,
            method,
            arrays,
            width=width,
            round_=round_,
            rounds=rounds,
            seed=seed,
            device=device,
        )
        arrays = aggregate({"alone": update})
    return arrays


def scores_of(
    data: PatchData, method: SegmentationMethod, arrays: Arrays, *, width: int, device: str = "cpu"
) -> Scores:
    """Dice and Jaccard of each image at the input's size: [n, 2]."""
    from dermino_core.evaluation.segmentation_training import head_logits, masks_of

    head = head_of(method, width, arrays).to(device)
    scores = np.empty((len(data), len(METRICS)))
    for start in range(0, len(data), _SCORED_AT_ONCE):
        rows = np.arange(start, min(start + _SCORED_AT_ONCE, len(data)))
        as_they_are = np.zeros(len(rows), np.int64)
        features, masks = data.take(rows, method.depths, np.zeros(len(rows)), as_they_are)
        found = masks_of(head_logits(head, features), masks.shape[1:])
        for row, predicted, truth in zip(rows, found, masks, strict=True):
            scores[row] = overlap_scores(predicted, truth > 0)
    return scores


def overlap(scores: Scores, units: Sequence[str], *, replicates: int, seed: int) -> Overlap:
    """Means of scores [n, 2], or of differences of two heads' scores, with intervals.

    Patients are drawn together; the same arguments draw the same images, so that the interval of
    a difference is that of a paired bootstrap.
    """
    weights = bootstrap_weights(len(scores), groups=units, replicates=replicates, seed=seed)
    drawn = (weights @ scores) / weights.sum(axis=1, keepdims=True)
    estimates = {}
    for metric, values, replicate in zip(METRICS, scores.T, drawn.T, strict=True):
        found = measured("", metric, float(values.mean()), replicate, n=len(values))
        estimates[metric] = Estimate(
            value=found.value, low=found.low, high=found.high, standard_error=found.standard_error
        )
    return Overlap(**estimates)


def require_head_fits(data_depths: int, method: SegmentationMethod) -> None:
    """Refuse a head for which a site keeps too few depths.

    Raises
    ------
    DerminoError
        `REQUEST_MISMATCH`.
    """
    if method.depths > data_depths:
        raise DerminoError(
            "REQUEST_MISMATCH",
            f"The run trains {method.head}, which looks at {method.depths} depths of the backbone; "
            f"this site keeps {data_depths}.",
            fix='heads = ["linear", "upernet"] in [segmentation] of the site file, then start the '
            "client again.",
        )
