"""`dermino-client preview`: what a run would take out of this building, before it does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from dermino_client.commands.audit import FolderOption, SiteOption, open_site
from dermino_core.console import say
from dermino_core.errors import DerminoError
from dermino_core.site_statistics import ASK_STATISTICS

if TYPE_CHECKING:
    from dermino_client.preview import Cost, Preview, Sent

EXAMPLE = "Example: dermino-client preview --site mednode --strategy fedavg --epsilon 8"
"""Epilog for whoever adds the command."""

_LONGEST = 60


def preview(
    context: typer.Context,
    site: SiteOption = None,
    sites_dir: FolderOption = None,
    strategy: Annotated[str, typer.Option(help="The method of the run.")] = "fedavg",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Rounds of the run.")] = 2,
    epsilon: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1000, help="With differential privacy: epsilon of the run."),
    ] = None,
    secure: Annotated[
        bool, typer.Option("--secure-aggregation", help="With secure aggregation.")
    ] = False,
    statistics: Annotated[
        bool,
        typer.Option(
            help="With statistics first, as a run may ask without privacy and secure aggregation."
        ),
    ] = ASK_STATISTICS,
    personal: Annotated[
        bool, typer.Option("--personal", help="With personal models: every site gets all sums.")
    ] = False,
    other_sites: Annotated[
        int | None,
        typer.Option(
            min=1, max=999, help="Other sites that take part.", show_default="as few as may"
        ),
    ] = None,
) -> None:
    """Rehearse a run on this site's own data, and show all that would leave it.

    Nothing is sent and nothing is written: neither the audit log nor the privacy ledger changes.

    Example: dermino-client preview --site mednode --strategy fedavg --epsilon 8
    """
    from dermino_client.preview import Wish
    from dermino_client.preview import preview as rehearsed
    from dermino_core.privacy.plan import PrivacyRequest

    found = open_site(context, site, sites_dir)
    wish = Wish(
        strategy=strategy,
        settings=_settings(setting or []),
        rounds=rounds,
        privacy=None if epsilon is None else PrivacyRequest(epsilon=epsilon),
        secure_aggregation=secure,
        statistics=statistics and epsilon is None and not secure,
        personal=personal,
        others=[f"other-site-{i + 1}" for i in range(other_sites or 0)],
    )
    shown = rehearsed(found, wish)
    say(f"{shown.site}: a rehearsal of {strategy}, {rounds} rounds; nothing leaves this machine")
    if shown.refusal is None:
        say(f"{shown.site}: the policy allows it now")
    else:
        say(f"{shown.site}: the policy refuses it ({shown.refusal.code}): {shown.refusal.what}")
        say(f"{shown.site}: if it did not, this would leave:")
    for line in lines_of(shown):
        say(line)


def lines_of(preview: Preview) -> list[str]:
    """What to print about messages and cost."""
    lines = []
    for _, group in groupby(_sorted(preview.messages), key=_shape):
        lines += ["", *_group_lines(list(group))]
    count = len(preview.messages)
    lines += ["", f"the whole run: {count} messages, {preview.bytes:,} bytes of payload"]
    return lines + (_cost_lines(preview.cost) if preview.cost else [])


def _shape(message: Sent) -> tuple[object, ...]:
    """What makes messages the same but for their values."""
    arrays = tuple((a.name, a.dtype, a.shape) for a in message.arrays)
    return message.kind, str(message.fields.get("stage", "")), arrays


def _sorted(messages: Sequence[Sent]) -> list[Sent]:
    """Messages of one shape together, in the order in which the shapes appear first."""
    order = list(dict.fromkeys(map(_shape, messages)))
    return sorted(messages, key=lambda message: order.index(_shape(message)))


def _group_lines(group: list[Sent]) -> list[str]:
    first = group[0]
    sizes = sorted({message.bytes for message in group})
    size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    stage = f" ({first.fields['stage']})" if "stage" in first.fields else ""
    times = f"{len(group)} times" if len(group) > 1 else "once"
    lines = [f"{first.kind}{stage}, {times}, {size} bytes each"]
    rows = [(a.name, f"{a.dtype} {list(a.shape)}, {a.bytes:,} bytes") for a in first.arrays]
    rows += [(name, f"{value:g}") for name, value in first.metrics.items()]
    rows += [(name, _value(value)) for name, value in first.fields.items()]
    width = max(len(name) for name, _ in rows)
    return lines + [f"  {name:<{width}}  {value}" for name, value in rows]


def _value(value: object) -> str:
    """A field's value where it is short, else how much it is."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= _LONGEST:
        return text
    if isinstance(value, dict):
        return f"{len(text):,} characters: " + ", ".join(value)
    return f"{len(text):,} characters"


def _cost_lines(cost: Cost) -> list[str]:
    plan, request = cost.plan, cost.plan.request
    unit = "patients" if request.unit == "patient" else "images"
    one = plan.per_round
    return [
        f"privacy: {plan.units} {unit}, noise of {one.noise_multiplier:.4g} times the sensitivity, "
        f"sampling rate {one.sampling_rate:.4g}, {one.steps} steps a round",
        f"privacy: epsilon {cost.epsilon_round:.4g} a round, {cost.epsilon_run:.4g} for the run, "
        f"at delta {request.delta:g}",
        f"privacy: the ledger's last 365 days would go from epsilon {cost.year_before:.4g} to "
        f"{cost.year_after:.4g}, at delta {cost.year_delta:g}",
    ]


def _settings(pairs: Sequence[str]) -> dict[str, object]:
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise DerminoError(
                "CONFIG_INVALID",
                f"--set {pair}: this is not KEY=VALUE.",
                fix="For example: --set learning_rate=5e-3",
            )
        try:
            settings[key] = json.loads(value)
        except (ValueError, RecursionError):
            settings[key] = value
    return settings
