"""Optimiser groups, and the learning rate as a function of the step."""

import math
from collections.abc import Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vq_prior.core.errors import ArtifactError
from vq_prior.core.processes.runtime import has_native_bf16
from vq_prior.core.processes.sharding import gathered, like

Schedule = Literal["trapezoid", "cosine"]


class KernelMuon(torch.optim.Muon):
    """Muon that takes parameters of more than two axes, too: as matrices [first axis, all others].

    Where the machine does not multiply in bfloat16, which torch's own always does, its products are in float32: on a
    CPU that has to emulate them they take up to 30 times as long.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **settings: Any) -> None:
        kernels = list(parameters)
        super().__init__([nn.Parameter(kernel.detach().flatten(1)) for kernel in kernels], **settings)
        self.param_groups[0]["params"] = kernels  # torch's own refuses all but matrices

    def _init_group(self, group: Any, *tensors: list[Tensor]) -> bool:
        for kernel in group["params"]:
            if kernel.grad is not None and kernel.ndim > 2:
                kernel.grad = kernel.grad.contiguous()  # its memory order is the momentum's
        has_complex = super()._init_group(group, *tensors)
        for some in tensors:
            some[:] = [tensor if tensor.ndim == 2 else tensor.view(len(tensor), -1) for tensor in some]
        return has_complex

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Do one optimiser step."""
        (group,) = self.param_groups
        if closure is not None or has_native_bf16(group["params"][0].device.type):
            return super().step(closure)
        matrices: list[Tensor] = []
        gradients: list[Tensor] = []
        momenta: list[Tensor] = []
        self._init_group(group, matrices, gradients, momenta)
        rate, keep = group["lr"], group["momentum"]
        for matrix, gradient, momentum in zip(matrices, gradients, momenta, strict=True):
            momentum.lerp_(gradient, 1 - keep)
            direction = orthogonalised(
                gradient.lerp(momentum, keep), group["ns_coefficients"], group["ns_steps"], group["eps"]
            )
            matrix.mul_(1 - rate * group["weight_decay"])
            matrix.add_(direction, alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))
        return None


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Return about the orthogonal matrix nearest to a matrix, by a quintic Newton-Schulz iteration.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": X <- a X + (b A + c A A) X, A = X X'.
    """
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


MOMENTS: dict[type, set[str]] = {torch.optim.AdamW: {"exp_avg", "exp_avg_sq"}, KernelMuon: {"momentum_buffer"}}


def lr_at(
    step: int, *, steps: int, peak: float, warmup_steps: int, decay_fraction: float, schedule: Schedule = "trapezoid"
) -> float:
    """Return the learning rate of optimiser step `step`, counted from 0.

    Linear from 0 to `peak` over `warmup_steps`; then a trapezoid: constant, and linear to 0
    over the last `decay_fraction` of all steps (Zhai et al. 2022, "Scaling vision
    transformers", the cooldown schedule); or a cosine: half a period of it from `peak` to 0
    (Loshchilov and Hutter 2017, eq. 5, without restarts).

    >>> [round(lr_at(s, steps=10, peak=1.0, warmup_steps=2, decay_fraction=0.5), 2) for s in (0, 1, 4, 6, 9)]
    [0.5, 1.0, 1.0, 0.8, 0.2]
    """
    rise = (step + 1) / warmup_steps if warmup_steps else 1.0
    if schedule == "cosine":
        share = (step - warmup_steps) / max(1, steps - warmup_steps)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))
    else:
        tail = decay_fraction * steps
        fall = (steps - step) / tail if tail else 1.0
    return peak * max(0.0, min(1.0, rise, fall))


def adamw(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) of the trained parameters; only those of two or more axes decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # One pass over the parameters takes a third of the time; where it cannot be had, torch chooses.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained) or None
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=fused)


def muon(parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float) -> KernelMuon:
    """Return Muon (Jordan et al. 2024) of matrices or kernels: steps along the orthogonal matrix nearest the momentum.

    A step is scaled to the root mean square that AdamW's usually have (Liu et al. 2025, "Muon is scalable", eq. 4),
    so that both take one learning rate.
    """
    return KernelMuon(
        parameters, lr=learning_rate, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )


def adamw_and_muon(
    parameters: Iterable[nn.Parameter],
    kernels: Collection[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    share: float = 1.0,
) -> dict[str, torch.optim.Optimizer]:
    """Return Muon of some parameters, if any, at a share of the learning rate, and AdamW of the others, by name."""
    of_muon = {id(kernel) for kernel in kernels}
    rest = [parameter for parameter in parameters if id(parameter) not in of_muon]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": adamw(rest, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas)
    }
    if kernels:
        optimizers["muon"] = muon(kernels, learning_rate=learning_rate, weight_decay=weight_decay)
        optimizers["muon"].param_groups[0]["share"] = share
        set_learning_rate(optimizers["muon"], learning_rate)
    return optimizers


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group of the optimiser this learning rate, or its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("share", 1.0)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """Return the optimiser's state as flat tensors named `parameter/key`, whole and on the host; see `gathered`."""
    state = {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return gathered(state, keep=keep)


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor], where: str
) -> None:
    """Give the optimiser the state that `optimizer_tensors` returned.

    Raises:
        ArtifactError: If a parameter's state is missing, of another shape, or belongs to no parameter of the optimiser.
    """
    mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    keys_of: dict[str, dict[str, Tensor]] = {}
    for flat_name, tensor in tensors.items():
        name, _, key = flat_name.rpartition("/")
        keys_of.setdefault(name, {})[key] = tensor
    trained = {name: p for name, p in module.named_parameters() if id(p) in mine}
    for name in keys_of.keys() ^ trained.keys():
        raise ArtifactError(f"{where}: optimiser state and parameters differ at {name!r}")
    moments = MOMENTS[type(optimizer)]
    on_device = any(group.get("fused") for group in optimizer.param_groups)  # whose kernel reads the number of steps
    for name, parameter in trained.items():
        state = keys_of[name]
        fits = state.keys() - {"step"} == moments and all(state[key].shape == parameter.shape for key in moments)
        if not fits or ("step" in state) != (type(optimizer) is torch.optim.AdamW):
            raise ArtifactError(f"{where}: the optimiser state of {name!r} does not fit its parameter")
        optimizer.state[parameter] = {
            key: like(tensor, parameter) if key != "step" else tensor.to(parameter.device) if on_device else tensor
            for key, tensor in state.items()
        }
