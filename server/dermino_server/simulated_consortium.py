"""A consortium on one machine, enrolled by the real commands' functions, for simulation.

Secure aggregation then verifies the same certificates as between hospitals. The authority's key
lies beside the sites' folders, which is what a simulation is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dermino_client.enrol import enrol, install_bundle
from dermino_core.certificate_checks import certificate_digest, read_certificate
from dermino_server.enrolment import accept
from dermino_server.provisioning import provision


def enrol_simulated(folder: Path, sites: Mapping[str, Path]) -> None:
    """Make every site of `sites` (name -> its folder) a member; those that are stay as they are.

    `folder` gets the authority.
    """
    provision(folder, hosts=["localhost"])
    authority = certificate_digest(read_certificate((folder / "ca.crt").read_bytes()))
    for name in sorted(sites):
        request = enrol(sites[name], name)
        accept(folder, request.file, confirm=lambda *_: None, register=False)
    for name in sorted(sites):
        bundle = folder / "sites" / name / f"{name}.bundle.json"
        install_bundle(sites[name], name, bundle, fingerprint=authority)
