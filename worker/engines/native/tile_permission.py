"""Linux gives AMX's tiles, 8 KiB of registers for each thread, only to processes that ask for them."""

import ctypes

_ARCH_PRCTL = 158  # the number of the system call on x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


def may_use_tiles() -> bool:
    """Ask for this process, all of its threads and what it forks; it may be asked again.

    False on a processor without tiles, or a system that does not know them (Linux before 5.16).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    answer: int = libc.syscall(
        ctypes.c_long(_ARCH_PRCTL),
        ctypes.c_long(_ARCH_REQ_XCOMP_PERM),
        ctypes.c_ulong(_XFEATURE_XTILEDATA),
    )
    return answer == 0
