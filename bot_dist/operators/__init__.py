"""Every change of an axis as one linear operator, and the application of operators to tensors."""

from bot_dist.operators.banded import Operator, from_dense
from bot_dist.operators.build import build_operator, check_supported
from bot_dist.operators.copies import copies_only, counts, origins
from bot_dist.operators.dual import dropped, dual, places, split_of
from bot_dist.operators.filter_bank import HAAR, filters
from bot_dist.operators.optimizer_state import dual_matrix, squared_taps
from bot_dist.operators.spec import OperatorSpec, spec_from_json

__all__ = [
    "HAAR",
    "Operator",
    "OperatorSpec",
    "build_operator",
    "check_supported",
    "copies_only",
    "counts",
    "dropped",
    "dual",
    "dual_matrix",
    "filters",
    "from_dense",
    "origins",
    "places",
    "spec_from_json",
    "split_of",
    "squared_taps",
]
