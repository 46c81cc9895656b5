"""Rules about layers alone; joined to one about widths where these change too (``hypercloning+stack``).

- ``stack``: the whole stack again (Gong et al., *Efficient Training of BERT by Progressively Stacking*, ICML 2019; Du
  et al., *Stacking Your Transformers*, arXiv 2405.15319, who call it G_stack).
- ``interpolate``: every layer again, behind itself (Chang et al., *Multi-level Residual Networks from Dynamical Systems
  View*, ICLR 2018).
- ``llama-pro``: copies put in behind layers, with what writes into the residual stream zeroed, so that they change
  nothing (Wu et al., *LLaMA Pro*, arXiv 2401.02415, who then train the copies alone; here everything is trained).
- ``even-layers``: layers dropped uniformly.
"""

from __future__ import annotations

from bot_dist.baselines.rule import Depth, Rule, only_grows, only_shrinks
from bot_dist.baselines.weight_selection import evenly
from bot_dist.model import Model


def stack(source: Model, target: Model) -> Rule:
    return _grown("stack", "stacking (StackBERT, G_stack)", source, target)


def interpolate(source: Model, target: Model) -> Rule:
    return _grown("interpolate", "interpolated layers", source, target)


def llama_pro(source: Model, target: Model) -> Rule:
    return _grown("identity", "identity blocks (LLaMA Pro)", source, target)


def even_layers(source: Model, target: Model) -> Rule:
    only_shrinks("dropping layers", source, target)
    layers = evenly(source.sizes["layer"], target.sizes["layer"])
    return Rule(name="layers dropped uniformly", layers=layers)


def _grown(depth: Depth, name: str, source: Model, target: Model) -> Rule:
    only_grows(name, source, target)
    return Rule(name=name, depth=depth, exact=depth == "identity")
