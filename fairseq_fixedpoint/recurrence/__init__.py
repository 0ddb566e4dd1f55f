"""The mathematics: cells, the fixed-point iteration, the exact recurrence. Imports torch alone."""

from fairseq_fixedpoint.recurrence.arguments import check_share
from fairseq_fixedpoint.recurrence.bidirectional import both_directions
from fairseq_fixedpoint.recurrence.cells import CELLS, NONLINEARITIES
from fairseq_fixedpoint.recurrence.dropout import check_probability, dropout_mask, dropped
from fairseq_fixedpoint.recurrence.initialization import embedding, linear
from fairseq_fixedpoint.recurrence.iteration import Solution
from fairseq_fixedpoint.recurrence.order import Iterated, check_iterations
from fairseq_fixedpoint.recurrence.parametrization import check_constraints
from fairseq_fixedpoint.recurrence.solvers import (
    Jacobi,
    Newton,
    QuasiNewton,
    SolverSolution,
    solve,
)
from fairseq_fixedpoint.recurrence.stack import FixedOrder, FixedPointRNN
from fairseq_fixedpoint.recurrence.summary import TokenSummary

__all__ = [
    "CELLS",
    "NONLINEARITIES",
    "FixedOrder",
    "FixedPointRNN",
    "Iterated",
    "Jacobi",
    "Newton",
    "QuasiNewton",
    "Solution",
    "SolverSolution",
    "TokenSummary",
    "both_directions",
    "check_constraints",
    "check_iterations",
    "check_probability",
    "check_share",
    "dropout_mask",
    "dropped",
    "embedding",
    "linear",
    "solve",
]
