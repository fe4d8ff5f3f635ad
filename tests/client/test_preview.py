"""The preview against what a real exchange, with the real coordinator, then takes out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from flwr.app import Context, Message, RecordDict
from packed import arrays_in  # in tests/server
from typer.testing import CliRunner

from dermino_client.app import make_client_app
from dermino_client.commands.preview import lines_of
from dermino_client.commands.preview import preview as command
from dermino_client.hospital import Hospital
from dermino_client.ledger import Ledger
from dermino_client.prepare import PreparedSite, prepare_site
from dermino_client.preview import Preview, Wish, preview
from dermino_client.site import Site
from dermino_core.errors import DerminoError
from dermino_core.privacy.accounting import epsilon, noise_multiplier
from dermino_core.privacy.plan import Mechanism, PrivacyPlan, PrivacyRequest
from dermino_core.results import BackboneInfo
from dermino_server.inprocess import InProcessGrid
from dermino_server.plan import make_plan
from dermino_server.rounds import run_rounds
from dermino_server.simulated_consortium import enrol_simulated
from dermino_strategies.base import Additive, Arrays, Private, SiteData, SiteUpdate
from dermino_strategies.fedavg import FedAvg, FedAvgSettings
from dermino_strategies.protocol import size_in_bytes
from dermino_strategies.registry import STRATEGIES

MakeSite = Callable[..., Site]
OTHERS = ["other-site-1", "other-site-2"]


def ask(strategy: str = "fedavg", **changes: Any) -> Wish:
    """A wish whose intervals take less time."""
    return Wish(strategy, **({"replicates": 50} | changes))


class PrivateFedAvg(FedAvg, Private):
    """FedAvg with noise on what is sent; the arithmetic of its sensitivity is not the matter."""

    def privacy_plan(self, data: SiteData, request: PrivacyRequest, rounds: int) -> PrivacyPlan:
        sigma = noise_multiplier(request.epsilon, request.delta, 1.0, rounds)
        return PrivacyPlan(request, rounds, Mechanism(sigma, 1.0, 1), len(set(data.groups)))

    def private_site_update(
        self, data: SiteData, arrays: Arrays, round_: int, plan: PrivacyPlan
    ) -> SiteUpdate:
        noise = np.random.default_rng()
        scale = plan.per_round.noise_multiplier
        return SiteUpdate(
            {n: (a + noise.normal(0, scale, a.shape)).astype(a.dtype) for n, a in arrays.items()},
            examples=len(data.labels),
        )


@pytest.fixture(autouse=True)
def _methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private method, and clocks that stand still: a message holds the seconds it took."""
    monkeypatch.setitem(STRATEGIES, "private-fedavg", (PrivateFedAvg, FedAvgSettings))
    clock = SimpleNamespace(perf_counter=lambda: 0.0)
    monkeypatch.setattr("dermino_client.work.time", clock)
    monkeypatch.setattr("dermino_client.statistics.time", clock)
    monkeypatch.setattr("dermino_client.personal_work.time", clock)


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    found = make_site(policy={"min_images": 4})
    prepare_site(found)
    return found


def exchange(
    site: Site, prepared: PreparedSite, folder: Path, wish: Wish, sites: list[str]
) -> list[RecordDict]:
    """What the site really sends, to the real coordinator, in a run as the wish says."""
    sent: list[RecordDict] = []

    def client(hospital: Hospital) -> Callable[[Message, Context], Message]:
        app = make_client_app(lambda _: hospital)

        def answer(message: Message, context: Context) -> Message:
            reply = app(message, context)
            if hospital.name == site.name:
                sent.append(reply.content)
            return reply

        return answer

    folders = {n: site.folder if n == site.name else folder / n for n in sites}
    if wish.secure_aggregation:
        enrol_simulated(folder / "authority", folders)
    hospitals = {n: Hospital(n, site.policy, folders[n], lambda: prepared) for n in sites}
    plan = make_plan(
        title="test",
        task=prepared.task,
        classes=prepared.classes,
        strategy=wish.strategy,
        settings=dict(wish.settings),
        rounds=wish.rounds,
        sites=sites,
        min_sites=len(sites),
        engine="inprocess",
        replicates=wish.replicates,
        cross_site=not (wish.secure_aggregation or wish.privacy),
        privacy=wish.privacy,
        secure_aggregation=wish.secure_aggregation,
        personal=wish.personal,
        statistics=wish.statistics,
        backbone=BackboneInfo.of(prepared.card, prepared.precision),
        backbone_spec="demo",
        created="now",
        dermino_version="0",
    )
    out = folder / "run"
    out.mkdir(parents=True)
    grid = InProcessGrid({n: client(h) for n, h in hospitals.items()})  # type: ignore[arg-type]
    run_rounds(grid, plan, out)
    return sent


def shapes(content: RecordDict) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [
        (f"{group}/{name}", array.dtype.name, array.shape, array.nbytes)
        for group, record in content.array_records.items()
        for name, array in sorted(arrays_in(record).items())
    ]


def same(shown: Preview, sent: list[RecordDict], *, exact: bool = True) -> None:
    assert [m.kind for m in shown.messages] == [c.config_records["body"]["kind"] for c in sent]
    for message, content in zip(shown.messages, sent, strict=True):
        assert [(a.name, a.dtype, a.shape, a.bytes) for a in message.arrays] == shapes(content)
        if exact:
            assert message.bytes == size_in_bytes(content)
    if exact:
        assert shown.bytes == sum(map(size_in_bytes, sent))


@pytest.mark.parametrize("settings", [{}, {"local_epochs": 3, "learning_rate": 0.01}])
@pytest.mark.parametrize("share", [True, False])
def test_a_plain_run(
    make_site: MakeSite, tmp_path: Path, settings: dict[str, Any], share: bool
) -> None:
    site = make_site(policy={"min_images": 4, "share_local_head": share})
    prepared = prepare_site(site)
    wish = ask(rounds=3, settings=settings)
    shown = preview(site, wish)
    sent = exchange(site, prepared, tmp_path / "real", wish, [site.name])
    same(shown, sent)
    assert [m.round for m in shown.messages] == [1, 2, 3, 4]
    assert any("local" in a.name for a in shown.messages[0].arrays) is share
    assert shown.messages[0].metrics["num-examples"] == (prepared.split == "train").sum()
    assert shown.messages[-1].fields["n_test"] == (prepared.split == "test").sum()
    assert (shown.refusal, shown.cost) == (None, None)


@pytest.mark.parametrize("policy", [{}, {"share_statistics": False}, {"min_count": 12}])
def test_a_run_with_statistics(make_site: MakeSite, tmp_path: Path, policy: dict[str, Any]) -> None:
    """Told or refused, the preview shows what the coordinator then gets, before the first round."""
    site = make_site(policy={"min_images": 4} | policy)
    prepared = prepare_site(site)
    wish = ask(rounds=1, statistics=True)
    shown = preview(site, wish)
    same(shown, exchange(site, prepared, tmp_path / "real", wish, [site.name]))
    assert [m.round for m in shown.messages] == [0, 1, 2]
    first = shown.messages[0].fields
    if "share_statistics" in policy:
        assert first["code"] == "POLICY_REFUSED"
    elif (prepared.split == "train").sum() >= policy.get("min_count", 5):
        assert first["min_count"] == policy.get("min_count", 5)


def test_a_secure_run(site: Site, tmp_path: Path) -> None:
    """Five messages a round and five for the evaluation; only masked numbers leave."""
    prepared = prepare_site(site)
    wish = ask(rounds=2, secure_aggregation=True, others=OTHERS)
    sent = exchange(site, prepared, tmp_path / "real", wish, [site.name, *OTHERS])
    shown = preview(site, wish)
    same(shown, sent)
    assert [m.fields["stage"] for m in shown.messages] == 3 * [
        *("keys", "shares", "masked", "confirm", "unmask")
    ]
    names = {array.name for message in shown.messages for array in message.arrays}
    assert names == {"masked/vector"}
    default = preview(site, ask(secure_aggregation=True))
    assert default.bytes == shown.bytes


def test_a_private_run(site: Site, tmp_path: Path) -> None:
    prepared = prepare_site(site)
    wish = ask("private-fedavg", rounds=4, privacy=PrivacyRequest(epsilon=3))
    shown = preview(site, wish)
    sigma = noise_multiplier(3, 1e-5, 1.0, 4)
    cost = shown.cost
    assert cost is not None
    assert cost.plan.per_round == Mechanism(sigma, 1.0, 1)
    assert cost.plan.units == len(set(prepared.half("train")[2]))
    assert cost.epsilon_round == pytest.approx(epsilon([Mechanism(sigma, 1.0, 1)], 1e-5))
    assert cost.epsilon_run == pytest.approx(epsilon([Mechanism(sigma, 1.0, 4)], 1e-5))
    assert 2.99 < cost.epsilon_run <= 3
    assert (cost.year_before, cost.year_after) == (0, pytest.approx(cost.epsilon_run))
    assert not Ledger(site.folder / "ledger").by_run()
    sent = exchange(site, prepared, tmp_path / "real", wish, [site.name])
    same(shown, sent, exact=False)
    again = preview(site, wish).cost
    assert again is not None
    assert again.year_before == pytest.approx(cost.epsilon_run)
    assert again.year_after == pytest.approx(epsilon([Mechanism(sigma, 1.0, 8)], 1e-5))


@pytest.mark.parametrize("strategy", ["fedavg"])
def test_a_private_run_of_a_real_method(site: Site, tmp_path: Path, strategy: str) -> None:
    """The privacy that the site reports to the coordinator is the one that the preview showed."""
    prepared = prepare_site(site)
    wish = ask(strategy, rounds=1, privacy=PrivacyRequest(epsilon=8))
    shown = preview(site, wish)
    sent = exchange(site, prepared, tmp_path / "real", wish, [site.name])
    same(shown, sent, exact=False)
    reported = json.loads(str(sent[0].config_records["body"]["json"]))["privacy"]
    assert shown.cost is not None
    assert reported["epsilon"] == shown.cost.epsilon_run
    assert reported["noise_multiplier"] == shown.cost.plan.per_round.noise_multiplier
    assert shown.messages[0].fields["privacy"] == reported


def test_a_private_and_secure_run(site: Site, tmp_path: Path) -> None:
    prepared = prepare_site(site)
    wish = ask(
        "private-fedavg",
        rounds=1,
        privacy=PrivacyRequest(epsilon=3),
        secure_aggregation=True,
        others=OTHERS,
    )
    sent = exchange(site, prepared, tmp_path / "real", wish, [site.name, *OTHERS])
    shown = preview(site, wish)
    same(shown, sent)
    assert shown.cost is not None


def test_a_run_of_sums(site: Site, tmp_path: Path) -> None:
    """Of a method whose global arrays are not what sites are sent."""
    prepared = prepare_site(site)
    wish = ask("ridge", rounds=2)
    shown = preview(site, wish)
    same(shown, exchange(site, prepared, tmp_path / "real", wish, [site.name]))
    assert shown.messages[-1].fields["joining"] is None


@pytest.mark.parametrize(
    ("secure", "privacy"),
    [
        (False, None),
        pytest.param(True, None, marks=pytest.mark.slow),
        pytest.param(False, PrivacyRequest(epsilon=3), marks=pytest.mark.slow),
        (True, PrivacyRequest(epsilon=3)),
    ],
)
def test_a_run_with_personal_models(
    site: Site, tmp_path: Path, secure: bool, privacy: PrivacyRequest | None
) -> None:
    """In the clear the curve and the personal model's results leave, otherwise they do not."""
    prepared = prepare_site(site)
    wish = ask(
        "ridge",
        rounds=1,
        personal=True,
        others=OTHERS,
        secure_aggregation=secure,
        privacy=privacy,
    )
    sent = exchange(site, prepared, tmp_path / "real", wish, [site.name, *OTHERS])
    shown = preview(site, wish)
    same(shown, sent, exact=secure or privacy is None)
    if not secure:
        last = shown.messages[-1].fields
        assert (last["joining"] is None) is (privacy is not None)
        assert ("'personal'" in str(last["evaluations"])) is (privacy is None)
        if privacy is None:
            assert last == json.loads(str(sent[-1].config_records["body"]["json"]))
    assert preview(site, replace(wish, others=())).bytes == pytest.approx(shown.bytes, rel=1e-3)


REFUSED = [
    ({"max_rounds": 1}, ask(), "POLICY_REFUSED", "max_rounds"),
    ({"min_images": 1000}, ask(), "POLICY_REFUSED", "min_images"),
    ({"max_model_bytes": 100}, ask(), "POLICY_REFUSED", "max_model_bytes"),
    ({"require_privacy": True}, ask(), "POLICY_REFUSED", "require_privacy"),
    ({"require_secure_aggregation": True}, ask(), "POLICY_REFUSED", "require_secure"),
    ({"allow_personal": False}, ask("ridge", personal=True), "POLICY_REFUSED", "allow_personal"),
    (
        {"min_other_sites": 4},
        ask("ridge", personal=True, others=OTHERS),
        "POLICY_REFUSED",
        "min_other_sites: 2 other sites",
    ),
    (
        {"epsilon_per_run": 2.0},
        ask("private-fedavg", privacy=PrivacyRequest(epsilon=3)),
        "POLICY_REFUSED",
        "epsilon_per_run",
    ),
]


@pytest.mark.parametrize(("policy", "wish", "code", "words"), REFUSED)
def test_the_policy_s_refusal(
    make_site: MakeSite, policy: dict[str, Any], wish: Wish, code: str, words: str
) -> None:
    """What would leave is shown nevertheless."""
    site = make_site(policy={"min_images": 4} | policy)
    prepare_site(site)
    shown = preview(site, wish)
    assert shown.refusal is not None
    assert shown.refusal.code == code
    assert words in shown.refusal.what
    assert len(shown.messages) == 3


def test_the_ledger_s_refusal(make_site: MakeSite, tmp_path: Path) -> None:
    """The second run of the year is too much, as the real ledger then says too."""
    site = make_site(policy={"min_images": 4, "epsilon_per_year": 4})
    prepared = prepare_site(site)
    wish = ask("private-fedavg", rounds=2, privacy=PrivacyRequest(epsilon=3))
    assert preview(site, wish).refusal is None
    exchange(site, prepared, tmp_path / "first", wish, [site.name])
    shown = preview(site, wish)
    assert shown.refusal is not None
    assert shown.refusal.code == "BUDGET_EXCEEDED"
    assert shown.cost is not None
    assert shown.cost.year_after > 4
    with pytest.raises(DerminoError):
        exchange(site, prepared, tmp_path / "second", wish, [site.name])


def digest_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        digest.update(str(file).encode())
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def test_a_preview_changes_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    prepared = prepare_site(site)
    wish = ask("private-fedavg", rounds=1, privacy=PrivacyRequest(epsilon=1))
    secure = ask(rounds=1, secure_aggregation=True, others=OTHERS)
    exchange(site, prepared, tmp_path / "a", wish, [site.name])
    exchange(site, prepared, tmp_path / "b", secure, [site.name, *OTHERS])
    before = digest_of(site.folder)
    for one in (wish, secure, ask()):
        preview(site, one)
    assert digest_of(site.folder) == before
    assert list(scratch.iterdir()) == []


def test_what_cannot_be_shown(site: Site, make_site: MakeSite) -> None:
    methods = [(name, make) for name, (make, _) in STRATEGIES.items()]
    seen = next(name for name, make in methods if not issubclass(make, Private))
    with pytest.raises(DerminoError, match=f"{seen} cannot hold to a privacy budget"):
        preview(site, ask(seen, privacy=PrivacyRequest(epsilon=1)))
    alone = next(name for name, make in methods if not issubclass(make, Additive))
    with pytest.raises(DerminoError, match=f"{alone} needs each site's own update"):
        preview(site, ask(alone, secure_aggregation=True))
    with pytest.raises(DerminoError, match="fedavg makes no personal models"):
        preview(site, ask(personal=True))
    with pytest.raises(DerminoError, match="no strategy 'fedavgg'"):
        preview(site, ask("fedavgg"))
    with pytest.raises(DerminoError, match="not enrolled"):
        preview(site, ask(secure_aggregation=True))
    site.file.write_text(site.file.read_text() + "\n# changed\n")
    with pytest.raises(DerminoError) as caught:
        preview(site, ask())
    assert caught.value.code == "DATA_CHANGED"


def run_command(site: Site, *arguments: str) -> Any:
    app = typer.Typer()

    @app.callback(invoke_without_command=True)
    def main() -> None:
        """As the real one."""

    app.command("preview")(command)
    base = ["preview", "--site", site.name, "--sites-dir", str(site.file.parent)]
    return CliRunner().invoke(app, [*base, *arguments])


def test_the_command(site: Site) -> None:
    result = run_command(site, "--rounds", "3", "--set", "local_epochs=3")
    assert result.exit_code == 0, result.output
    out = result.output
    assert "the policy allows it now" in out
    assert "TrainReply, once" in out  # the first one holds the site's own head
    assert "TrainReply, 2 times" in out
    assert "EvaluateReply, once" in out
    assert "StatisticsReply, once" in out
    wish = Wish(rounds=3, settings={"local_epochs": 3}, statistics=True)
    assert f"{preview(site, wish).bytes:,} bytes" in out
    without = run_command(site, "--rounds", "3", "--no-statistics").output
    assert "StatisticsReply" not in without
    assert "num-examples" in out
    assert "images_used" in out


def test_the_command_with_privacy(site: Site) -> None:
    result = run_command(site, "--strategy", "private-fedavg", "--epsilon", "3", "--rounds", "2")
    assert result.exit_code == 0, result.output
    sigma = noise_multiplier(3, 1e-5, 1.0, 2)
    assert f"noise of {sigma:.4g} times the sensitivity" in result.output
    assert "the ledger's last 365 days would go from epsilon 0 to" in result.output


def test_the_command_when_refused(make_site: MakeSite) -> None:
    site = make_site(policy={"min_images": 1000})
    prepare_site(site)
    result = run_command(site)
    assert result.exit_code == 0, result.output
    assert "the policy refuses it (POLICY_REFUSED)" in result.output
    assert "TrainReply" in result.output


def test_no_path_and_no_name_of_an_image_is_in_a_message(site: Site) -> None:
    """Nor of the site's own files."""
    text = "\n".join(lines_of(preview(site, ask())))
    fields = str([message.fields for message in preview(site, ask()).messages])
    for secret in (str(site.file.parent), "manifest", ".png", ".jpg", str(site.cache)):
        assert secret not in text
        assert secret not in fields
