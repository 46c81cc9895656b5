"""Stacking: the whole stack of layers again (Gong et al., *Efficient Training of BERT by Progressively Stacking*, ICML
2019; Du et al., *Stacking Your Transformers*, arXiv 2405.15319, who call it G_stack)."""

from __future__ import annotations

from bot_dist.baselines.rule import Baseline, Rule, only_grows
from bot_dist.model import Model


def stack(source: Model, target: Model) -> Rule:
    name = "stacking (StackBERT, G_stack)"
    only_grows(name, source, target)
    return Rule(name=name, depth="stack")


BASELINE = Baseline(rule=stack, layers_only=True)
