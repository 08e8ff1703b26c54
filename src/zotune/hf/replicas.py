"""Do all ranks hold the same weights?"""

import torch
import torch.distributed as dist
from torch import nn

from zotune import digest


def check_replicas(model: nn.Module, step: int) -> None:
    """Compare the parameters of ``model`` on all ranks of the default process group, bit for bit.

    Only a 64-bit checksum travels.

    Raises:
        RuntimeError: a rank holds other weights than rank 0; the message names it.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    checksum = digest(model.parameters())
    # The checksum has no sign, torch's 64-bit integer has one.
    own = torch.tensor([checksum - (checksum >> 63 << 64)], dtype=torch.int64, device=device)
    found = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    checksums = [int(other) for other in found]
    wrong = [str(rank) for rank, other in enumerate(checksums) if other != checksums[0]]
    if wrong:
        raise RuntimeError(
            f"The weights of rank {', '.join(wrong)} differ from those of rank 0 after step {step}; start all ranks "
            "from the same model, seeds and settings, on machines of the same kind."
        )
