"""Results to one self-contained HTML page: for a clinician first, for a data scientist as well."""

from dermino_core.reporting.page import write_report

__all__ = ["write_report"]
