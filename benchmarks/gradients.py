"""Gradients in two numbers each, so that many of them fit into a small file."""

import torch


def summary(gradient: torch.Tensor) -> list[float]:
    """Norm of a gradient and its projection on a fixed direction."""
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    return [gradient.norm().item(), (gradient * direction).sum().item()]
