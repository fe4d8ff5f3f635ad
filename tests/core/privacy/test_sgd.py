"""DP-SGD by Opacus against DP-SGD by hand, and against what would break the promise."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from dermino_core.datasets.synthetic import write_site
from dermino_core.errors import DerminoError
from dermino_core.features import extract_features
from dermino_core.heads import LinearHead
from dermino_core.privacy import sgd
from dermino_core.privacy.noise import SecureGenerator
from dermino_core.privacy.plan import Mechanism
from dermino_core.privacy.sgd import drawn_centre, fit_private_head


class FixedStream(SecureGenerator):
    """The same numbers for the same seed; `uniforms` and `normals` hold every draw in order."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._rng = np.random.default_rng(seed)
        self.uniforms: list[np.ndarray] = []
        self.normals: list[np.ndarray] = []

    def uniform(self, shape: int | tuple[int, ...]) -> np.ndarray:
        self.uniforms.append(self._rng.random(shape))
        return self.uniforms[-1]

    def normal(self, shape: int | tuple[int, ...]) -> np.ndarray:
        self.normals.append(self._rng.standard_normal(shape))
        return self.normals[-1]


N, D, C = 40, 6, 3


def data(images: int = N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [n, 6], labels of three classes, and 13 patients with one to several images."""
    rng = np.random.default_rng(3)
    units = np.concatenate([np.arange(13), rng.integers(0, 13, size=images - 13)])
    features = (rng.standard_normal((images, D)) * 2 + 1).astype(np.float32)
    return features, rng.integers(0, C, size=images), units


def head() -> LinearHead:
    return LinearHead.initial(C, D, seed=1)


def by_hand(
    start: LinearHead,
    features: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    mechanism: Mechanism,
    *,
    learning_rate: float,
    clip: float,
    images_per_unit: int,
    centre: np.ndarray,
    stream: FixedStream,
) -> tuple[np.ndarray, np.ndarray]:
    """Abadi et al. 2016, Algorithm 1, with loops, on the draws that `stream` remembers."""
    uniforms, normals = iter(stream.uniforms), iter(stream.normals)
    order = next(uniforms)
    chosen = {}
    for unit in range(units.max() + 1):
        images = np.flatnonzero(units == unit)
        chosen[unit] = images[np.argsort(order[images])][:images_per_unit]
    weight = start.weight.astype(float)
    parameters = [weight, start.bias + weight @ centre]
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    for step in range(mechanism.steps):
        takes_part = next(uniforms) < mechanism.sampling_rate
        total = [np.zeros_like(p) for p in parameters]
        for unit in np.flatnonzero(takes_part):
            gradient = [np.zeros_like(p) for p in parameters]
            for image in chosen[int(unit)]:
                x = features[image].astype(float) - centre
                logits = parameters[0] @ x + parameters[1]
                delta = np.exp(logits - logits.max())
                delta = delta / delta.sum() - np.eye(C)[labels[image]]
                gradient[0] += np.outer(delta, x) / len(chosen[int(unit)])
                gradient[1] += delta / len(chosen[int(unit)])
            norm = np.sqrt(sum((g**2).sum() for g in gradient))
            for k in range(2):
                total[k] += gradient[k] * min(1.0, clip / (norm + 1e-6))
        rate = learning_rate * 0.5 * (1 + np.cos(np.pi * step / mechanism.steps))
        for k in range(2):
            total[k] += mechanism.noise_multiplier * clip * next(normals)
            first[k] = 0.9 * first[k] + 0.1 * total[k]
            second[k] = 0.999 * second[k] + 0.001 * total[k] ** 2
            size = first[k] / (1 - 0.9 ** (step + 1))
            root = np.sqrt(second[k] / (1 - 0.999 ** (step + 1))) + 1e-8
            parameters[k] = parameters[k] - rate * size / root
    assert next(uniforms, None) is None
    assert next(normals, None) is None
    return parameters[0], parameters[1] - parameters[0] @ centre


@pytest.mark.parametrize(
    ("noise", "rate", "clip", "most"),
    [(0.0, 0.4, 1.0, 4), (0.0, 0.4, 1e3, 100), (0.7, 0.6, 0.5, 2), (3.0, 1.0, 2.0, 1)],
)
@pytest.mark.parametrize("chunk", [512, 3])
def test_equals_dp_sgd_by_hand(
    noise: float, rate: float, clip: float, most: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in parts of three patients: the noise comes once for a step, not once for a part."""
    monkeypatch.setattr(sgd, "_CHUNK", chunk)
    features, labels, units = data()
    centre = np.linspace(0, 1.5, D)
    mechanism = Mechanism(noise, rate, 9)
    stream = FixedStream(7)
    fitted = fit_private_head(
        head(),
        features,
        labels,
        units,
        mechanism,
        learning_rate=0.1,
        clip=clip,
        images_per_unit=most,
        centre=centre,
        generator=stream,
    )
    weight, bias = by_hand(
        head(),
        features,
        labels,
        units,
        mechanism,
        learning_rate=0.1,
        clip=clip,
        images_per_unit=most,
        centre=centre,
        stream=stream,
    )
    np.testing.assert_allclose(fitted.weight, weight, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fitted.bias, bias, rtol=0, atol=2e-6)
    assert np.abs(fitted.weight - head().weight).max() > 0.1
    assert fitted.weight.dtype == fitted.bias.dtype == np.float32


def first_sum(
    monkeypatch: pytest.MonkeyPatch,
    units: np.ndarray,
    keep: np.ndarray,
    *,
    clip: float,
    most: int,
    noise: float = 0.0,
) -> np.ndarray:
    """What the optimiser is given in a first step that takes everybody in `keep`."""
    features, labels, _ = data()
    seen: list[np.ndarray] = []

    def step(self: torch.optim.Adam) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(np.concatenate([g.numpy().ravel() for g in grads if g is not None]))

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        _, numbers = np.unique(units[keep], return_inverse=True)
        fit_private_head(
            head(),
            features[keep],
            labels[keep],
            numbers,
            Mechanism(noise, 1.0, 1),
            learning_rate=0.1,
            clip=clip,
            images_per_unit=most,
        )
    return seen[0]


@pytest.mark.parametrize("clip", [0.3, 2.0])
def test_one_patient_more_or_less_moves_the_sum_by_at_most_the_clip(
    clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, units = data()
    whole = first_sum(monkeypatch, units, np.arange(N), clip=clip, most=100)
    moved = []
    for unit in range(13):
        without = first_sum(monkeypatch, units, np.flatnonzero(units != unit), clip=clip, most=100)
        moved.append(np.linalg.norm(whole - without))
    assert max(moved) <= clip * (1 + 1e-9)
    assert max(moved) > 0.99 * clip


def test_the_noise_is_gaussian_and_as_large_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times the clip, on every coordinate of the sum, by the generator that nobody can seed."""
    _, _, units = data()
    everybody = np.arange(N)
    quiet = first_sum(monkeypatch, units, everybody, clip=0.5, most=100)
    loud = [
        first_sum(monkeypatch, units, everybody, clip=0.5, most=100, noise=3.0) for _ in range(40)
    ]
    noise = (np.array(loud) - quiet).ravel() / (3.0 * 0.5)
    assert stats.kstest(noise, "norm").pvalue > 1e-9
    assert abs(noise.std() - 1) < 6.5 / np.sqrt(2 * noise.size)


def test_images_of_one_patient_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images as units of their own may move the sum by several clips."""
    _, _, units = data()
    largest = int(np.bincount(units).argmax())
    others = np.flatnonzero(units != largest)
    alone = np.arange(N)
    whole = first_sum(monkeypatch, alone, alone, clip=0.3, most=4)
    moved = np.linalg.norm(whole - first_sum(monkeypatch, alone, others, clip=0.3, most=4))
    assert moved > 1.5 * 0.3


def fit(mechanism: Mechanism, generator: SecureGenerator | None = None) -> LinearHead:
    features, labels, units = data()
    return fit_private_head(
        head(),
        features,
        labels,
        units,
        mechanism,
        learning_rate=0.1,
        clip=1.0,
        images_per_unit=4,
        generator=generator,
    )


@pytest.mark.parametrize("mechanism", [Mechanism(1.0, 1.0, 2), Mechanism(0.0, 0.5, 5)])
def test_seeds_of_torch_and_numpy_repeat_neither_noise_nor_choice(mechanism: Mechanism) -> None:
    fitted = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what a careless program does
        fitted.append(fit(mechanism).weight)
    assert (fitted[0] != fitted[1]).any()


def test_opacus_own_noise_and_sampling_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("drew from torch's generator")

    monkeypatch.setattr(torch, "normal", never)
    monkeypatch.setattr(torch, "rand", never)
    fit(Mechanism(2.0, 0.5, 3))


def test_noise_is_drawn_once_for_every_step_and_parameter() -> None:
    stream = FixedStream()
    fit(Mechanism(1.0, 0.5, 6), stream)
    assert [draw.shape for draw in stream.normals] == [(C, D), (C,)] * 6
    assert [draw.shape for draw in stream.uniforms] == [(N,)] + [(13,)] * 6


def test_steps_in_which_nobody_takes_part_add_noise_all_the_same() -> None:
    stream = FixedStream()
    fitted = fit(Mechanism(1.0, 1e-9, 4), stream)
    assert len(stream.normals) == 8
    assert (fitted.weight != head().weight).all()


def test_without_noise_it_learns() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((200, D)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(np.int64)
    fitted = fit_private_head(
        LinearHead.initial(2, D, seed=0),
        features,
        labels,
        np.arange(200),
        Mechanism(0.0, 0.5, 60),
        learning_rate=0.1,
        clip=1.0,
        images_per_unit=1,
    )
    assert (fitted.probabilities(features).argmax(axis=1) == labels).mean() > 0.97


def test_the_start_is_left_alone() -> None:
    start = head()
    before = start.weight.copy(), start.bias.copy()
    features, labels, units = data()
    fit_private_head(
        start,
        features,
        labels,
        units,
        Mechanism(1.0, 0.5, 2),
        learning_rate=0.1,
        clip=1.0,
        images_per_unit=4,
    )
    np.testing.assert_array_equal(start.weight, before[0])
    np.testing.assert_array_equal(start.bias, before[1])


def test_no_images_is_an_error() -> None:
    with pytest.raises(DerminoError, match="no images"):
        fit_private_head(
            head(),
            np.zeros((0, D), np.float32),
            np.zeros(0, int),
            np.zeros(0, int),
            Mechanism(1.0, 0.5, 2),
            learning_rate=0.1,
            clip=1.0,
            images_per_unit=4,
        )


def test_opacus_secure_mode_draws_where_its_library_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not published for this torch: a stand-in with a generator of known seed."""
    made: list[torch.Generator] = []

    def create(device: str) -> torch.Generator:
        assert device == "/dev/urandom"
        made.append(torch.Generator().manual_seed(11))
        return made[-1]

    library = types.ModuleType("torchcsprng")
    library.create_random_device_generator = create  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcsprng", library)
    monkeypatch.setattr(sgd, "secure_library_present", lambda: True)
    features, labels, _ = data()
    fitted = [
        fit_private_head(
            head(),
            features,
            labels,
            np.arange(N),
            Mechanism(1.0, 0.5, 3),
            learning_rate=0.1,
            clip=1.0,
            images_per_unit=4,
        ).weight
        for _ in range(2)
    ]
    assert len(made) == 2
    np.testing.assert_array_equal(fitted[0], fitted[1])
    assert made[0].get_state().ne(torch.Generator().manual_seed(11).get_state()).any()


@pytest.mark.slow
def test_the_drawn_centre_is_near_other_drawn_images_and_stays_the_same(tmp_path: Path) -> None:
    """Nearer than the origin: what the images of another seed have in common is taken away."""
    centre = np.array(drawn_centre("demo", cache=tmp_path / "cache", precision="fp32"))
    again = np.array(drawn_centre("demo", cache=tmp_path / "cache", precision="fp32"))
    np.testing.assert_array_equal(centre, again)
    write_site(tmp_path / "site", site="synthetic-ph2", images=12)
    pictures = sorted((tmp_path / "site").rglob("*.jpg"))
    table = extract_features(
        pictures, "demo", cache=tmp_path / "cache", precision="fp32", title="others"
    )
    features = np.asarray(table.vectors, dtype=np.float64)
    assert centre.shape == features.shape[1:]
    assert ((features - centre) ** 2).mean() < 0.97 * (features**2).mean()
