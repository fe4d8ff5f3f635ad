"""Which model of the results plays which part in the story."""

from __future__ import annotations

from dataclasses import dataclass

from dermino_core.results import ModelDescription, Results


@dataclass(frozen=True)
class Roles:
    """Keys into `Results.mean` and `SiteResult.evaluations`; `None` where a run has no such model.

    `shared` is the federated model: key `global`, else the first model of the list. `converged`
    are models whose key contains `converged`: heads trained far beyond the run's schedule; the
    pooled one first, because it differs from the federated model in least.
    """

    shared: str
    local: str | None
    pooled: str | None
    converged: tuple[str, ...]
    personal: str | None = None
    """Each hospital's own mixture of itself and the others: what joining gives, no baseline."""


def roles_of(results: Results) -> Roles:
    """Find the roles by key."""
    keys = [model.key for model in models_of(results)]
    return Roles(
        shared="global" if "global" in keys or not keys else keys[0],
        local="local" if "local" in keys else None,
        pooled="pooled" if "pooled" in keys else None,
        converged=tuple(
            sorted((key for key in keys if "converged" in key), key=lambda key: "pooled" not in key)
        ),
        personal="personal" if "personal" in keys else None,
    )


def models_of(results: Results) -> list[ModelDescription]:
    """The described models, then any that the results hold without a description."""
    known = {model.key for model in results.models}
    found = [*results.mean, *(key for site in results.sites for key in site.evaluations)]
    extra = [
        ModelDescription(key=key, title=key, description="")
        for key in dict.fromkeys(found)
        if key not in known
    ]
    return [*results.models, *extra]


def title_of(results: Results, key: str) -> str:
    """The title of a model key, or the key itself."""
    return next((model.title for model in models_of(results) if model.key == key), key)
