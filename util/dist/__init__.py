"""The processes of a run; the only folder that imports `torch.distributed`.

Everything is a no-op on one process.
"""

from util.dist.collective import (
    Agreement,
    all_reduce_sum_,
    gather_objects,
    largest,
    no_sync,
    share,
    share_buffers,
    wrap,
)
from util.dist.group import (
    DONE,
    PEER_LOST,
    at,
    barrier,
    close,
    end_with_launcher,
    init,
    is_main,
    is_printed,
    leave,
    lost_peer,
    main_first,
    main_tells,
    rank,
    seconds,
    world_size,
)
from util.dist.sync_bn import convert_sync_batchnorm

__all__ = [
    "DONE",
    "PEER_LOST",
    "Agreement",
    "all_reduce_sum_",
    "at",
    "barrier",
    "close",
    "convert_sync_batchnorm",
    "end_with_launcher",
    "gather_objects",
    "init",
    "is_main",
    "is_printed",
    "leave",
    "largest",
    "lost_peer",
    "main_first",
    "main_tells",
    "no_sync",
    "rank",
    "seconds",
    "share",
    "share_buffers",
    "world_size",
    "wrap",
]
