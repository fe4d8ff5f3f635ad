"""The yardstick: a plain Flower app, as one writes it after Flower's PyTorch quickstart.

A torch Dataset decodes the images, a DataLoader batches them, a frozen timm ViT runs over them in
every epoch and every evaluation, a linear head is trained on top and averaged by Flower's FedAvg.
It is written in good faith: the ViT is loaded once and not once per message, only the head
travels, the ViT runs without gradients, loader workers decode ahead. It runs on the in-process
grid that dermino's simulation uses; Flower's own engines (Ray, SuperLink) would only add seconds.

Images, labels, halves and the initial head are dermino's, so that both do the same job; the order
of the training images is the DataLoader's own.

    python -m tests.benchmarks.plain_flower --sites DIR --backbone NAME --precision fp32 --out FILE
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from PIL import Image
from sklearn.metrics import roc_auc_score
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dermino_client.site import read_sites
from dermino_core.backbone_weights import RANDOM_SEED, fill_randomly
from dermino_core.heads import LinearHead
from dermino_server.inprocess import InProcessGrid
from tests.benchmarks.workload import read_images

IMAGE_SIZE = 224
BATCH_SIZE = 32
LOCAL_EPOCHS = 2
LEARNING_RATE = 2e-4
LOADER_WORKERS = min(2, os.cpu_count() or 1)


class SkinImages(Dataset[tuple[torch.Tensor, int]]):
    """Image files with class indices."""

    def __init__(self, paths: list[Path], labels: list[int], transform: object) -> None:
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.labels[index]  # type: ignore[operator]


@dataclass(frozen=True)
class Hospital:
    """One site's two halves."""

    name: str
    train: SkinImages
    test: SkinImages


class FrozenViT:
    """The encoder every hospital has: timm's ViT, frozen, in fp32 or under bf16 autocast."""

    def __init__(self, backbone: str, precision: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = precision == "bf16"
        model = load_vit(backbone)
        config = resolve_data_config({"input_size": (3, IMAGE_SIZE, IMAGE_SIZE)}, model=model)
        self.transform = create_transform(**config, is_training=False)
        self.width = int(model.num_features)  # type: ignore[arg-type]
        self.model = model.eval().requires_grad_(requires_grad=False).to(self.device)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(images.to(self.device)).float()


def load_vit(backbone: str) -> nn.Module:
    """`random:NAME` with dermino's seeded weights, or a DINOv2 ViT-S/14 checkpoint file."""
    if backbone.startswith("random:"):
        name = backbone.removeprefix("random:")
        model = timm.create_model(name, pretrained=False, num_classes=0, img_size=IMAGE_SIZE)
        fill_randomly(model, RANDOM_SEED)
        return model
    return timm.create_model(
        "vit_small_patch14_dinov2",
        pretrained=True,
        pretrained_cfg_overlay={"file": backbone},
        num_classes=0,
        img_size=IMAGE_SIZE,
    )


def train(vit: FrozenViT, head: nn.Linear, images: SkinImages, order: torch.Generator) -> float:
    """Two local epochs of Adam with a cosine; the mean loss of the last."""
    loader = DataLoader(
        images, BATCH_SIZE, shuffle=True, num_workers=LOADER_WORKERS, generator=order
    )
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    steps = LOCAL_EPOCHS * len(loader)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    criterion = nn.CrossEntropyLoss()
    head.train()
    total = 0.0
    for _ in range(LOCAL_EPOCHS):
        total = 0.0
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = criterion(head(vit(batch)), labels.to(vit.device))
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(labels)
    return total / len(images)


@torch.no_grad()
def auroc(vit: FrozenViT, head: nn.Linear, images: SkinImages) -> float:
    """AUROC of the last class on the test half."""
    loader = DataLoader(images, BATCH_SIZE, num_workers=LOADER_WORKERS)
    head.eval()
    scores = [head(vit(batch)).softmax(dim=1)[:, -1].cpu() for batch, _ in loader]
    return float(roc_auc_score(images.labels, torch.cat(scores).numpy()))


def make_client_app(hospital: Hospital, vit: FrozenViT, n_classes: int, seed: int) -> ClientApp:
    """The ClientApp of one hospital."""
    app = ClientApp()
    order = torch.Generator().manual_seed(seed)

    def received_head(message: Message) -> nn.Linear:
        head = nn.Linear(vit.width, n_classes)
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        head.load_state_dict(arrays.to_torch_state_dict())
        return head.to(vit.device)

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        head = received_head(message)
        loss = train(vit, head, hospital.train, order)
        metrics = MetricRecord({"train-loss": loss, "num-examples": len(hospital.train)})
        content = RecordDict({"arrays": ArrayRecord(head.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        value = auroc(vit, received_head(message), hospital.test)
        metrics = MetricRecord({"auroc": value, "num-examples": len(hospital.test)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def mean_over_sites(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
    """Every hospital counts the same, as in dermino's results."""
    values = [float(reply.metric_records["metrics"]["auroc"]) for reply in replies]  # type: ignore[arg-type]
    return MetricRecord({"auroc": sum(values) / len(values)})


def make_server_app(head: nn.Linear, rounds: int, found: dict[int, float]) -> ServerApp:
    """The ServerApp; leaves the mean AUROC after each round in `found`."""
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(evaluate_metrics_aggr_fn=mean_over_sites)
        result = strategy.start(
            grid, initial_arrays=ArrayRecord(head.state_dict()), num_rounds=rounds
        )
        for round_, metrics in result.evaluate_metrics_clientapp.items():
            found[round_] = float(metrics["auroc"])  # type: ignore[arg-type]

    return app


def read_hospitals(folder: Path, transform: object) -> tuple[list[Hospital], int]:
    """dermino's own selection, classes and halves; and the number of classes."""
    hospitals, n_classes = [], 0
    for site in read_sites(folder):
        images = read_images(site)
        n_classes = len(site.classes)
        halves = {}
        for half in ("train", "test"):
            rows = [i for i, other in enumerate(images.halves) if other == half]
            paths, labels = [images.paths[i] for i in rows], [images.labels[i] for i in rows]
            halves[half] = SkinImages(paths, labels, transform)
        hospitals.append(Hospital(site.name, **halves))
    return hospitals, n_classes


def main() -> None:
    """Run the job and write the AUROC of every round."""
    parser = argparse.ArgumentParser(prog="plain_flower")
    parser.add_argument("--sites", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    vit = FrozenViT(wanted.backbone, wanted.precision)
    hospitals, n_classes = read_hospitals(wanted.sites, vit.transform)
    head = nn.Linear(vit.width, n_classes)
    initial = LinearHead.initial(n_classes, vit.width, seed=wanted.seed).arrays()
    head.load_state_dict({name: torch.from_numpy(array) for name, array in initial.items()})
    grid = InProcessGrid(
        {h.name: make_client_app(h, vit, n_classes, wanted.seed) for h in hospitals}
    )
    found: dict[int, float] = {}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    make_server_app(head, wanted.rounds, found)(grid, context)
    if len(found) < wanted.rounds:
        raise RuntimeError(f"only the rounds {sorted(found)} were evaluated")
    wanted.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
