"""Kinds of values that several settings have."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
# Texts without commas: a list in the file, with commas between them in a flag or a variable.
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], NoDecode]
# The compiled kernels, by what they use of the processor, from the least to the most of each machine.
CpuIsa = Literal[
    "auto",
    "avx2",
    "avx2_vnni",
    "avx512",
    "avx512_vnni",
    "avx512_bf16",
    "amx",
    "neon",
    "neon_dotprod",
    "neon_bf16",
]
