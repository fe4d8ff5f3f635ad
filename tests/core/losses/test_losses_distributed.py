"""Two processes (gloo) with half the batch each give what one process gives with the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

WORKER = """
import sys
import numpy as np
import torch
import torch.distributed as dist
from dermino_core.losses.image_level import image_level_loss
from dermino_core.losses.patch_level import patch_level_loss
from dermino_core.losses.supervised import supervised_loss
from dermino_core.losses.teacher_scores import SoftmaxCentering, sinkhorn_knopp

rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
rng = np.random.default_rng(0)
draw = lambda *shape: torch.from_numpy(rng.normal(size=shape)).float()
batch, patches = slice(rank, None, world), (slice(0, 3) if rank == 0 else slice(3, 10))
if world == 1:
    patches = slice(0, 10)
student, local, teacher = draw(2, 8, 6), draw(4, 8, 6), draw(2, 8, 6)
student_patch, teacher_patch = draw(10, 6), draw(10, 6)
# Ten masked patches in crops 0..7; the first rank has crops 0..3, the second 4..7.
crop = torch.tensor([0, 0, 2, 4, 4, 4, 4, 5, 7, 7])
targets, available = (draw(8, 6) > 0).float(), (draw(8, 6) > 0.5).float()
available[:3] = 0
scores = lambda x: sinkhorn_knopp(x.flatten(0, -2), 0.07).reshape(x.shape)
centering = SoftmaxCentering(6)
centering.update(student_patch[patches])
# All masked patches are on the first process, and the second joins with none.
uneven = slice(0, 10) if rank == 0 else slice(10, 10)
alone = SoftmaxCentering(6)
alone.update(teacher_patch[uneven])
first = 0 if world == 1 or rank == 0 else 4
losses = [
    image_level_loss(student[:, batch], local[:, batch], scores(teacher[:, batch])),
    patch_level_loss(student_patch[patches], sinkhorn_knopp(teacher_patch[patches], 0.07),
                     crop[patches] - first, n_crops=8 // world),
    patch_level_loss(student_patch[patches], sinkhorn_knopp(teacher_patch[patches], 0.07),
                     crop[patches] - first, n_crops=8 // world, mean_over="all_crops"),
    supervised_loss(student[:, batch], targets[batch], available[batch]),
    supervised_loss(student[:, batch], targets[batch], available[batch], mean_over="all_images"),
    centering.centre.sum(),
    *(patch_level_loss(student_patch[uneven],
                       sinkhorn_knopp(teacher_patch[uneven], 0.07, after=after),
                       crop[uneven], n_crops=8) for after in ("logits", "softmax")),
    alone.centre.square().sum(),
]
np.save(f"{out}/losses-{world}-{rank}.npy", torch.stack(losses).numpy())
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    for world in (1, 2):
        workers = [
            subprocess.Popen(
                [
                    *(sys.executable, "-c", WORKER, str(rank), str(world)),
                    *(str(tmp_path / f"store-{world}"), str(tmp_path)),
                ]
            )
            for rank in range(world)
        ]
        assert [worker.wait(timeout=120) for worker in workers] == [0] * world
    whole = np.load(tmp_path / "losses-1-0.npy")
    halves = np.mean([np.load(tmp_path / f"losses-2-{rank}.npy") for rank in range(2)], axis=0)
    np.testing.assert_allclose(halves, whole, rtol=1e-5)
    assert torch.isfinite(torch.from_numpy(whole)).all()
