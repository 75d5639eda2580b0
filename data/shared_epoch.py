"""The number of the epoch, for data sets that draw other things in each."""

import torch


class SharedEpoch:
    """The number of the epoch in shared memory: workers that were started before `set` must see the new number."""

    def __init__(self):
        self._number = torch.zeros((), dtype=torch.int64).share_memory_()

    def set(self, epoch: int) -> None:
        self._number.fill_(epoch)

    def __int__(self) -> int:
        return int(self._number)


__all__ = ["SharedEpoch"]
