"""The points that a training goes through, and their first principal directions: the lottery subspace (Larsen et al.,
"How many degrees of freedom do we need to train deep networks: a loss landscape perspective", ICLR 2022).

The points are kept as they are, O(k N) for k points of N weights; directions come from the k x k products of points.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from subspace._base.selection import Selection, targets


class Trajectory:
    """Records the weights of a model: the first time when it is made, and again at every `record`.

    Args:
        model: Not parametrized; it is only read.
        include: Which tensors, as of `targets`.
        exclude: Which tensors not, as of `targets`.

    Raises:
        ValueError: As `targets`.

    >>> layer = nn.Linear(3, 2)
    >>> trajectory = Trajectory(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight[0, 0].add_(2.0)
    >>> trajectory.record()
    >>> trajectory.directions(1)["weight"].flatten().tolist()
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, model: nn.Module, include: Selection | None = None, exclude: Selection | None = None) -> None:
        self.weights = {name: target.weight for name, target in targets(model, include, exclude).items()}
        self.points: list[dict[str, Tensor]] = []
        self.record()

    def record(self) -> None:
        """Keep the present weights as a point."""
        self.points.append({name: weight.detach().clone() for name, weight in self.weights.items()})

    def directions(self, dim: int) -> dict[str, Tensor]:
        """The first principal directions of the way from the first point, that of the most variance first.

        They are not centred at the points' mean, as the affine space of d = the first point goes through that one. Of
        each, the scalar product with the last step is not negative.

        Args:
            dim: How many.

        Returns:
            By name the rows of one matrix of orthonormal columns, in float64: (numel, dim).

        Raises:
            ValueError: If the points after the first have fewer independent directions.
        """
        start = self.points[0]
        steps = {
            name: torch.stack([(point[name].double() - start[name].double()).flatten() for point in self.points[1:]])
            for name in (start if len(self.points) > 1 else ())
        }
        products = torch.zeros(len(self.points) - 1, len(self.points) - 1, dtype=torch.float64)
        for way in steps.values():
            products += (way @ way.T).cpu()
        values, vectors = torch.linalg.eigh(products)
        rank = int((values > 1e-12 * values.max()).sum()) if len(values) else 0
        if not rank:
            raise ValueError(f"a trajectory must have a point away from its first, got none in {len(self.points)}")
        if not 1 <= dim <= rank:
            raise ValueError(f"dim must be in [1, {rank}], the independent directions of the points, got {dim}")
        chosen = vectors[:, -dim:].flip(1) / values[-dim:].flip(0).sqrt()
        chosen = chosen * torch.where((products[-1] @ chosen) < 0, -1.0, 1.0)
        return {name: way.T @ chosen.to(way.device) for name, way in steps.items()}
