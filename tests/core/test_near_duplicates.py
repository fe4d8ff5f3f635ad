"""Copies are found, and nothing else: hashes and features against plain loops and real copies."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pictures import encoded
from PIL import Image, ImageEnhance

from dermino_core import near_duplicates as module
from dermino_core.errors import DerminoError
from dermino_core.image_signatures import read_signatures
from dermino_core.images import decode_image
from dermino_core.near_duplicates import (
    DISTANCE,
    LOW_DISTANCE,
    embedding_pairs,
    perceptual_pairs,
    whiten,
)
from dermino_core.perceptual_hash import (
    CROP,
    THUMBNAIL,
    distance,
    oriented,
    pack,
    perceptual_hash,
    unpack,
)

SHARED = Path(os.environ.get("DERMINO_SHARED", "../shared"))
TURNS = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)


def photo(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def cut(image: Image.Image, share: float, x: float = 0.5, y: float = 0.5) -> Image.Image:
    """Without `share` of each side; x and y in 0..1 say where the rest lies."""
    width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def redder(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=float) * [1.08, 1.0, 0.93] + [4, -3, 2]
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def saved(image: Image.Image, quality: int = 95) -> Image.Image:
    return decode_image(encoded(image, "JPEG", quality=quality), short_side=THUMBNAIL)


COPIES = {
    "half size": lambda im: saved(im.resize((im.width // 2, im.height // 2))),
    "jpeg 60": lambda im: saved(im, 60),
    "cut 5 % in the middle": lambda im: saved(cut(im, 0.05)),
    "cut 5 % at a corner": lambda im: saved(cut(im, 0.05, 0, 0)),
    "turned": lambda im: saved(im.transpose(Image.Transpose.ROTATE_90)),
    "mirrored": lambda im: saved(im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "redder": lambda im: saved(redder(im)),
    "more contrast": lambda im: saved(ImageEnhance.Contrast(im).enhance(1.2)),
}


def hashes_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([perceptual_hash(image)[0] for image in images])


def signs(pixels: np.ndarray) -> np.ndarray:
    """Signs of the 16 x 16 lowest DCT-II coefficients, from the definition."""
    n = len(pixels)
    assert pixels.shape == (n, n)
    cosines = np.cos(np.pi * np.outer(np.arange(16), 2 * np.arange(n) + 1) / (2 * n))
    found = cosines @ pixels @ cosines.T > 0
    found[0, 0] = False
    return found


def test_hashes_are_the_signs_of_the_cosine_transform_of_whole_and_crops():
    image = photo(0)
    small = image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    # Every pixel as 25 x 25 of its own kind, so that 6 % of the side is a whole number of them.
    fine = np.kron(np.asarray(small, dtype=float), np.ones((25, 25)))
    side, gone = len(fine), round(CROP * len(fine))
    assert gone == CROP * side
    half, rest = gone // 2, side - gone
    corners = [(0, 0), (0, gone), (gone, 0), (gone, gone)]
    boxes = [(0, 0, side), (half, half, rest), *((y, x, rest) for y, x in corners)]
    found, usable = perceptual_hash(image)
    assert usable
    assert found.shape == (6, 4)
    assert found.dtype == np.uint64
    for one, (top, left, length) in zip(found, boxes, strict=True):
        expected = signs(fine[top : top + length, left : left + length])
        assert (unpack(one) != expected).sum() <= 1  # a coefficient may be all but 0


@given(arrays.arrays(bool, (3, 16, 16)))
def test_unpack_is_the_inverse_of_pack(bits):
    bits[:, 0, 0] = False
    packed = pack(bits)
    np.testing.assert_array_equal(unpack(packed), bits)
    low = [int(word).bit_count() for word in packed[:, 0]]
    assert low == bits[:, :8, :8].sum(axis=(1, 2)).tolist()


def test_oriented_hashes_are_those_of_turned_images():
    image = photo(1, 256, 256)
    turned = [image if turn is None else image.transpose(turn) for turn in TURNS]
    expected = {tuple(hashes[0].tolist()) for hashes in hashes_of(turned)}
    found = {tuple(one.tolist()) for one in oriented(hashes_of([image])[0, 0])}
    assert len(expected) == 8
    assert found == expected


def test_images_of_one_colour_are_not_usable():
    assert not perceptual_hash(Image.new("RGB", (80, 60), (200, 150, 120)))[1]
    assert perceptual_hash(photo(0))[1]


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_others_are_not(kind):
    originals = [photo(seed) for seed in range(12)]
    copies = [COPIES[kind](image) for image in originals]
    pairs = perceptual_pairs(hashes_of(originals + copies))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (place, place + 12) for place in range(12)
    ]
    assert (pairs.score <= DISTANCE).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 150), limit=st.integers(0, 127))
def test_perceptual_pairs_are_those_of_a_plain_loop(seed, n, limit):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**63, (n, 6, 4), dtype=np.uint64)
    for place in range(n // 2, n):  # neighbours that differ in a few bits, in some orientation
        near = oriented(hashes[place - n // 2])[:, rng.integers(8)].copy()
        for _ in range(rng.integers(0, 40)):
            near[:, rng.integers(4)] ^= np.uint64(1) << np.uint64(rng.integers(64))
        hashes[place] = near
    expected = {}
    for one in range(n):
        turned = oriented(hashes[one]).reshape(48, 1, 4)
        bits = distance(turned, hashes[None, :, 0])
        low = np.bitwise_count(turned[..., 0] ^ hashes[None, :, 0, 0])
        for variant, other in np.argwhere((low <= LOW_DISTANCE) & (bits <= limit)).tolist():
            if other != one:
                pair = (min(one, other), max(one, other))
                expected[pair] = min(expected.get(pair, 999), int(bits[variant, other]))
    found = perceptual_pairs(hashes, max_distance=limit)
    listed = zip(found.first.tolist(), found.second.tolist(), strict=True)
    assert dict(zip(listed, found.score.tolist(), strict=True)) == expected


def test_pairs_across_blocks_are_found(monkeypatch):
    monkeypatch.setattr(module, "_KEYS", 7)
    monkeypatch.setattr(module, "_QUERIES", 3)
    hashes = hashes_of([photo(seed) for seed in range(11)])
    pairs = perceptual_pairs(np.concatenate([hashes, hashes[::-1]]))
    assert pairs.first.tolist() == list(range(11))
    assert pairs.second.tolist() == list(range(21, 10, -1))
    assert pairs.score.tolist() == [0] * 11


@pytest.mark.parametrize("n", [0, 1, 2, 40, 1500])
def test_embedding_pairs_are_those_of_the_whole_matrix(n):
    rng = np.random.default_rng(n)
    vectors = rng.normal(size=(n, 4)).astype(np.float32)
    if n > 30:
        vectors[30], vectors[20] = 3 * vectors[5], 0
    pairs = embedding_pairs(vectors, min_similarity=0.97)
    norms = np.maximum(np.linalg.norm(vectors.astype(float), axis=1, keepdims=True), 1e-30)
    cosines = (vectors / norms) @ (vectors / norms).T
    found = np.stack([pairs.first, pairs.second], axis=1)
    surely = {tuple(pair) for pair in np.argwhere(np.triu(cosines >= 0.97 + 1e-5, 1)).tolist()}
    perhaps = {tuple(pair) for pair in np.argwhere(np.triu(cosines >= 0.97 - 1e-5, 1)).tolist()}
    listed = [tuple(pair) for pair in found.tolist()]
    assert surely <= set(listed) <= perhaps
    assert listed == sorted(set(listed))
    np.testing.assert_allclose(pairs.score, cosines[tuple(found.T)], atol=1e-5)


def test_equal_vectors_have_a_similarity_of_one():
    vectors = np.random.default_rng(0).normal(size=(1, 384)).repeat(3, axis=0)
    assert len(embedding_pairs(vectors, min_similarity=1.0).first) == 3


def test_whitening_takes_away_what_all_share():
    rng = np.random.default_rng(0)
    shared = 20 * rng.normal(size=16)
    vectors = (shared + rng.normal(size=(400, 16))).astype(np.float32)
    vectors[7] = vectors[3] + 0.05 * rng.normal(size=16)
    raw = embedding_pairs(vectors, min_similarity=0.95)
    assert len(raw.first) > 10_000
    white, threshold = whiten(vectors)
    assert white.dtype == np.float32
    assert threshold == module.SIMILARITY
    pairs = embedding_pairs(white, min_similarity=0.95)
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([3], [7])


def test_few_or_equal_vectors_are_not_whitened():
    few = np.random.default_rng(0).normal(size=(99, 4)).astype(np.float32)
    same, threshold = whiten(few)
    np.testing.assert_array_equal(same, few)
    assert threshold == module.PLAIN_SIMILARITY
    assert np.isfinite(whiten(np.ones((200, 4), dtype=np.float32))[0]).all()


@pytest.mark.parametrize("bits", [-1, 128])
def test_a_distance_out_of_range(bits):
    with pytest.raises(DerminoError, match="tells no copies apart"):
        perceptual_pairs(np.zeros((1, 6, 4), np.uint64), max_distance=bits)


@pytest.mark.parametrize("cosine", [0.0, -0.5, 1.1, float("nan")])
def test_a_similarity_out_of_range(cosine):
    with pytest.raises(DerminoError, match="no threshold"):
        embedding_pairs(np.ones((2, 2)), min_similarity=cosine)


def test_too_many_pairs_end_with_advice(monkeypatch):
    monkeypatch.setattr(module, "MAX_PAIRS", 100)
    with pytest.raises(DerminoError, match="smaller --distance"):
        perceptual_pairs(np.zeros((100, 6, 4), np.uint64))
    with pytest.raises(DerminoError, match="higher --similarity"):
        embedding_pairs(np.ones((100, 2)), min_similarity=0.5)


def test_files_are_hashed_once_and_bad_ones_are_listed(tmp_path):
    paths = []
    for seed in range(4):
        paths.append(tmp_path / f"{seed}.jpg")
        photo(seed).save(paths[-1])
    broken, missing, copy = (tmp_path / name for name in ("bad.jpg", "none.jpg", "copy.jpg"))
    broken.write_bytes(b"no image")
    copy.write_bytes(paths[0].read_bytes())
    everything = [*paths, broken, missing, copy]
    past = time.time() - 3600
    for path in everything:
        if path != missing:
            os.utime(path, (past, past))
    cache = tmp_path / "cache"
    begun = read_signatures(paths[:2], cache=cache)
    assert begun.decoded == 2
    whole = read_signatures(everything, cache=cache)
    assert whole.decoded == 3  # two photographs and the broken file; the copy is known by its bytes
    assert set(whole.unreadable) == {4, 5}
    assert "no such file" in whole.unreadable[5]
    assert whole.usable.tolist() == [True] * 4 + [False, False, True]
    assert whole.digests[6] == whole.digests[0]
    for row, path in enumerate(paths):
        expected = perceptual_hash(decode_image(path, short_side=THUMBNAIL))[0]
        np.testing.assert_array_equal(whole.hashes[row], expected)
    again = read_signatures(everything, cache=cache)
    assert again.decoded == 0
    assert again.unreadable == whole.unreadable
    np.testing.assert_array_equal(again.hashes, whole.hashes)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "ph2").is_dir(), reason=f"needs {SHARED}/data")
def test_real_copies_are_found_and_other_lesions_are_not():
    folders = [SHARED / "data" / name / "images" for name in ("ph2", "isic2017", "ham10000")]
    files = [file for folder in folders for file in sorted(folder.iterdir())[:40]]
    originals = [decode_image(file) for file in files]
    n = len(files)
    base = hashes_of([saved(image) for image in originals])
    assert len(perceptual_pairs(base).first) == 0
    for kind, change in COPIES.items():
        pairs = perceptual_pairs(np.concatenate([base, hashes_of(list(map(change, originals)))]))
        right = (pairs.second - pairs.first) == n
        assert right.all(), kind
        assert right.sum() >= 0.98 * n, kind
