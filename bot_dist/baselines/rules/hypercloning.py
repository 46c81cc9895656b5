"""HyperCloning (Samragh et al., *Scaling Smart*, arXiv 2409.12903), for integer ratios.

``W.repeat(n_out, n_in) / n_in``; biases, norms and embeddings are tiled; heads are repeated, and keep their width; the
head's input is divided by n.
"""

from __future__ import annotations

from bot_dist.baselines.rule import Baseline, Rule
from bot_dist.baselines.rules._copying import check_whole_ratios, copies
from bot_dist.model import Model


def hypercloning(source: Model, target: Model) -> Rule:
    check_whole_ratios(source, target)
    return Rule(name="HyperCloning", operators=copies("HyperCloning", source, target), exact=True)


BASELINE = Baseline(rule=hypercloning)
