"""lightly's losses, where their definitions are the same as ours (extra `peers`)."""

from __future__ import annotations

import pytest
import torch

from dermino_core.losses.image_level import image_level_loss
from dermino_core.losses.koleo import koleo_loss
from dermino_core.losses.patch_level import patch_level_loss
from dermino_core.losses.teacher_scores import SoftmaxCentering

peer = pytest.importorskip("lightly.loss", reason="install the extra 'peers' to compare")


def test_image_level_with_centering_equals_dino_loss() -> None:
    torch.manual_seed(0)
    theirs = peer.DINOLoss(output_dim=12, teacher_temp=0.06, student_temp=0.1)
    ours = SoftmaxCentering(12)
    for _ in range(3):
        teacher, student, local = (torch.randn(n, 5, 12) for n in (2, 2, 4))
        expected = theirs(list(teacher), [*student, *local], teacher_temp=0.06)
        targets = ours(teacher.flatten(0, 1), 0.06).reshape(teacher.shape)
        loss = image_level_loss(student, local, targets)
        ours.update(teacher.flatten(0, 1))
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_patch_level_equals_ibot_patch_loss() -> None:
    torch.manual_seed(0)
    theirs = peer.IBOTPatchLoss(output_dim=9, teacher_temp=0.05, student_temp=0.1)
    mask = torch.zeros(4, 3, 3, dtype=torch.bool)
    mask[0, :2, 1], mask[2, 0, 0], mask[3] = True, True, True
    teacher, student = torch.randn(int(mask.sum()), 9), torch.randn(int(mask.sum()), 9)
    expected = theirs(teacher, student, mask, teacher_temp=0.05)
    crop = mask.flatten(1).nonzero()[:, 0]
    targets = SoftmaxCentering(9)(teacher, 0.05)
    loss = patch_level_loss(student, targets, crop, n_crops=4, mean_over="all_crops")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_koleo_equals_koleo_loss() -> None:
    torch.manual_seed(0)
    views = torch.randn(2, 20, 16)
    expected = sum(peer.KoLeoLoss()(view) for view in views)
    torch.testing.assert_close(koleo_loss(views), expected, rtol=1e-5, atol=1e-6)
