"""What a federated method is: a site half and a coordinator half, free of transport.

Arrays are plain dictionaries of numpy arrays. The client packs a :class:`SiteUpdate` into a
Flower reply, the server unpacks it; a method never sees a message, and only one that tunes the
backbone is given a site's images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from dermino_core.heads import LinearHead
from dermino_core.privacy.plan import PrivacyPlan, PrivacyRequest
from dermino_strategies.running_sum import RunningSum

if TYPE_CHECKING:
    from dermino_core.backbone_card import BackboneCard
    from dermino_core.personal import Personal
    from dermino_core.results import JoiningCurve

Arrays = dict[str, npt.NDArray]


@dataclass(frozen=True)
class SiteImages:
    """The images themselves, for a method that tunes the backbone.

    `paths` in the order of the features, and how the site embeds images: the backbone's
    specification, the folder of its feature cache, arithmetic and device.
    """

    paths: tuple[Path, ...]
    backbone: str
    cache: Path
    precision: str
    device: str = "auto"


@dataclass(frozen=True)
class SiteData:
    """What a site half may look at: features [n, D], labels [n], and the number of classes.

    `groups` names the patient or lesion of each image, empty where every image stands alone.
    `images` is there for a :class:`Tuning` method only.
    """

    site: str
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.integer]
    n_classes: int
    device: str = "cpu"
    groups: tuple[str, ...] = ()
    images: SiteImages | None = None


@dataclass(frozen=True)
class SiteUpdate:
    """What leaves the building in one round."""

    arrays: Arrays
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)


class Settings(BaseModel):
    """Base of every method's settings: typed, frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Strategy(ABC):
    """One federated method."""

    name: str
    usual_rounds: int = 2
    """Rounds of a run that asks for no other number; the paper's 2."""
    keeps_sums: bool = False
    """Whether an update depends on the site's own images and the settings only, so that updates
    kept from a run give the model without one of its sites, or with one more, exactly."""

    @abstractmethod
    def initial_arrays(self, n_classes: int, width: int, seed: int) -> Arrays:
        """What the first round starts from."""

    def for_sites(self, arrays: Arrays) -> Arrays:
        """What of the global arrays a site is sent; the rest is the coordinator's own.

        By default all of them. A site has no more than this part: `site_update`, `head` and the
        summand's names, shapes and limits do with it.
        """
        return arrays

    def update_like(self, arrays: Arrays) -> Arrays:
        """Names, shapes and types of what a site sends, given the global arrays; values are 0.

        By default a site sends arrays like those it was sent.
        """
        return {name: np.zeros_like(array) for name, array in arrays.items()}

    @abstractmethod
    def site_update(self, data: SiteData, arrays: Arrays, round_: int, seed: int) -> SiteUpdate:
        """Site half: what a hospital computes from the global arrays and sends."""

    @abstractmethod
    def aggregate(self, arrays: Arrays, updates: Mapping[str, SiteUpdate]) -> Arrays:
        """Coordinator half: the next global arrays.

        `updates` maps site names to checked updates; at least one. Implementations go through
        the sites in sorted order, so that the sum does not depend on who answered first.
        """

    @abstractmethod
    def head(self, arrays: Arrays) -> LinearHead:
        """The linear head that the global arrays stand for."""

    def change(self, arrays: Arrays, update: SiteUpdate) -> Arrays:
        """How one site would change the model, to lay it beside the others'; float64.

        By default the difference from what the site was sent, and sums over images per image.
        Empty where one update tells of no direction.
        """
        given = self.for_sites(arrays)
        return {
            name: sent.astype(np.float64) - given[name] if name in given else sent / update.examples
            for name, sent in update.arrays.items()
        }

    def check_update(self, arrays: Arrays, update: SiteUpdate) -> None:
        """Refuse an update that would poison the model.

        Raises
        ------
        ValueError
            In words that name no path, if names, shapes, types or values are wrong.
        """
        check_arrays(self.update_like(arrays), update.arrays)
        if update.examples < 1:
            raise ValueError(f"claims to have trained on {update.examples} images")
        for name, value in update.metrics.items():
            if not np.isfinite(value):
                raise ValueError(f"its {name} is not finite")


class Additive(Strategy):
    """A method whose coordinator needs no more than the sum of what the sites send.

    Only such a method can run under secure aggregation, where the sum is all that is ever seen.
    """

    @abstractmethod
    def summand(self, update: SiteUpdate) -> Arrays:
        """One site's share of the sum: float64 arrays, number of examples included."""

    @abstractmethod
    def summand_limits(self, arrays: Arrays) -> dict[str, float]:
        """Array name -> the largest absolute value that one site's summand may hold.

        Secure aggregation chooses its fixed point from it, so that the sum cannot overflow; a
        site whose summand is larger does not send it.
        """

    @abstractmethod
    def summand_like(self, arrays: Arrays) -> Arrays:
        """Names and shapes of a summand, given the global arrays: float64 zeros."""

    @abstractmethod
    def from_sum(self, arrays: Arrays, total: Arrays) -> Arrays:
        """Coordinator half: the next global arrays from the sum of the summands."""

    def aggregate(self, arrays: Arrays, updates: Mapping[str, SiteUpdate]) -> Arrays:
        """The next global arrays from all updates at once."""
        running = RunningSum(updates)
        for site in sorted(updates):
            running.add(site, self.summand(updates[site]))
        return self.from_sum(arrays, running.total())


class Tuning(Strategy):
    """A method that changes the backbone: it trains on images, and its head reads other features.

    The global arrays hold the change; a site evaluates the head on features of the backbone that
    `write_backbone` makes of it.
    """

    @abstractmethod
    def write_backbone(self, folder: Path, spec: str, arrays: Arrays) -> BackboneCard:
        """Write the tuned backbone as a backbone folder.

        Parameters
        ----------
        spec
            The backbone that the run began with.

        Raises
        ------
        DerminoError
            `CONFIG_INVALID` if that backbone cannot be tuned so.
        """

    @abstractmethod
    def check_backbone(self, spec: str) -> None:
        """Refuse a backbone that cannot be tuned so, before a run starts.

        Raises
        ------
        DerminoError
            `CONFIG_INVALID`.
        """


class Private(Strategy):
    """A method that can hold to a differential-privacy budget at the site."""

    @abstractmethod
    def privacy_plan(self, data: SiteData, request: PrivacyRequest, rounds: int) -> PrivacyPlan:
        """The noise that keeps `rounds` rounds within the requested epsilon, fixed beforehand."""

    @abstractmethod
    def private_site_update(
        self, data: SiteData, arrays: Arrays, round_: int, plan: PrivacyPlan
    ) -> SiteUpdate:
        """Site half with privacy: unseeded noise, no metrics, nothing that is not accounted."""


class Personalises(Strategy):
    """A method from whose final arrays a hospital can make a model of its own, for itself.

    For that a site needs more of the final arrays than `for_sites` gives: what the others know
    apart from what it told them. So it is an option of a run, told to every site beforehand.
    """

    @abstractmethod
    def for_personal(self, arrays: Arrays) -> Arrays:
        """What sites are sent beside `for_sites`, once, with the final evaluation.

        Names, shapes and types depend on the settings and the run's classes and width only.
        """

    @abstractmethod
    def personal(self, data: SiteData, arrays: Arrays, *, took_part: bool = True) -> Personal:
        """A hospital's own model from the arrays of `for_sites` and `for_personal`. Stays there.

        Parameters
        ----------
        data
            Its labelled training images.
        took_part
            Whether these images are in the arrays; a hospital that only uses the result has
            nothing to take out.

        Raises
        ------
        ValueError
            If the arrays cannot be what they are said to be. In words that name no path.
        """

    @abstractmethod
    def joining(
        self,
        train: SiteData,
        test: SiteData,
        arrays: Arrays,
        *,
        took_part: bool = True,
        replicates: int,
        seed: int,
    ) -> JoiningCurve:
        """What joining gives this hospital, against the number of its labels.

        `arrays`, `took_part` and errors are those of `personal`. Where its part cannot be taken
        out of the arrays, the curve has the point of all labels only.
        """


def check_arrays(like: Arrays, arrays: Arrays) -> None:
    """Hold arrays from the other side to the names, shapes and types of `like`.

    Raises
    ------
    ValueError
        In words that name no path, also for values that are not finite.
    """
    if set(arrays) != set(like):
        raise ValueError(f"sent the arrays {sorted(arrays)}, not {sorted(like)}")
    for name, array in arrays.items():
        expected = like[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise ValueError(
                f"array '{name}' has shape {array.shape} and type {array.dtype}, "
                f"not {expected.shape} and {expected.dtype}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"array '{name}' holds NaN or infinite values")
