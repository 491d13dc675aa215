"""RigL (Evci et al., "Rigging the lottery: making all tickets winners", ICML 2020), on any offset."""

from __future__ import annotations

from subspace.methods.growth import largest_gradients
from subspace.methods.moving import Mover
from subspace.methods.processes import together
from subspace.methods.ranking import Supports
from subspace.methods.saliencies.base import Objective


class RigL(Mover):
    """Grow where the objective's gradient with respect to w is largest: `optimizer.step(); rigl.step(objective)`.

    The objective is called once every delta_t steps, in the mode the model is in, with autocast where it says so
    itself; leave out the gradient scaler. The paper's setting is delta_t=100, fraction=0.3, decay=cosine, and t_end
    three quarters of all steps, from ERK densities. (Its code skips the optimizer's step where it moves; here that is
    the caller's choice.) With an offset, the magnitude that decides what is dropped is that of S. Of several processes
    each gives the objective of its own batch, and the gradient is the mean of theirs.

    Raises, in `step`, TypeError without an objective where one is due, and FloatingPointError naming the tensor where
    a gradient is not finite; nothing is then moved.
    """

    def grow(self, kept: Supports, counts: dict[str, int], objective: Objective | None) -> Supports:
        spaces = {name: self.parts[name].space for name in kept}
        group = together(self.model, self.group)
        return largest_gradients(self.model, spaces, objective, kept, counts, group, when=f" in step {self.steps}")
