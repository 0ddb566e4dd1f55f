"""Fixed-point recurrent language models for fairseq.

Importing the package, which ``--user-dir fairseq_fixedpoint`` does, registers its model, criterion
and task with fairseq. Without fairseq, :mod:`fairseq_fixedpoint.recurrence` works with torch alone.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("fairseq") is not None:
    from fairseq_fixedpoint import compat

    compat.apply()

    import fairseq_fixedpoint.criterions.fixedpoint_cross_entropy
    import fairseq_fixedpoint.models.fixedpoint
    import fairseq_fixedpoint.models.fixedpoint_lm
    import fairseq_fixedpoint.tasks.fixedpoint_language_modeling
    import fairseq_fixedpoint.tasks.fixedpoint_translation  # noqa: F401
