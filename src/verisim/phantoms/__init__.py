"""Procedural anatomy with exactly known factors, and the measurement of those factors from pixels."""

from functools import partial

from verisim.phantoms import (
    brain,
    brain_measure,
    chest,
    chest_report,
    growing_brain,
    growing_brain_measure,
    head_ct,
    head_ct_measure,
    knee,
    knee_measure,
    measure,
    mr_contrast,
)
from verisim.phantoms.base import Phantom, PhantomKind

PHANTOMS: dict[str, PhantomKind] = {
    "chest": PhantomKind(
        make=chest.make, measure=measure.measure, class_names=chest.CLASS_NAMES, report=chest_report.report
    ),
    "chest_findings": PhantomKind(  # findings are five times as frequent
        make=partial(chest.make, rate=5.0),
        measure=measure.measure,
        class_names=chest.CLASS_NAMES,
        report=chest_report.report,
    ),
    "knee": PhantomKind(make=knee.make, measure=knee_measure.measure, class_names=knee.CLASS_NAMES),
    "brain": PhantomKind(
        make=brain.make,
        measure=brain_measure.measure,
        class_names=brain.CLASS_NAMES,
        spatial_dims=(2, 3),
        structures=brain.STRUCTURES,
        lesions=brain.LESION_CODES,
        findings=tuple(brain.LESIONS),
        contrasts=tuple(mr_contrast.SEQUENCES),
    ),
    "head_ct": PhantomKind(
        make=head_ct.make,
        measure=head_ct_measure.measure,
        class_names=head_ct.CLASS_NAMES,
        spatial_dims=(2, 3),
        structures=head_ct.STRUCTURES,
        lesions=head_ct.PARTS["lesion"],
    ),
    "growing_brain": PhantomKind(
        make=growing_brain.make,
        measure=growing_brain_measure.measure,
        class_names=growing_brain.CLASS_NAMES,
        spatial_dims=(2, 3),
        structures=growing_brain.STRUCTURES,
    ),
}

__all__ = ["PHANTOMS", "Phantom", "PhantomKind"]
