"""The defects of the earlier recipe, kept to measure what each of them costs. Nothing else knows them.

    objective: the extra losses look at x_t - (1 - t) v, where the clean estimate is x_t + (1 - t) v
    clock:     the sampler starts from noise at t = 1, the data end of training, and goes down to 0 while adding + v dt
    head:      the output passes 3/4 as many channels as the target has (768 of 1024), so its rank is limited

Each can be chosen by itself: objective kind, clock and head are all called "earlier".
"""

from __future__ import annotations

from torch import Tensor, nn

from flowkit.flow import path
from flowkit.flow.objective import FlowObjective

RANK_SHARE = 3 / 4


class EarlierObjective(FlowObjective):
    """Rectified flow whose extra losses take the clean estimate with the wrong sign."""

    def clean_estimate_of_extra_losses(
        self, clean_BTC: Tensor, x_t_BTC: Tensor, v_BTC: Tensor, t_B: Tensor
    ) -> Tensor:
        """Return x_t - (1 - t) v."""
        return x_t_BTC - (1 - path.expand_time(t_B, x_t_BTC)) * v_BTC


def reversed_time(t: float) -> float:
    """Return the time that the network is told while the solver goes from noise (0) to data (1)."""
    return 1 - t


class RankLimitedHead(nn.Module):
    """Linear output whose matrix has at most `RANK_SHARE` of full rank; zero at initialisation."""

    def __init__(self, width: int, target_width: int) -> None:
        super().__init__()
        rank = int(RANK_SHARE * target_width)
        self.narrow = nn.Linear(width, rank, bias=False)
        self.output = nn.Linear(rank, target_width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the output tokens [B, T, target width]."""
        return self.output(self.narrow(x_BTD))
