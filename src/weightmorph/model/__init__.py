"""A frozen network whose weights follow a parameter.

`condition` reads a network once and makes a [`Conditioned`][weightmorph.Conditioned] model, `load` makes one from a
file, and a [`ModelSpec`][weightmorph.model.ModelSpec] lists the facts of a model. A call is bound to one value
([`call`][weightmorph.model.call]), is given its weights ([`weights`][weightmorph.model.weights]), and is run on a clone
of the base ([`running`][weightmorph.model.running]).
"""

from .condition import condition
from .conditioned import Conditioned
from .spec import ModelSpec

__all__ = ["Conditioned", "ModelSpec", "condition"]
