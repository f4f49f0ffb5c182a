"""Where the pixels of a batch are put: memory that is used again, that a GPU copies from, or that processes share."""

import math
import weakref

import numpy as np
import torch


class Buffers:
    """Gives out tensors uint8, and takes the memory of one back when nothing refers to it any more, not even a view.

    So a new batch costs no fresh pages, and the heap does not come to pieces.

    most: how many buffers of a size are kept while they are not in use; all that are lent beyond that are freed when
    they come back, so a consumer may keep as many batches as it likes.
    """

    def __init__(self, most: int):
        self.most = most
        self.free: dict[int, list[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of `shape` with any contents."""
        size = math.prod(shape)
        kept = self.free.setdefault(size, [])
        memory = kept.pop() if kept else np.empty(size, np.uint8)
        # PyTorch holds this view, and nothing but it, as long as any tensor has the memory.
        lent = memory[:]
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return torch.from_numpy(lent).view(shape)

    def _take_back(self, memory: np.ndarray) -> None:
        kept = self.free[memory.size]
        if len(kept) < self.most:
            kept.append(memory)


def new_pinned(shape: tuple[int, ...]) -> torch.Tensor:
    """Page-locked memory, from which a GPU copies while the host goes on. PyTorch keeps it, and gives it out again only
    when the copies from it are done."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


def to_pinned(array) -> torch.Tensor:
    """A copy of an array uint8, or of what `source.py` takes for one, in page-locked memory."""
    out = new_pinned(array.shape)
    np.copyto(out.numpy(), np.asarray(array))
    return out


def new_shared(shape: tuple[int, ...]) -> torch.Tensor:
    """Memory of a worker process that its parent sees too: as in torch's own collation, nothing is copied when the
    batch is sent."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)
