"""Training a linear head with differential privacy (DP-SGD), by Opacus.

Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv:1607.00133, Algorithm 1: every
step takes each unit with a fixed probability, computes one gradient per unit, shortens it to `clip`
and adds Gaussian noise to the sum. Here a unit may be a patient: the loss of a patient is the mean
over its images, and its gradient counts once (user-level privacy as in McMahan et al. 2018,
"Learning Differentially Private Recurrent Language Models", arXiv:1710.06963, section 2).

Nothing in it depends on how many units there are: the probability and the number of steps are
settings, the gradients are summed and not averaged, and Adam (Kingma & Ba 2015) does not care how
long the sum is. So the guarantee holds for adding or removing a unit as it is written, and the
number of patients stays inside.

Only the clip bounds what one unit can add, so features are taken as the backbone gives them and
the head is one like any other. They may be shifted by a public point: most of a feature vector is
what all images have in common, which teaches nothing and yet fills the length that is clipped.
With coordinates of the order of 1, as a final LayerNorm leaves them, gradients are longer than a
clip of 1 until an image is learned well, so that all units have the same say (Bu et al. 2023,
"Automatic Clipping", arXiv:2206.07136).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dermino_core.errors import DerminoError
from dermino_core.heads import Float32, Labels, LinearHead
from dermino_core.privacy.noise import SecureGenerator, secure_library_present
from dermino_core.privacy.plan import Mechanism
from dermino_core.privacy.units import Chosen, choose_images

if TYPE_CHECKING:
    import torch
    from opacus.optimizers import DPOptimizer

Float64 = npt.NDArray[np.float64]

_CENTRE_SEED = 20251
"""Other pictures than those of the demonstration sites, whose seed is 0."""

_CHUNK = 512
"""Units whose gradients are held at once."""


def fit_private_head(
    head: LinearHead,
    features: Float32,
    labels: Labels,
    units: npt.NDArray[np.intp],
    mechanism: Mechanism,
    *,
    learning_rate: float,
    clip: float,
    images_per_unit: int,
    centre: Float64 | None = None,
    generator: SecureGenerator | None = None,
) -> LinearHead:
    """Train a head for one round; the result costs what `mechanism` costs, and nothing else.

    Adam with its learning rate annealed to zero by a cosine over the round, in double precision.

    Parameters
    ----------
    head
        Where to start.
    features, labels, units
        Shapes [n, D], [n] and [n]; the unit of each image, numbers from 0 without a gap.
    mechanism
        Probability of a unit to take part in a step, number of steps, noise over clip.
    clip
        Largest L2 norm of one unit's gradient.
    images_per_unit
        Of a unit with more images so many are drawn, anew in every round.
    centre
        A public point [D] among the features, from no site's images; the origin if left out.

    Raises
    ------
    DerminoError
        `DATA_TOO_FEW` without images.
    """
    if not len(labels):
        raise DerminoError("DATA_TOO_FEW", "There are no images to train on.")
    source = generator or SecureGenerator()
    middle = np.zeros(features.shape[1]) if centre is None else np.asarray(centre, np.float64)
    chosen = choose_images(units, images_per_unit, source.uniform(len(units)))
    weight = head.weight.astype(np.float64)
    weight, bias = _train(
        (weight, head.bias + weight @ middle),
        features.astype(np.float64) - middle,
        labels,
        chosen,
        mechanism,
        rate=learning_rate,
        clip=clip,
        source=source,
    )
    bias = bias - weight @ middle
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32))


def drawn_centre(
    backbone: str, *, cache: Path, precision: str = "auto", device: str = "auto"
) -> tuple[float, ...]:
    """A public centre for a backbone: the mean feature of 24 images drawn by this project.

    Nobody's images, and yet its direction is that of the mean of real dermoscopic images (cosine
    0.97 for DINOv2 ViT-S). Four decimals, so that it can travel in a run's settings.

    Raises
    ------
    DerminoError
        If the backbone cannot be loaded.
    """
    from dermino_core.datasets.synthetic import SITES, write_site
    from dermino_core.features import extract_features

    with TemporaryDirectory() as folder:
        for site in SITES:
            write_site(Path(folder, site.name), site=site.name, images=8, seed=_CENTRE_SEED)
        pictures = sorted(Path(folder).rglob("*.jpg"))
        table = extract_features(
            pictures,
            backbone,
            cache=cache,
            precision=precision,
            device=device,
            title="drawn images",
        )
        mean = np.asarray(table.vectors, dtype=np.float64).mean(axis=0)
    return tuple(round(float(value), 4) for value in mean)


def _train(
    start: tuple[Float64, Float64],
    x: Float64,
    labels: Labels,
    chosen: Chosen,
    mechanism: Mechanism,
    *,
    rate: float,
    clip: float,
    source: SecureGenerator,
) -> tuple[Float64, Float64]:
    """Weight [C, D] and bias [C] after all steps."""
    import torch
    from torch.nn import functional as F

    layer = torch.nn.Linear(x.shape[1], len(start[1]), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(start[0]))
        layer.bias.copy_(torch.from_numpy(start[1]))
    values, targets = torch.from_numpy(x), torch.from_numpy(labels.astype(np.int64))
    rows, shares = torch.from_numpy(chosen.rows), torch.from_numpy(chosen.shares)
    with _without_hints():
        module, optimizer, batches = _make_private(layer, len(rows), mechanism, clip, source)
        for step, batch in enumerate(batches):
            cosine = 0.5 * (1 + np.cos(np.pi * step / mechanism.steps))
            optimizer.param_groups[0]["lr"] = rate * cosine
            parts = batch.split(_CHUNK)
            for number, part in enumerate(parts):
                logits = module(values[rows[part]]).movedim(-1, 1)
                losses = F.cross_entropy(logits, targets[rows[part]], reduction="none")
                (losses * shares[part]).sum().backward()
                # Opacus' way to a large batch: clip and add up, noise once, after the last part.
                optimizer.signal_skip_step(number < len(parts) - 1)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@contextmanager
def _without_hints() -> Iterator[None]:
    """Opacus hints at its secure mode, and torch at a layer that is fed with constants."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _make_private(
    layer: torch.nn.Module, units: int, mechanism: Mechanism, clip: float, source: SecureGenerator
) -> tuple[torch.nn.Module, DPOptimizer, Iterable[torch.Tensor]]:
    """Opacus around the layer: gradients per unit, clipping, noise, and the units of every step.

    Where the library that its secure mode needs is present, that mode draws noise and units.
    """
    import torch
    from opacus import PrivacyEngine
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler
    from torch.utils.data import DataLoader

    rate, steps = mechanism.sampling_rate, mechanism.steps
    secure_mode = secure_library_present()
    sampler: Any = _Poisson(units, rate, steps, source)
    if secure_mode:
        sampler = UniformWithReplacementSampler(num_samples=units, sample_rate=rate, steps=steps)
    numbers: Any = range(units)
    loader = DataLoader(
        numbers, batch_sampler=sampler, collate_fn=lambda batch: torch.tensor(batch).long()
    )
    # Opacus would put in a sampler of its own, and an accountant, whose rate is one over the
    # length of the loader; here the loader samples already, and the plan keeps the account.
    made: Any = PrivacyEngine(accountant="rdp", secure_mode=secure_mode).make_private(
        module=layer,
        optimizer=torch.optim.Adam(layer.parameters()),
        data_loader=loader,
        noise_multiplier=mechanism.noise_multiplier,
        max_grad_norm=clip,
        loss_reduction="sum",
        poisson_sampling=False,
    )
    module, optimizer, batches = made
    if not secure_mode:
        _replace_noise(optimizer, source)
    return module, optimizer, batches


class _Poisson:
    """For every step the units that take part, each on its own with the same probability."""

    def __init__(self, units: int, rate: float, steps: int, source: SecureGenerator) -> None:
        self._units, self._rate, self._steps, self._source = units, rate, steps, source

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._steps):
            yield np.flatnonzero(self._source.uniform(self._units) < self._rate).tolist()


def _replace_noise(optimizer: DPOptimizer, source: SecureGenerator) -> None:
    """Let the optimiser add noise from `source`, where it would take torch's generator."""
    import torch

    scale = optimizer.noise_multiplier * optimizer.max_grad_norm

    def add_noise() -> None:
        for parameter in optimizer.params:
            clipped: torch.Tensor = getattr(parameter, "summed_grad")  # noqa: B009 - Opacus adds it
            noise = torch.from_numpy(source.normal(tuple(parameter.shape)))
            parameter.grad = clipped + scale * noise

    optimizer.add_noise = add_noise
