"""Names of fitted operators: the axis that each acts on, what it does there, and the module that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FittedName:
    """The name of a fitted operator, ``AXIS.PART.OWNER`` in stores, in plans and for people.

    Units and heads belong to the map that reads them: ``mlp.kept.mlp.down`` are the units that ``mlp.down`` goes on
    reading, and ``mlp.read.mlp.down`` is how. So does what each reader sees of the residual stream, by its norm or its
    first map (``Family.read_with``), and what each writer puts there.
    """

    axis: str
    """The axis that the operator acts on: ``embed``, ``heads`` or ``mlp``."""
    part: str
    """The part of the operator: ``read`` of what reads the axis, ``write`` of what writes it, ``gain`` of a norm along
    it; ``kept`` (``query`` and ``keyvalue`` of heads) where some indices are kept, ``spread`` where some are copied
    more often."""
    owner: str = ""
    """The module that reads or writes; empty for what is the same for all modules that write into the residual stream:
    its basis."""

    def __str__(self) -> str:
        return ".".join(filter(None, (self.axis, self.part, self.owner)))

    @staticmethod
    def parse(name: str) -> FittedName:
        """The name of which ``str`` makes ``name``."""
        axis, _, rest = name.partition(".")
        part, _, owner = rest.partition(".")
        return FittedName(axis=axis, part=part, owner=owner)


def owner_of(weight_name: str) -> str:
    """The module that a weight is a part of: ``mlp.down`` of ``mlp.down.weight`` and ``mlp.down.bias``."""
    return weight_name.removesuffix(".weight").removesuffix(".bias")
