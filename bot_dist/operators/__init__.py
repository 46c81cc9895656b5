"""Every change of an axis as one linear operator, and the application of operators to tensors."""

from bot_dist.operators.banded import Operator, from_dense
from bot_dist.operators.copies import Constant, Copy, Diagonal, Lazy, Merge, Select, Speaks, Stack
from bot_dist.operators.filter_bank import HAAR, filters
from bot_dist.operators.fitted import (
    SUFFIXES,
    Fitted,
    FittedConstant,
    FittedLifting,
    FittedMatrix,
    FittedSelection,
)
from bot_dist.operators.origins import counts, origins
from bot_dist.operators.resample import Resample
from bot_dist.operators.spec import (
    Detail,
    FirstMoment,
    OperatorSpec,
    ReadKept,
    Restore,
    SecondMoment,
    build_operator,
)
from bot_dist.operators.spec_json import spec_from_json, spec_to_json

__all__ = [
    "HAAR",
    "SUFFIXES",
    "Constant",
    "Copy",
    "Detail",
    "Diagonal",
    "FirstMoment",
    "Fitted",
    "FittedConstant",
    "FittedLifting",
    "FittedMatrix",
    "FittedSelection",
    "Lazy",
    "Merge",
    "Operator",
    "OperatorSpec",
    "ReadKept",
    "Resample",
    "Restore",
    "SecondMoment",
    "Select",
    "Speaks",
    "Stack",
    "build_operator",
    "counts",
    "filters",
    "from_dense",
    "origins",
    "spec_from_json",
    "spec_to_json",
]
