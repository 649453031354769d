"""LMS, whose coefficients are integrals by scipy.

Its import takes half a second, so it waits for the first step.
"""

from diffusers.schedulers import scheduling_lms_discrete
from torch import Tensor

from clipgraft.errors import needs


class LMSDiscreteScheduler(scheduling_lms_discrete.LMSDiscreteScheduler):
    """diffusers' LMS, which needs scipy only when it samples."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """Integrate a Lagrange polynomial of sigmas over step t, as diffusers does.

        Raises:
            UserError: If scipy is not installed.
        """
        with needs("lms", "scipy (for the scheduler LMS)"):
            from scipy.integrate import quad

        own = self.sigmas[t - current_order]
        others = [self.sigmas[t - each] for each in range(order) if each != current_order]

        def polynomial(sigma: float) -> Tensor | float:
            product: Tensor | float = 1.0
            for other in others:
                product *= (sigma - other) / (own - other)
            return product

        integral: float = quad(polynomial, self.sigmas[t], self.sigmas[t + 1], epsrel=1e-4)[0]
        return integral
