"""The baseline of bert2BERT's function-preserving initialisation (FPI; Chen et al., ACL 2022, arXiv 2110.07143; as
Net2Net).

Unit i is a copy of unit i mod n, where the paper draws those beyond n. Off integers the residual stream's norms see
some units more often than others, and the function is kept only nearly.
"""

from __future__ import annotations

from bot_dist.baselines.rule import Baseline, Rule
from bot_dist.baselines.rules._copying import copies
from bot_dist.model import Model


def fpi(source: Model, target: Model) -> Rule:
    return Rule(name="bert2BERT, FPI", operators=copies("bert2BERT", source, target), exact=True)


BASELINE = Baseline(rule=fpi)
