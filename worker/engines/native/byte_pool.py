"""The pages as the kernels see them: so many bytes each, one behind the other."""

import numpy as np
import numpy.typing as npt


class BytePool:
    """The system gives memory to a page when it is first written."""

    def __init__(self, page_bytes: int, num_pages: int) -> None:
        self._bytes: npt.NDArray[np.uint8] = np.zeros((num_pages, page_bytes), dtype=np.uint8)
        self.address = self._bytes.ctypes.data

    def copy(self, source: int, target: int) -> None:
        self._bytes[target] = self._bytes[source]

    def zero(self, page: int) -> None:
        self._bytes[page] = 0
