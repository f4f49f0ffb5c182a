"""Attention between the pixels of feature maps."""

import torch
from torch.nn import functional as F


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Give each pixel of `query` a mean of `value`.

    The weights are the softmax of scale * query . key.

    Args:
        query: (N,C,H,W).
        key: (N,C,h,w).
        value: (N,V,h,w).
        scale: factor of the products before the softmax.

    Returns:
        (N,V,H,W).
    """
    query_rows, key_rows, value_rows = (x.flatten(2).transpose(1, 2)[:, None] for x in (query, key, value))
    mean = F.scaled_dot_product_attention(query_rows, key_rows, value_rows, scale=scale)
    return mean[:, 0].transpose(1, 2).unflatten(2, query.shape[-2:])
