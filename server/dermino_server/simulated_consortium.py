"""A consortium on one machine, enrolled by the real commands' functions, for simulation.

Secure aggregation then verifies the same certificates as between hospitals. The authority's key
lies beside the sites' folders, which is what a simulation is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dermino_client.enrol import enrol, install_bundle
from dermino_core.certificate_checks import certificate_digest, read_certificate
from dermino_server.bundles import bundle_file, refresh_bundles
from dermino_server.enrolment import accept
from dermino_server.provisioning import provision
from dermino_server.roster import read_roster


def enrol_simulated(folder: Path, sites: Mapping[str, Path]) -> None:
    """Make every site of `sites` (name -> its folder) a member; those that are stay as they are.

    `folder` gets the authority.
    """
    provision(folder, hosts=["localhost"])
    authority = certificate_digest(read_certificate((folder / "ca.crt").read_bytes()))
    for name in sorted(sites):
        request = enrol(sites[name], name)
        accept(folder, request.file, confirm=lambda *_: None, register=False, refresh=False)
    refresh_bundles(folder, read_roster(folder))
    for name in sorted(sites):
        install_bundle(sites[name], name, bundle_file(folder, name), fingerprint=authority)
