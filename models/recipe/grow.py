"""Grow a trained model into a larger one that begins with nearly the same function, to be trained on.

Each block of the small model keeps its weights in a corner of a larger block; other blocks pass on what they get. So the
large model does not have to learn again what the small one knows. (Net2Net, arXiv 1511.05641; bert2BERT, arXiv 2110.07143.)
The heads of both must be of one size. Knows nothing of text.
"""

import torch
from model import Model
from torch import Tensor, nn

NOISE = 0.02
"""Standard deviation of new weights."""

QUIET = 0.1
"""New weights that write into the residual stream are so much smaller."""


@torch.no_grad()
def grow(small: Model, large: Model) -> None:
    """Give `large` the weights of `small`, and small random ones elsewhere."""
    if small.shape.head_size != large.shape.head_size:
        raise ValueError("the heads of the two models are not of one size")
    ratio = (small.shape.width / large.shape.width) ** 0.5  # the root mean square falls so when zeros are added
    _fill(large.token_embd.weight, small.token_embd.weight, NOISE)
    _scale(large.output_norm, small.output_norm, ratio)
    kept = dict(zip(_places(len(small.blk), len(large.blk)), small.blk, strict=True))
    for index, block in enumerate(large.blk):
        for name, parameter in block.named_parameters():
            if parameter.dim() == 2:
                writes = name.startswith(("attn_output", "ffn_down"))
                source = dict(kept[index].named_parameters())[name] if index in kept else None
                _fill(parameter, source, NOISE * (QUIET if writes else 1.0))
        for norm in ("attn_norm", "ffn_norm"):
            if index in kept:
                _scale(getattr(block, norm), getattr(kept[index], norm), ratio)


def _places(num_small: int, num_large: int) -> list[int]:
    """Where the small model's blocks stand among the large one's: evenly."""
    return [(2 * index + 1) * num_large // (2 * num_small) for index in range(num_small)]


def _fill(large: Tensor, small: Tensor | None, noise: float) -> None:
    large.normal_(std=noise)
    if small is not None:
        rows, columns = small.shape
        large[:rows, columns:] *= QUIET  # what is known is hardly disturbed by what is new
        large[:rows, :columns] = small


def _scale(large: nn.RMSNorm, small: nn.RMSNorm, ratio: float) -> None:
    large.weight.fill_(ratio)
    large.weight[: len(small.weight)] = small.weight * ratio
