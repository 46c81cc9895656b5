"""LLaMA Pro (Wu et al., arXiv 2401.02415): copies put in behind layers, which change nothing, for what they write into
the residual stream is zero. Its authors then train the copies alone; here everything is trained."""

from __future__ import annotations

from bot_dist.baselines.rule import Baseline, Rule, only_grows
from bot_dist.model import Model


def llama_pro(source: Model, target: Model) -> Rule:
    name = "identity blocks (LLaMA Pro)"
    only_grows(name, source, target)
    return Rule(name=name, depth="identity", exact=True)


BASELINE = Baseline(rule=llama_pro, layers_only=True)
