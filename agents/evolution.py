"""CMA-ES, the algorithm of the ``cma`` package, with a state of tensors that a checkpoint can hold."""

from typing import Any

import cma
import numpy as np
import torch
from cma.sigma_adaptation import CMAAdaptSigmaCSA
from cma.utilities.utils import ElapsedWCTime
from jaxtyping import Float
from torch import Generator, Tensor, nn

# Where each tensor of the state lives in the package's object; everything else there follows from them, is for the
# package's own stopping criteria and logs, or belongs to options that are off. A test compares with the package alone.
PLACES = {"mean": "mean", "sigma": "sigma", "pc": "pc", "ps": "adapt_sigma.ps", "C": "sm.C", "B": "sm.B", "D": "sm.D"}
COUNTS = ("countiter", "countevals", "sm.last_update", "sm.count_tell")


class CMAES(nn.Module):
    """Minimises a function of ``dim`` numbers from its values at ``population`` points at a time, ``ask`` and ``tell``.

    The covariance is full, so memory is 16 dim^2 bytes and every few generations cost dim^3. It begins at 0 with
    standard deviation ``sigma`` in each direction. Recombination weights are the package's, negative ones for the worse
    half included; the step size is adapted by its path length in any dimension. Float64 on any device.
    """

    mean: Tensor
    sigma: Tensor
    counts: Tensor

    def __init__(self, dim: int, population: int, sigma: float):
        super().__init__()
        self.dim, self.population, self.first_sigma = dim, population, sigma
        strategy = self._new()
        for name, place in PLACES.items():
            self.register_buffer(name, torch.as_tensor(np.array(_get(strategy, place), np.float64)))
        self.register_buffer("counts", torch.tensor([int(_get(strategy, place)) for place in COUNTS]))

    @property
    def generation(self) -> int:
        """How often it was told."""
        return int(self.counts[0])

    def ask(self, generator: Generator | None) -> Float[Tensor, "N D"]:
        """Points to look at, float64 on the CPU."""
        strategy = self._strategy()

        def noise(*shape: int) -> np.ndarray:
            device = None if generator is None else generator.device
            return torch.randn(shape, generator=generator, device=device, dtype=torch.float64).cpu().numpy()

        strategy.sm.randn = noise
        points = torch.from_numpy(np.stack(strategy.ask()))
        self._keep(strategy)  # the covariance may have been decomposed
        return points

    def tell(self, points: Float[Tensor, "N D"], values: Float[Tensor, " N"]) -> None:
        """Learn from the values at the points that were asked for; small ones are good, and only their order counts."""
        strategy = self._strategy()
        asked = {"_flgtelldone": False, "evaluations_per_f_value": 1, "number_of_injections": 0}  # as ``ask`` leaves it
        asked |= {"number_of_solutions_asked": len(points), "_is_independent_sample": [True] * len(points)}
        for name, value in asked.items():
            setattr(strategy, name, value)
        strategy.tell(list(points.double().cpu().numpy()), values.double().cpu().tolist(), check_points=False)
        self._keep(strategy)

    def _new(self) -> Any:
        options = {
            "popsize": self.population,
            "AdaptSigma": CMAAdaptSigmaCSA,  # from 300 dimensions on the package would take another
            "conditioncov_alleviate": None,  # changes the coordinates
            "seed": np.nan,  # NumPy's global generator is left alone
            "verbose": -9,
            "verb_log": 0,
        }
        return cma.CMAEvolutionStrategy(np.zeros(self.dim), self.first_sigma, options)

    def _strategy(self) -> Any:
        """The package's object in this state."""
        strategy = self._new()
        for name, place in PLACES.items():
            value = getattr(self, name).cpu().numpy().copy()
            _set(strategy, place, value if value.ndim else float(value))
        for place, count in zip(COUNTS, self.counts.tolist(), strict=True):
            _set(strategy, place, count)
        strategy._updateBDfromSM(strategy.sm)
        strategy.timer, strategy.mean_old = ElapsedWCTime(), strategy.mean  # to be there; what they are has no effect
        return strategy

    def _keep(self, strategy: Any) -> None:
        for name, place in PLACES.items():
            getattr(self, name).copy_(torch.as_tensor(np.array(_get(strategy, place), np.float64)))
        self.counts.copy_(torch.tensor([int(_get(strategy, place)) for place in COUNTS]))


def _get(strategy: Any, place: str) -> Any:
    for part in place.split("."):
        strategy = getattr(strategy, part)
    return strategy


def _set(strategy: Any, place: str, value: Any) -> None:
    *rest, last = place.split(".")
    setattr(_get(strategy, ".".join(rest)) if rest else strategy, last, value)
