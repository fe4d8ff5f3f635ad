"""The three synthetic hospitals: their cameras, their patients and the words they use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from dermino_core.errors import DerminoError

Style = Literal["clinical", "dermoscopy"]


@dataclass(frozen=True)
class CaseKind:
    """One label of a site.

    `share` is its share of the site's images; `suspicion` (0..1) is the mean of what the drawing
    shows of asymmetry, border, colour and structure (the ABCD rule of dermoscopy, Stolz 1994).
    """

    label: str
    malignant: bool
    share: float
    suspicion: float


@dataclass(frozen=True)
class Camera:
    """What a site's camera does to every picture. Colours are gains of red, green, blue."""

    gains: tuple[float, float, float]
    gamma: float
    noise: float
    jpeg_quality: tuple[int, int]
    blur: float
    """Largest blur radius in pixels."""
    shading: float
    """Strength of uneven light, 0..1."""


@dataclass(frozen=True)
class SyntheticSite:
    """One synthetic hospital.

    `skin_types` are the shares of Fitzpatrick types I..VI; `lesion_size` is the range of the
    lesion's mean radius as a share of the picture's side.
    """

    name: str
    title: str
    images: int
    style: Style
    cases: tuple[CaseKind, ...]
    camera: Camera
    skin_types: tuple[float, float, float, float, float, float]
    lesion_size: tuple[float, float]
    hair: float
    """Share of pictures with hair."""
    ruler: float
    """Share of pictures with ruler marks."""
    vignette: float
    """Share of pictures with the round black edge of a dermoscope."""
    task: str = "malignancy"
    classes: tuple[str, str] = ("benign", "malignant")
    label_map: Mapping[str, str] = field(init=False)
    """The site's label -> the task's class."""

    def __post_init__(self) -> None:
        names = {case.label: self.classes[case.malignant] for case in self.cases}
        object.__setattr__(self, "label_map", MappingProxyType(names))


SITES: tuple[SyntheticSite, ...] = (
    SyntheticSite(
        name="synthetic-mednode",
        title="Close-up photographs, in the vocabulary and size of MED-NODE",
        images=170,
        style="clinical",
        cases=(
            CaseKind("melanoma", malignant=True, share=70 / 170, suspicion=0.66),
            CaseKind("naevus", malignant=False, share=100 / 170, suspicion=0.32),
        ),
        camera=Camera((1.03, 0.97, 0.92), 1.0, 0.012, (80, 92), 0.9, 0.28),
        skin_types=(0.30, 0.45, 0.20, 0.05, 0.0, 0.0),
        lesion_size=(0.17, 0.32),
        hair=0.35,
        ruler=0.08,
        vignette=0.0,
    ),
    SyntheticSite(
        name="synthetic-ph2",
        title="Dermoscopy through a round tube, in the vocabulary and size of PH2",
        images=200,
        style="dermoscopy",
        cases=(
            CaseKind("common nevus", malignant=False, share=0.4, suspicion=0.25),
            CaseKind("atypical nevus", malignant=False, share=0.4, suspicion=0.38),
            CaseKind("melanoma", malignant=True, share=0.2, suspicion=0.72),
        ),
        camera=Camera((1.06, 0.96, 0.88), 1.08, 0.008, (88, 95), 0.5, 0.14),
        skin_types=(0.10, 0.50, 0.35, 0.05, 0.0, 0.0),
        lesion_size=(0.19, 0.34),
        hair=0.40,
        ruler=0.0,
        vignette=0.85,
    ),
    SyntheticSite(
        name="synthetic-fitzpatrick",
        title="Photographs of every skin tone, in the vocabulary of Fitzpatrick17k",
        images=600,
        style="clinical",
        cases=(
            CaseKind("benign", malignant=False, share=0.5, suspicion=0.33),
            CaseKind("malignant", malignant=True, share=0.5, suspicion=0.65),
        ),
        camera=Camera((0.98, 1.0, 1.0), 0.94, 0.016, (62, 88), 1.2, 0.40),
        skin_types=(0.17, 0.30, 0.21, 0.17, 0.10, 0.05),
        lesion_size=(0.13, 0.30),
        hair=0.25,
        ruler=0.15,
        vignette=0.0,
    ),
)
"""The default federation: 970 images in three sites that differ in camera, skin and words."""


def find_site(name: str) -> SyntheticSite:
    """The synthetic site called `name`.

    Raises
    ------
    DerminoError
        `CONFIG_INVALID` if there is none.
    """
    for site in SITES:
        if site.name == name:
            return site
    raise DerminoError(
        "CONFIG_INVALID",
        f"There is no synthetic site called {name!r}.",
        fix=f"Use one of: {', '.join(site.name for site in SITES)}.",
    )
