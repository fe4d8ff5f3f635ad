"""Private and secure runs with personal models: what sites keep for themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from packed import arrays_in
from personal_runs import (  # beside this file
    Run,
    apps,
    final_arrays,
    finished_run,
    halves,
    head_of,
    make_four,
    own,
    personal_plan,
    watched,
)

from dermino_client.app import make_client_app
from dermino_client.hospital import Hospital
from dermino_client.own_results import OwnResults
from dermino_core.privacy.plan import PrivacyRequest
from dermino_server.inprocess import InProcessGrid
from dermino_server.rounds import run_rounds
from dermino_strategies.packing import pack_arrays
from dermino_strategies.ridge import Ridge


@pytest.fixture
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hospital]:
    return make_four(tmp_path_factory.mktemp("homes"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("homes"))


def recording(sites: Mapping[str, Hospital]) -> tuple[dict[str, ClientApp], list[RecordDict]]:
    seen: list[RecordDict] = []

    def look(_: Message, reply: Message) -> Message:
        seen.append(reply.content)
        return reply

    return {name: watched(site, look) for name, site in sites.items()}, seen


def everything_in(contents: list[RecordDict], folder: Path) -> bytes:
    """All that reached the coordinator, and all that it wrote."""
    parts = [str(record["json"]).encode() for c in contents for record in c.config_records.values()]
    parts += [a.data for c in contents for r in c.array_records.values() for a in r.values()]
    parts += [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
    return b"\n".join(parts)


def error_of(kept: OwnResults, model: str) -> bytes:
    """A number of an evaluation that no other model has by chance, as it is written."""
    calibration = kept.evaluations[model].calibration
    assert calibration is not None
    return repr(calibration.expected_calibration_error).encode()


def test_of_a_private_run_neither_the_curve_nor_the_personal_model_s_results_leave(
    four: dict[str, Hospital], tmp_path: Path
) -> None:
    plan = personal_plan(privacy=PrivacyRequest(epsilon=5))
    clients, seen = recording(four)
    results = run_rounds(InProcessGrid(clients), plan, tmp_path)
    for content in seen:
        fields = json.loads(str(content.config_records["body"]["json"]))
        if content.config_records["body"]["kind"] == "EvaluateReply":
            assert set(fields["evaluations"]) == {"global"}
            assert fields["joining"] is None
    everything = everything_in(seen, tmp_path)
    for name, site in four.items():
        kept = own(site, plan)
        assert error_of(kept, "personal") not in everything
        assert error_of(kept, "global") in everything  # the counterpart: this one may leave
        assert head_of(site, plan)[:16].astype(np.float32).tobytes() not in everything
        assert kept.joining is not None
        assert len(kept.joining.points) == 1  # the site's noisy part cannot be taken out
        assert kept.joining.all_labels.personal == kept.evaluations["personal"].auroc
        assert kept.joining.all_labels.alone == kept.evaluations["local_converged"].auroc
        data = halves(site, "train")
        expected = Ridge().personal(data, final_arrays(tmp_path, plan)).head.weight.ravel()
        np.testing.assert_allclose(head_of(site, plan)[:16], expected, rtol=1e-5, atol=1e-7)
        assert results.privacy[name].epsilon == pytest.approx(5, rel=0.01)
    assert set(results.mean) == {"global"}
    assert all(site.joining is None for site in results.sites)


@pytest.mark.parametrize("privacy", [None, PrivacyRequest(epsilon=5)])
def test_of_a_secure_run_no_site_s_curve_leaves_and_its_results_only_in_a_sum(
    ran: Run,
    four: dict[str, Hospital],
    tmp_path: Path,
    privacy: PrivacyRequest | None,
) -> None:
    plan = personal_plan(secure_aggregation=True, threshold=3, privacy=privacy)
    clients, seen = recording(four)
    results = run_rounds(InProcessGrid(clients), plan, tmp_path)
    kept = {name: own(site, plan) for name, site in four.items()}
    values = [k.evaluations["personal"].auroc.value or 0.0 for k in kept.values()]
    if privacy is None:
        assert results.mean["personal"].auroc.value == pytest.approx(np.mean(values), abs=1e-9)
        differences = [k.global_minus["personal"].auroc.value or 0.0 for k in kept.values()]
        assert results.mean_global_minus["personal"].auroc.value == pytest.approx(
            np.mean(differences), abs=1e-9
        )
        for name, site in four.items():
            plain = head_of(ran.sites[name], ran.plan)
            np.testing.assert_allclose(head_of(site, plan), plain, rtol=1e-3, atol=1e-4)
    else:
        assert set(results.mean) == {"global"}
    for content in seen:
        fields = json.loads(str(content.config_records["body"]["json"]))
        assert set(fields) == {"stage", "reply"}
    everything = everything_in(seen, tmp_path)
    assert b'"joining":' not in b"".join(
        str(c.config_records["body"]["json"]).encode() for c in seen
    )
    for value, (name, site) in zip(values, four.items(), strict=True):
        assert repr(value).encode() not in everything
        assert error_of(kept[name], "personal") not in everything
        curve = kept[name].joining
        assert curve is not None
        assert repr(curve.all_labels.personal.low).encode() not in everything
        assert head_of(site, plan)[:16].astype(np.float32).tobytes() not in everything


def test_sites_that_were_sent_other_sums_add_nothing_up(
    four: dict[str, Hospital], tmp_path: Path
) -> None:
    """The secure evaluation is bound to the sums: one site with others stays out."""
    plan = personal_plan(secure_aggregation=True, threshold=3)
    honest = make_client_app(lambda _: four["beta"])
    liar = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        if "personal" in message.content.array_records:
            arrays = arrays_in(message.content.array_records["personal"])
            message.content["personal"] = pack_arrays(arrays | {"penalty": np.array([3.0])})
        return honest(message, context)

    liar.train("secure")(handle)
    results = run_rounds(InProcessGrid(apps(four) | {"beta": liar}), plan, tmp_path)
    assert results.totals is not None
    assert results.totals.sites == ["alpha", "delta", "gamma"]
    assert [r.site for r in results.rounds[-1].rejected] == ["beta"]
