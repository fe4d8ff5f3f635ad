"""A coordinator's receipt for a withdrawal, checked at the hospital that it is about.

Whose signature it is, the authority tells that this site pinned when it joined; which sums were
erased, this site's own audit log: it holds the digests of every array that ever left.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from dermino_client.audit import ALLOWED, AuditLog
from dermino_client.site import Site
from dermino_client.supernode import coordinator_of
from dermino_core.certificate_checks import read_certificate
from dermino_core.errors import DerminoError
from dermino_core.withdrawal_receipt import Receipt, check_receipt, read_receipt

_UPDATE = "TrainReply"


@dataclass(frozen=True)
class Checked:
    """A receipt that the coordinator signed, about sums that left this site."""

    receipt: Receipt
    sent: datetime | None
    """When the sums left; None if the audit log no longer tells."""


def check_at_site(site: Site, file: Path) -> Checked:
    """Check a receipt against this site's pinned authority, its name, and its audit log.

    Without a certificate in it, whose key signed it is for a person to compare.

    Raises
    ------
    DerminoError
        `RECEIPT_INVALID` if it is damaged, not the coordinator's, about another site, or about
        other sums than this site sent; `TLS_INVALID` if the authority's certificate is missing or
        damaged; `AUDIT_INVALID`.
    """
    receipt = read_receipt(file)
    check_receipt(receipt, _authority(site) if receipt.certificate else None)
    if receipt.site != site.name:
        raise DerminoError(
            "RECEIPT_INVALID",
            f"The receipt is about {receipt.site}, not about {site.name}.",
            where=file,
            fix="Ask the coordinator for this site's own.",
        )
    return Checked(receipt, _sent(AuditLog(site.folder / "audit"), receipt, file))


def _authority(site: Site) -> x509.Certificate:
    file = site.resolve(coordinator_of(site).root_certificates)
    try:
        return read_certificate(file.read_bytes(), where=file)
    except OSError as error:
        raise DerminoError(
            "TLS_INVALID",
            f"The certificate of the authority that this site trusts cannot be read: "
            f"{error.strerror}.",
            where=file,
            fix="Bring it back from your backup, or install the join bundle again.",
        ) from error


def _sent(log: AuditLog, receipt: Receipt, file: Path) -> datetime | None:
    """When the update left whose digests the receipt names.

    In a run of several rounds the newest one counts, and earlier ones are other updates.
    """
    updates = [
        record
        for _, record in log.records()
        if (record.direction, record.kind, record.decision) == ("out", _UPDATE, ALLOWED)
        and record.run == receipt.sent_in
    ]
    for record in reversed(updates):
        found = {name: digest.sha256 for name, digest in record.digests.items()}
        if all(found.get(f"arrays/{name}") == sha for name, sha in receipt.sums.items()):
            return record.time
    if updates:
        raise DerminoError(
            "RECEIPT_INVALID",
            f"The receipt names other sums than those that left here in run {receipt.sent_in}.",
            where=file,
            fix="Ask the coordinator which sums were erased; the audit log has the digests.",
        )
    return None
