"""What a loaded library has, each call of it run by an emulator in a process of its own."""

import ctypes
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.emulation.image import Image
from worker.engines.native import structs
from worker.engines.native.panels import PANEL
from worker.engines.native.runner import SPARE_ROWS
from worker.engines.native.weights import NativeModel
from worker.engines.paging.pages import PAGE_TOKENS

_FORWARD, _SAMPLE = 0, 1
_TIMEOUT_S = 60
_LINEARS = ("qkv", "out", "gate_up", "down")
_NORMS = ("attention_norm", "mlp_norm", "query_norm", "key_norm")
_LINEAR_ARRAYS = ("weight", "bias", "scale", "sum")
_LORA_ARRAYS = ("a", "b", "scale", "first", "steps")


class EmulatedFunctions:
    """``command`` runs `run_call.c`, which was compiled for ``library``'s kernel set."""

    def __init__(self, command: Sequence[str], model: NativeModel, *, float32: bool) -> None:
        self._command = list(command)
        self._sizes = {t.data_ptr(): t.nbytes for t in model._kept}
        self._num_adapters = len(model.adapter_numbers)
        self._stored_bytes = 4 if float32 else 2

    def millpond_active_bytes(self) -> int:
        """The most: the process that computes has scratch of its own."""
        return 4

    def millpond_quant_bytes(self) -> int:
        return 2

    def millpond_forward(self, model_reference: Any, batch_reference: Any) -> None:
        model, batch = model_reference._obj, batch_reference._obj
        image = Image()
        placed = image.struct(batch, **self._batch(image, model, batch))
        answer = self._run(image.message(_FORWARD, self._model(image, model), placed))
        logits = [
            address for address in _array(batch.logits, batch.outputs, ctypes.c_int64) if address
        ]
        image.copy_back(answer, batch.pool, batch.best, *logits)

    def millpond_sample(self, batch_reference: Any) -> None:
        batch = batch_reference._obj
        image = Image()
        first = image.reserve(ctypes.sizeof(structs.Draw) * batch.rows)
        for i in range(batch.rows):
            draw = batch.draw[i]
            image.fill(
                first + i * ctypes.sizeof(structs.Draw),
                draw,
                logits=image.copy(draw.logits, 4 * batch.vocab),
                seen=image.copy(draw.seen, 8 * draw.num_seen),
                counts=image.copy(draw.counts, 8 * draw.num_seen),
                biased=image.copy(draw.biased, 4 * draw.num_biased),
                bias=image.copy(draw.bias, 4 * draw.num_biased),
                banned=image.copy(draw.banned, 4 * draw.num_banned),
                allowed=image.copy(draw.allowed, 2 * -(-batch.vocab // 16)),
            )
        placed = image.struct(
            batch,
            draw=first,
            scratch=image.reserve(4 * batch.threads * batch.vocab),
            tokens=image.copy(batch.tokens, 4 * batch.rows),
        )
        image.copy_back(self._run(image.message(_SAMPLE, 0, placed)), batch.tokens)

    def _run(self, message: bytes) -> bytes:
        done = subprocess.run(
            self._command, input=message, capture_output=True, check=False, timeout=_TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def _model(self, image: Image, model: structs.Model) -> int:
        first = image.reserve(ctypes.sizeof(structs.Layer) * model.layers)
        for i in range(model.layers):
            layer = model.layer[i]
            start = first + i * ctypes.sizeof(structs.Layer)
            image.fill(start, layer, **self._kept(image, layer, _NORMS))
            for name in _LINEARS:
                self._linear(
                    image, start + getattr(structs.Layer, name).offset, getattr(layer, name)
                )
        arrays = self._kept(image, model, ("embedding", "final_norm", "cosine", "sine"))
        placed = image.struct(model, layer=first, **arrays)
        self._linear(image, placed + structs.Model.head.offset, model.head)
        return placed

    def _linear(self, image: Image, place: int, linear: structs.Linear) -> None:
        adapters = 0
        if linear.lora:
            adapters = image.reserve(ctypes.sizeof(structs.Lora) * self._num_adapters)
            for i in range(self._num_adapters):
                lora, start = linear.lora[i], adapters + i * ctypes.sizeof(structs.Lora)
                image.fill(start, lora, **self._kept(image, lora, _LORA_ARRAYS))
        arrays = self._kept(image, linear, _LINEAR_ARRAYS)
        image.fill(place, linear, lora=adapters, **arrays)

    def _kept(self, image: Image, owner: Any, names: Sequence[str]) -> dict[str, int]:
        addresses = {name: getattr(owner, name) for name in names}
        return {n: image.copy(a, self._sizes[a]) if a else 0 for n, a in addresses.items()}

    def _batch(self, image: Image, m: structs.Model, b: structs.Batch) -> Mapping[str, int]:
        starts = _array(b.segment_start, b.segments + 1, ctypes.c_int32)
        positions = _array(b.positions, b.tokens, ctypes.c_int32)
        pages, most = [], 0
        for i, address in enumerate(_array(b.pages, b.segments, ctypes.c_int64)):
            used = positions[starts[i + 1] - 1] // PAGE_TOKENS + 1
            most = max(most, *_array(address, used, ctypes.c_int32))
            pages.append(image.copy(address, 4 * used))
        page_bytes = 2 * PAGE_TOKENS * m.layers * m.kv_heads * m.head_dim * self._stored_bytes
        rows = -(-max(b.tokens, b.outputs) // SPARE_ROWS) * SPARE_ROWS
        widest = max(m.hidden, m.heads * m.head_dim, m.inner)
        panels = -(-m.vocab // PANEL)
        logits = _array(b.logits, b.outputs, ctypes.c_int64)
        return {
            **{n: image.copy(getattr(b, n), 4 * b.tokens) for n in ("token_ids", "positions")},
            "segment_of": image.copy(b.segment_of, 4 * b.tokens),
            "segment_start": image.copy(b.segment_start, 4 * (b.segments + 1)),
            "pages": image.pointers(pages),
            "adapter_of": image.copy(b.adapter_of, 4 * b.tokens),
            "output_tokens": image.copy(b.output_tokens, 4 * b.outputs),
            "pool": image.copy(b.pool, (most + 1) * page_bytes),
            "logits": image.pointers([image.copy(address, 4 * m.vocab) for address in logits]),
            "best": image.copy(b.best, 4 * b.outputs),
            "residual": image.reserve(4 * b.tokens * m.hidden),
            "wide": image.reserve(4 * b.tokens * m.layer[0].qkv.n),
            **{n: image.reserve(4 * rows * widest) for n in ("input", "queries", "quantized")},
            "quant_scale": image.reserve(4 * rows),
            "low": image.reserve(4 * rows * b.low_stride),
            **{n: image.reserve(4 * b.outputs * panels) for n in ("best_value", "best_index")},
        }


def _array(address: int, count: int, kind: Any) -> list[int]:
    return [] if not count else np.ctypeslib.as_array((kind * count).from_address(address)).tolist()
