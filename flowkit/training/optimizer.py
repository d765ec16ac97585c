"""The optimizers of a training: Muon for the matrices that tokens pass, AdamW for everything else, or AdamW alone.

Muon replaces the momentum of a matrix by its nearest orthogonal matrix, found with a Newton-Schulz iteration. torch
runs that iteration in bfloat16, which a CPU without bfloat16 instructions does twenty times slower than float32, and
not at all for shards; here a CPU iterates in float32, and a sharded matrix is put together first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowkit.training.world import sharded_like, whole

ADAMW_BETAS = (0.9, 0.99)
NEWTON_SCHULZ_STEPS = 4
"""Four steps train as well as five (R2 .937 each after 250 steps of the demo) and cost a fifth less."""
OPTIMIZERS = ("muon", "adamw")


class MatrixNetwork(Protocol):
    """A network that names the matrices which an orthogonalised update fits."""

    def token_matrices(self) -> list[nn.Parameter]: ...

    def named_parameters(self) -> Any: ...


def orthogonalized(
    matrix: Tensor, *, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """Return `matrix` with all singular values brought near 1 (within .7 to 1.2 after five steps), in its dtype.

    One step is X <- a X + (b A + c A A) X with A = X X'; the start is scaled to norm 1.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=epsilon)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Muon):
    """torch's Muon for whole and for sharded matrices; iterates in bfloat16 on a GPU, as they are on a CPU."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = orthogonalized(
            _for_iteration(whole(gradient.lerp(momentum, group["momentum"]))),
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            epsilon=group["eps"],
        )
        direction = sharded_like(direction.to(parameter.dtype), parameter)
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def _for_iteration(matrix: Tensor) -> Tensor:
    return matrix if matrix.device.type == "cpu" else matrix.bfloat16()


class Optimizers:
    """All optimizers of a run behind one `step`, with their state as named tensors."""

    def __init__(self, optimizers: dict[str, torch.optim.Optimizer], names: dict[Tensor, str]) -> None:
        self._optimizers = optimizers
        self._names = names
        self._peak = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}

    def step(self, factor: float) -> None:
        """Update all parameters with `factor` times the peak learning rates."""
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * self._peak[name]
            optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, `<optimizer>/<parameter>/<key>`, in an order that all processes share."""
        found = {
            f"{name}/{self._names[parameter]}/{key}": value
            for name, optimizer in self._optimizers.items()
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
        return {name: found[name] for name in sorted(found)}  # a restored state lies in the order of its file

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state that `tensors` gave; raises `KeyError` for a parameter that is not here."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        for path, value in tensors.items():
            name, parameter_name, key = path.split("/")
            parameter = parameters[parameter_name]
            is_like = value.shape == parameter.shape
            kept = sharded_like(value, parameter) if is_like else value.to(parameter.device)
            self._optimizers[name].state[parameter][key] = kept.clone()


def build_optimizers(
    network: MatrixNetwork,
    *,
    kind: str,
    muon_learning_rate: float,
    muon_momentum: float,
    learning_rate: float,
    weight_decay: float,
) -> Optimizers:
    """Return the optimizers of `kind` ("muon" or "adamw"); raises `ValueError` for another kind.

    Weight decay acts on the token matrices alone.
    """
    if kind not in OPTIMIZERS:
        raise ValueError(f"optimizer is {kind!r}, expected one of {list(OPTIMIZERS)}; choose one of these")
    matrices = network.token_matrices()
    held = {id(matrix) for matrix in matrices}
    others = [parameter for _, parameter in network.named_parameters() if id(parameter) not in held]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if kind == "muon":
        optimizers["muon"] = Muon(
            matrices,
            lr=muon_learning_rate,
            momentum=muon_momentum,
            weight_decay=weight_decay,
            ns_steps=NEWTON_SCHULZ_STEPS,
        )
    else:
        groups.append({"params": matrices, "weight_decay": weight_decay})
    optimizers["adamw"] = torch.optim.AdamW(groups, lr=learning_rate, betas=ADAMW_BETAS, fused=True)
    return Optimizers(optimizers, {parameter: name for name, parameter in network.named_parameters()})
