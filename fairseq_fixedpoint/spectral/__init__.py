"""Recurrent networks from moments of their input and output, without gradient descent.

After Sedghi and Anandkumar, "Training Input-Output Recurrent Neural Networks through Spectral
Methods" (2016), arXiv 1603.00954. The model of K iterations is a function of a window of K inputs,
so the score functions of a window take the place of those of a whole sequence; docs/spectral.md
says what is the paper's and what is not. Imports numpy and scipy alone.

Raises:
    ImportError: where scipy is not installed, naming the extra that has it.
"""

try:
    import scipy as _scipy  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the spectral start needs scipy, which cannot be imported here ({error}): install this "
        "package's extra spectral."
    ) from error

from fairseq_fixedpoint.spectral.bidirectional_estimate import BidirectionalEstimate, bidirectional
from fairseq_fixedpoint.spectral.decomposition import Decomposition, decompose
from fairseq_fixedpoint.spectral.elman import elman_start
from fairseq_fixedpoint.spectral.feature_windows import Windows, indicators
from fairseq_fixedpoint.spectral.input_output_network import Network
from fairseq_fixedpoint.spectral.linear import LinearEstimate, linear
from fairseq_fixedpoint.spectral.quadratic import quadratic
from fairseq_fixedpoint.spectral.readout import least_squares_readout
from fairseq_fixedpoint.spectral.report import Estimate, Report
from fairseq_fixedpoint.spectral.scores import GaussianWindow

__all__ = [
    "BidirectionalEstimate",
    "Decomposition",
    "Estimate",
    "GaussianWindow",
    "LinearEstimate",
    "Network",
    "Report",
    "Windows",
    "bidirectional",
    "decompose",
    "elman_start",
    "indicators",
    "least_squares_readout",
    "linear",
    "quadratic",
]
