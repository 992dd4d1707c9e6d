"""What a simulation keeps from solve to solve, and when it is worth keeping.

Every solve may start from the last ones, extrapolated. Large ones may have an aid besides: the
lowest eigenvectors of L for Φ, kept for as long as the neighbour list (with its skin) stands, or
the inverse of an earlier geometry for phi-coulomb, kept until its age has cost more than a new one.
An aid takes time to make and to use, and must save more.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from torch import Tensor

from phicalc import fields

TRIAL_STEPS = 5
"""Steps without and then with the aid, before the first judgement of it."""


@dataclass(frozen=True)
class Aid:
    """Something that is kept, and its costs in iterations of a solve without it.

    Attributes
    ----------
    entry
        Its name among the inputs of a model.
    per_iteration, per_solve
        What it adds to an iteration, and to a solve besides.
    per_refresh
        What it costs to make for 1,000 atoms; grows with the square of their number. 0: it is made
        when the neighbour list is, at a cost that is counted in ``per_solve``.
    most_atoms
        Structures beyond go without; None: none does.
    """

    entry: str
    per_iteration: float = 0.0
    per_solve: float = 0.0
    per_refresh: float = 0.0
    most_atoms: Optional[int] = None

    def solve(self, iterations: float) -> float:
        """Cost of a solve with it that takes so many iterations."""
        return iterations * (1.0 + self.per_iteration) + self.per_solve

    def refresh(self, num_atoms: int) -> float:
        """Cost of making it for so many atoms."""
        return self.per_refresh * (1e-3 * num_atoms) ** 2


def eigenbasis(size: int) -> Aid:
    """The lowest eigenvectors of L, so many.

    Costs as measured by tests/benchmarks/eigenbasis_cache.py.
    """
    return Aid(fields.BASIS, per_iteration=0.02 * size, per_solve=1.1 * size)


INVERSE = Aid(fields.INVERSE, per_iteration=0.05, per_refresh=13.0, most_atoms=2500)
"""The inverse of an earlier geometry. To make it takes the time of 8 iterations for 648 atoms of
water and of 30 for 1,536 (4 and 10 ms each)."""


@dataclass
class CacheInfo:
    """What the cache did since it was made."""

    steps: int = 0
    """Solves observed."""
    topologies: int = 0
    """Neighbour topologies seen."""
    refreshes: int = 0
    """Times the aid was made."""
    aided_steps: int = 0
    """Solves that were given an aid."""
    direct_steps: int = 0
    """Solves small enough for a direct solve, which needs neither aid nor start."""
    iterations: int = 0
    """Iterations in all."""
    last_iterations: int = 0
    last_residual: float = 0.0
    mode: str = "not used yet"
    """'direct', 'basis' or 'inverse', 'no basis' or 'no inverse' (does not pay here), 'start'
    (nothing but a starting vector for this solve), or 'trial' (finding out)."""

    @property
    def reuse_fraction(self) -> float:
        """Share of the steps on which the neighbour topology was unchanged."""
        return 1.0 - self.topologies / self.steps if self.steps else 0.0


class SolverCache:
    """Aid and starting vector of a solve, from one MD step to the next.

    Whatever it holds costs or saves iterations and never changes the answer beyond the solver's
    tolerance. Whether the aid pays is decided from iteration counts alone, so that a run is
    reproducible: ``TRIAL_STEPS`` without it, as many with it, then the cheaper; what it costs to
    make is judged when it is due to be made again.

    Parameters
    ----------
    aid
        None: starting vectors alone
    policy
        ``"auto"``, or ``"always"`` / ``"never"`` use the aid (for measurements)
    """

    def __init__(self, aid: Optional[Aid] = None, policy: str = "auto") -> None:
        self.aid = aid
        self.policy = policy
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next solve starts cold."""
        self.info = CacheInfo()
        self._num_nodes = -1
        self.restart()

    def restart(self) -> None:
        """Forget the last structure, keep the counts."""
        self._held: Optional[Tensor] = None
        self._topology: Optional[int] = None
        self._history: list[Tensor] = []
        self._plain: list[int] = []
        self._aided_steps, self._aided_iterations, self._refreshes = 0, 0, 0
        self._fresh: Optional[int] = None  # iterations when the aid was new
        self._age_cost = 0
        self._dropped = False
        self._once_more = True
        self._gave = False

    def held(self, num_nodes: int) -> Optional[Tensor]:
        """The aid (N, …) for the coming solve, or None."""
        if num_nodes != self._num_nodes:
            self.restart()
            self._num_nodes = num_nodes
        self._gave = self._held is not None
        return self._held

    def guess(self) -> Optional[Tensor]:
        """Starting vector (N,): the last potentials, extrapolated; or None."""
        if not self._history:
            return None
        if len(self._history) == 1:
            return self._history[0]
        if len(self._history) == 2:
            return 2.0 * self._history[0] - self._history[1]
        return 3.0 * (self._history[0] - self._history[1]) + self._history[2]

    def observe(
        self,
        topology: int,
        make: Callable[[Optional[Tensor]], Tensor],
        solution: Tensor,
        iterations: int,
        residual: float,
    ) -> None:
        """Learn from a finished solve.

        Parameters
        ----------
        topology
            Number of the neighbour list.
        make
            Makes the aid of this geometry from the last one; called if it is wanted and old.
        solution
            (N,) | what the next ones start from
        iterations, residual
            Of the solve; both zero: a direct one.
        """
        info = self.info
        info.steps += 1
        info.iterations += iterations
        info.last_iterations, info.last_residual = iterations, residual
        info.aided_steps += self._gave
        new_topology = topology != self._topology
        info.topologies += new_topology
        self._topology = topology
        if iterations == 0 and residual == 0.0:
            info.direct_steps += 1
            info.mode = "direct"
            return
        if self._gave:
            self._aided_steps += 1
            self._aided_iterations += iterations
            self._fresh = iterations if self._fresh is None else min(self._fresh, iterations)
            self._age_cost += iterations - self._fresh
        elif len(self._history) == 3 and len(self._plain) < TRIAL_STEPS:
            self._plain.append(iterations)
        self._history = [solution, *self._history[:2]]
        self._keep(new_topology, make)

    def _keep(self, new_topology: bool, make: Callable[[Optional[Tensor]], Tensor]) -> None:
        """Make, keep or drop the aid for the next solves."""
        aid, info = self.aid, self.info
        if aid is None:
            info.mode = "start"
            return
        if not self._wanted(aid):
            info.mode = f"no {aid.entry}"
            return
        if self.policy == "auto" and len(self._plain) < TRIAL_STEPS:
            info.mode = "trial"
            return
        cost = aid.refresh(self._num_nodes)
        old = new_topology if cost == 0.0 else self._age_cost >= cost
        if self._held is not None and not self._pays(aid, cost if old else 0.0):
            if cost == 0.0 or not self._once_more or self._helped_at_first(aid):
                self._held, self._dropped = None, True
                info.mode = f"no {aid.entry}"
                return
            self._once_more, old = False, True
            self._aided_steps, self._aided_iterations, self._refreshes = 0, 0, 0
        tried = self.policy == "always" or self._aided_steps >= TRIAL_STEPS
        info.mode = aid.entry if tried else "trial"
        if old or self._held is None:
            self._held = make(self._held)
            self._refreshes += 1
            self._fresh, self._age_cost = None, 0
            info.refreshes += 1

    def _helped_at_first(self, aid: Aid) -> bool:
        """Whether the best solve with it took less than those without; else it was made too early.

        Of a geometry before a jump, that is, which the ones after have nothing to do with.
        """
        best = math.inf if self._fresh is None else self._fresh
        return aid.solve(best) < sum(self._plain) / TRIAL_STEPS

    def _wanted(self, aid: Aid) -> bool:
        few = aid.most_atoms is None or self._num_nodes <= aid.most_atoms
        return few and not self._dropped and self.policy != "never"

    def _pays(self, aid: Aid, refresh: float) -> bool:
        """Whether it costs less than it saves, each time that it was made so much."""
        if self.policy == "always" or self._aided_steps < TRIAL_STEPS:
            return True
        aided = aid.solve(self._aided_iterations / self._aided_steps)
        aided += refresh * self._refreshes / self._aided_steps
        return aided < sum(self._plain) / TRIAL_STEPS
