"""A site's own results and its personal model, as the hospital itself reads and uses them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from typer.testing import CliRunner

from dermino_client.cli import app
from dermino_client.hospital import hospital_of
from dermino_client.own_results import personal_folder, read_own, results_file
from dermino_client.prepare import prepare_site
from dermino_client.preview_rehearsal import rehearse
from dermino_client.site import Site
from dermino_core.errors import DerminoError
from dermino_core.model_folder import load_model
from dermino_core.prediction import predict_images
from dermino_core.privacy.plan import PrivacyRequest
from dermino_strategies.protocol import Task

OTHERS = ["other-site-1", "other-site-2"]


def run(site: Site, **changes: Any) -> str:
    """A run on the site's own folder, with made-up other sites; returns its name."""
    prepared = prepare_site(site)
    values: dict[str, Any] = {
        "run_id": uuid4().hex,
        "name": prepared.task,
        "classes": prepared.classes,
        "backbone_fingerprint": prepared.backbone_fingerprint,
        "width": prepared.width,
        "strategy": "ridge",
        "settings": {},
        "rounds": 1,
        "seed": 0,
        "replicates": 50,
        "personal": True,
        "fewest_sites": 3,
    }
    task = Task(**(values | changes))
    for _ in rehearse(hospital_of(site), task, OTHERS):
        pass
    return task.run_id


def shown(site: Site, *more: str) -> str:
    command = ["results", "--site", site.name, "--sites-dir", str(site.file.parent), *more]
    done = CliRunner().invoke(app, command)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site(policy={"min_images": 4})


def test_the_command_shows_what_a_run_gave(site: Site) -> None:
    with pytest.raises(DerminoError, match="no results yet"):
        shown(site)
    name = run(site)
    kept = read_own(results_file(site.folder, name))
    assert kept is not None
    assert kept.joining is not None
    assert kept.sentence is not None
    text = shown(site)
    assert name in text
    assert kept.sentence in text
    for model in ("global", "local", "local_converged", "personal"):
        value = kept.evaluations[model].auroc.value
        assert value is not None
        assert f"{value:.3f} (" in text
    assert [str(p.labels) in text for p in kept.joining.points]
    assert f"dermino predict --model {personal_folder(site.folder, name)}" in text


@pytest.mark.slow
def test_the_newest_is_shown_and_others_by_their_first_letters(site: Site) -> None:
    first, second = run(site, personal=False), run(site, privacy=PrivacyRequest(epsilon=3))
    os.utime(results_file(site.folder, first), (1, 1))
    newest = shown(site)
    assert newest.startswith(f"{site.name}: run {second}")
    assert "epsilon 3" in newest
    assert "personal model" in newest
    older = shown(site, "--run", first[:8])
    assert older.startswith(f"{site.name}: run {first}")
    assert "personal model" not in older
    assert second in older
    with pytest.raises(DerminoError, match="no results of zzz"):
        shown(site, "--run", "zzz")
    with pytest.raises(DerminoError, match="2 runs begin with"):
        shown(site, "--run", "")


def test_files_of_other_kinds_and_of_older_versions(site: Site) -> None:
    name = run(site, personal=False)
    file = results_file(site.folder, name)
    content = json.loads(file.read_text())
    for key in ("task", "date", "sentence", "joining"):
        content.pop(key)
    file.write_text(json.dumps(content))
    assert read_own(file) is not None
    assert "Federated" in shown(site)
    file.write_text('{"kind": "another"}')
    assert read_own(file) is None
    assert str(file) in shown(site).replace("\n", "")


@pytest.mark.slow
def test_the_personal_model_predicts(site: Site, clinic: Path) -> None:
    """`dermino predict` with its folder gives what the head gives on the site's features."""
    name = run(site)
    folder = personal_folder(site.folder, name)
    head, info = load_model(folder)
    prepared = prepare_site(site)
    image = sorted((clinic / "images").glob("*"))[0]
    classes, found = predict_images([image], folder)
    assert classes == prepared.classes == info.classes
    table = head.probabilities(prepared.features)
    assert found[0].probabilities is not None
    distance = np.abs(table - np.array(found[0].probabilities)).max(axis=1).min()
    assert distance < 1e-4
    card = (folder / "README.md").read_text()
    assert "has not left it" in card
    assert "joining changes your AUROC" in card
    assert (folder.parent.stat().st_mode & 0o777) == 0o700
