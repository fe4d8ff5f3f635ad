"""From a cohort with features to what each task's function takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dermino_core.evaluation.examples import Integers
from dermino_core.evaluation.measure import FloatArray, Measure, Outcome
from dermino_core.evaluation.work import Work
from dermino_core.manifest import row_number
from dermino_core.results import BackboneInfo

PROBES = ("logistic regression", "linear probe")
"""Whose scores calibration, fairness and the readers' study are about: the first that is there."""


def run_retrieval(work: Work) -> Outcome:
    """See :func:`dermino_core.evaluation.retrieval.retrieval`."""
    from dermino_core.evaluation.retrieval import retrieval

    options = work.options
    found = retrieval(
        work.halves,
        k=options.neighbours,
        replicates=options.replicates,
        seed=options.seed,
        device=options.device,
    )
    return _with_delong(work, found)


def run_classification(work: Work) -> Outcome:
    """See :func:`dermino_core.evaluation.classification.classification`."""
    from dermino_core.evaluation.classification import classification

    options = work.options
    found = classification(
        work.halves,
        class_weights=options.class_weights,
        replicates=options.replicates,
        seed=options.seed,
    )
    return _with_delong(work, found)


def run_label_efficiency(work: Work) -> Outcome:
    """See :func:`dermino_core.evaluation.label_efficiency.label_efficiency`."""
    from dermino_core.evaluation.label_efficiency import label_efficiency

    options = work.options
    return label_efficiency(
        work.halves,
        class_weights=options.class_weights,
        replicates=options.replicates,
        seed=options.seed,
    )


def run_calibration(work: Work) -> Outcome:
    """Calibration and operating points of both probes."""
    from dermino_core.evaluation.calibration import calibration_measures
    from dermino_core.evaluation.operating_points import operating_points

    test, options = work.halves.test, work.options
    measures: list[Measure] = []
    curves = {}
    for method, scores in _predictions(work).items():
        found, curve = calibration_measures(
            test.labels,
            scores,
            test.units,
            method=method,
            replicates=options.replicates,
            seed=options.seed,
        )
        measures += found
        curves[method] = curve
        if len(work.halves.classes) == 2:
            measures += operating_points(
                test.labels,
                scores,
                test.units,
                method=method,
                replicates=options.replicates,
                seed=options.seed,
            )
    return Outcome(measures, calibrations=curves)


def run_fairness(work: Work) -> Outcome:
    """See :func:`dermino_core.evaluation.fairness.fairness`, of the first probe's scores."""
    from dermino_core.evaluation.fairness import fairness

    method, scores = _first_prediction(work)
    test, options = work.halves.test, work.options
    return fairness(
        test.labels,
        scores,
        test.units,
        [work.cohort.records[row] for row in work.test_rows],
        method=method,
        n_classes=len(work.halves.classes),
        replicates=options.replicates,
        seed=options.seed,
    )


def run_reader_study(work: Work) -> Outcome:
    """Readers of test images against the first probe."""
    from dermino_core.evaluation.reader_shares import accuracy_by_share
    from dermino_core.evaluation.reader_study import reader_study
    from dermino_core.evaluation.reader_tables import items_of_predictions, read_answers

    options = work.options
    if options.readers is None:
        raise ValueError("no table of answers")
    _, scores = _first_prediction(work)
    test = work.halves.test
    items = items_of_predictions(
        [work.cohort.records[row].image for row in work.test_rows],
        test.labels,
        scores,
        work.halves.classes,
        test.units,
    )
    answers, notes = read_answers(options.readers, items)
    found = reader_study(answers, items, replicates=options.replicates, seed=options.seed)
    measures, notes = [*found.measures], [*notes, *found.notes]
    if "label_efficiency" in work.earlier and any(not answer.assisted for answer in answers):
        by_share = accuracy_by_share(
            found.measures, work.earlier["label_efficiency"].measures, seed=options.seed
        )
        measures += by_share.measures
        notes += by_share.notes
    return Outcome(measures, notes=notes)


def run_segmentation(work: Work) -> Outcome:
    """See :func:`dermino_core.evaluation.segmentation.segmentation`; heads go to `models/`."""
    from dermino_core.evaluation.segmentation import segmentation
    from dermino_core.evaluation.segmentation_data import masked_images
    from dermino_core.evaluation.segmentation_settings import SegmentationSettings

    options, cohort, division = work.options, work.cohort, work.division
    train, test = (
        masked_images(cohort.manifest, rows, division.units)
        for rows in (division.train, division.test)
    )
    return segmentation(
        work.spec,
        train,
        test,
        settings=SegmentationSettings(score_at=options.score_masks_at),
        seed=options.seed,
        replicates=options.replicates,
        precision=options.precision,
        device=options.device,
        save_to=work.models / "segmentation",
        title=cohort.title,
    )


def run_captioning(work: Work) -> Outcome:
    """See :func:`dermino_core.evaluation.captioning.captioning`; the captioner is kept."""
    from dermino_core.evaluation.captioning import CaptionedImages, captioning
    from dermino_core.evaluation.captioning_folder import save_captioner

    options, records = work.options, work.cohort.records

    def captioned(rows: Integers) -> CaptionedImages:
        return CaptionedImages(
            work.features_of(rows),
            [records[row].caption for row in rows],
            [work.division.units[row] for row in rows],
            [row_number(int(row)) for row in rows],
        )

    found = captioning(
        captioned(work.division.train),
        captioned(work.division.test),
        language_model=options.language_model,
        beams=options.beams,
        device=options.device,
        replicates=options.replicates,
        seed=options.seed,
    )
    save_captioner(
        work.models / "captioning",
        found.captioner,
        backbone=BackboneInfo.of(work.table.card, work.table.precision),
        backbone_spec=work.spec,
        trained_on=found.trained_on,
        seed=options.seed,
    )
    return found.outcome


def run_survival(work: Work) -> Outcome:
    """See :func:`dermino_core.evaluation.survival.survival`; one image file, one follow-up."""
    from dermino_core.evaluation.follow_up import FollowUp, read_follow_up
    from dermino_core.evaluation.survival import survival

    manifest, options = work.cohort.manifest, work.options
    _, time, event = read_follow_up(manifest.file, root=manifest.root, columns=work.cohort.columns)

    def followed(rows: Integers) -> FollowUp:
        units = tuple(work.division.units[row] for row in rows)
        return FollowUp(work.features_of(rows), time[rows], event[rows], units)

    return survival(
        followed(work.division.train),
        followed(work.division.test),
        replicates=options.replicates,
        seed=options.seed,
    )


def run_longitudinal(work: Work) -> Outcome:
    """See :func:`dermino_core.evaluation.longitudinal.longitudinal`."""
    from dermino_core.evaluation.longitudinal import longitudinal
    from dermino_core.evaluation.visits import pair_visits, read_visits

    manifest, options = work.cohort.manifest, work.options
    visits = read_visits(manifest.file, root=manifest.root, columns=work.cohort.columns)
    pairs = pair_visits(visits)
    features = np.full((len(work.cohort.records), work.table.card.width), np.nan)
    features[work.table.rows] = work.table.vectors
    return longitudinal(features, pairs, replicates=options.replicates, seed=options.seed)


def _with_delong(work: Work, found: Outcome) -> Outcome:
    """For two classes also DeLong's interval of AUROC, right where few images are of one class.

    Percentile intervals are too short there: see `tests/benchmarks/coverage.py`.
    """
    from dermino_core.evaluation.delong import delong_interval

    if len(work.halves.classes) != 2:
        return found
    test = work.halves.test
    measures = [*found.measures]
    for method, scores in found.predictions.items():
        estimate = delong_interval(test.labels, scores[:, -1], test.units)
        measures.append(
            Measure(
                method,
                "auroc_delong",
                estimate.value,
                len(test),
                estimate.low,
                estimate.high,
                estimate.standard_error,
                undefined_because=estimate.undefined_because,
            )
        )
    return replace(found, measures=measures)


def _predictions(work: Work) -> dict[str, FloatArray]:
    """Class probabilities of the probes on the test half, [n_test, C] each."""
    if "classification" not in work.earlier:
        work.earlier["classification"] = run_classification(work)
    return dict(work.earlier["classification"].predictions)


def _first_prediction(work: Work) -> tuple[str, FloatArray]:
    found = _predictions(work)
    method = next(name for name in PROBES if name in found)
    return method, found[method]
