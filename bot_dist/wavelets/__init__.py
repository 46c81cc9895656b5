"""Filter banks as one linear operator per axis, and the application of operators to tensors."""

from bot_dist.wavelets.filter_bank import filters
from bot_dist.wavelets.operators import Operator, OperatorSpec, build_operator, check_supported

__all__ = ["Operator", "OperatorSpec", "build_operator", "check_supported", "filters"]
