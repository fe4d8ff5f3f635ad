"""What is answered to one message: its bundle is judged first, then an app may look at it."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Message

from dermino_client.app import app as own_app
from dermino_client.runner_bundle import bundle_hash, judge
from dermino_client.runner_flower import CLIENT_APP, Job, error_reply, run_listed
from dermino_client.site import read_site
from dermino_core.errors import CODES, DerminoError
from dermino_strategies.protocol import refuse

log = logging.getLogger("dermino.client")


def answer(job: Job, site_file: Path) -> Message:
    """The reply to one message: the app's own, or a refusal. Never raises an `Exception`.

    No text of an exception is in a reply.
    """
    try:
        if job.kind != CLIENT_APP:
            raise DerminoError(
                "APP_REFUSED",
                f"The coordinator asked this site to run a task of the kind '{job.kind}'.",
                where=f"SHA-256 {bundle_hash(job.bundle)}",
                fix="Nothing of it was installed or run. A hospital runs client apps only.",
            )
        verdict = judge(job.bundle, read_site(site_file).policy.apps)
    except DerminoError as error:
        log.error("refused: %s: %s", error.code, error)
        return _refusal(job.message, error.code)
    except Exception:
        log.exception("unexpected error while judging an app bundle")
        return _refusal(job.message, "APP_REFUSED")
    try:
        if verdict == "own":
            return own_app(message=job.message, context=job.context)
        log.warning("running the app bundle %s of [policy] apps", bundle_hash(job.bundle))
        return run_listed(job.bundle, job.message, job.context)
    except Exception:
        log.exception("unexpected error in the app")
        return _failure(job.message)


def _refusal(message: Message, code: str) -> Message:
    if _is_ours(message):
        return refuse(message, code)
    return error_reply(message, CODES[code].safe_sentence, bundle=True)


def _failure(message: Message) -> Message:
    if _is_ours(message):
        return refuse(message, "INTERNAL")
    return error_reply(message, CODES["INTERNAL"].safe_sentence, bundle=False)


def _is_ours(message: Message) -> bool:
    """Whether the sender reads dermino's refusals; others understand Flower's errors only."""
    if not message.has_content():
        return False
    body = message.content.config_records.get("body")
    return body is not None and set(body) == {"kind", "json"}
