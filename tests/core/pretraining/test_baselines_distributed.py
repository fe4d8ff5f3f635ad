"""Baselines in two processes (gloo): one model, one queue, the whole batch as negatives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

WORKER = """
import sys
import numpy as np
import timm
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from dermino_core.backbone_card import Preprocessing
from dermino_core.pretraining.batch import Batch
from dermino_core.pretraining.config_file import resolve_config
from dermino_core.pretraining.method import Moment
from dermino_core.pretraining.methods import make_method
from dermino_core.pretraining.randomness import seed_torch
from dermino_core.pretraining.schedules import settings_at
from dermino_core.pretraining.vocabulary import Vocabulary

name, rank, store, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
config = resolve_config({
    "method": name,
    "crops": {"global_size": 56, "local_size": 28, "local_count": 1},
    "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
    "mocov3": {"hidden": 32, "output": 16},
    "swav": {"hidden": 32, "output": 16, "prototypes": 12, "queue": 10, "queue_from": 0.0},
    "run": {"steps": 10, "batch_size": 3},
})
torch.manual_seed(0)
vit = timm.create_model("vit_small_patch14_dinov2", img_size=56, embed_dim=24, depth=2,
                        num_heads=2, num_classes=0)
preprocessing = Preprocessing(56, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
method = make_method(config, vit, preprocessing, Vocabulary.from_labels(()), device="cpu")
call = DistributedDataParallel(method.trained)
optimiser = torch.optim.AdamW([p for p in method.trained.parameters() if p.requires_grad], 3e-3)
for step in range(4):
    now = Moment(step, 10, 0, rank, settings_at(config, step, 10, batch_of_all=6))
    seed_torch(0, now)
    generator = torch.Generator().manual_seed(2 * step + rank)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=generator)
    batch = Batch(images, torch.tensor([[64, 64]] * 3), torch.zeros(3, 0), torch.zeros(3, 0),
                  torch.arange(3))
    losses = method.losses(batch, now, call)
    optimiser.zero_grad()
    losses["loss"].backward()
    optimiser.step()
    method.after_step(now)
state = {f"trained.{key}": value.detach() for key, value in method.trained.named_parameters()}
for part, module in method.untrained().items():
    state |= {f"{part}.{key}": value for key, value in module.named_parameters()}
if name == "swav":
    state["queue"] = method.queue.features
state["loss"] = losses["loss"].detach()
np.savez(f"{out}/{rank}.npz", **{key: value.numpy() for key, value in state.items()})
dist.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["mae", "mocov3", "swav"])
def test_processes_stay_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lightly", reason="install the extra 'baselines'")
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", WORKER, name, str(rank)),
                *(str(tmp_path / "store"), str(tmp_path)),
            ]
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    one, other = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2))
    assert one.pop("loss") != other.pop("loss")
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        assert np.isfinite(one[key]).all()
    if name == "swav":
        assert (np.linalg.norm(one["queue"], axis=-1) > 0.99).all()
