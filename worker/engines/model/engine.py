"""The engine of a model in this process, over either backend."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from millpond.errors import ModelLoadError
from millpond.messages import FinishReason
from millpond.models.memory_plan import Sizing
from millpond.models.prompts import shared_prefix
from millpond.models.tokenization import Tokenizer
from worker.engines.base import (
    Capacity,
    EngineConfig,
    EngineEvent,
    EngineInfo,
    Finished,
    GenerationRequest,
    Rejection,
    Sampling,
)
from worker.engines.model import loading, self_check
from worker.engines.model.backend import build_backend, build_sampler
from worker.engines.model.drafting import DraftedStep, measure_steps
from worker.engines.model.passed_checks import PassedCheck
from worker.engines.native.runner import NativeRunner
from worker.engines.sampling.sampling import NextTokens, Output, needs_logits, next_tokens
from worker.engines.scheduling.mask_thread import MaskThread
from worker.engines.scheduling.row import Row
from worker.engines.scheduling.scheduler import Scheduler
from worker.engines.speculation.speculator import Speculator
from worker.engines.torch.memory import OutOfMemory, affordable, attempt

_NOT_FINITE = "the model's logits are not finite (NaN or infinity) for this row"


class TransformersEngine:
    """Owns the model, its cache and the schedule. Each `step` reads: schedule, run, postprocess."""

    def __init__(
        self, loaded: loading.LoadedModel, config: EngineConfig, tokenizer: Tokenizer
    ) -> None:
        context_tokens = min(config.preset.context_tokens, loaded.context_tokens)
        if config.kv_tokens is not None:
            sizing = Sizing(config.slots, config.kv_tokens)
        else:
            sizing = affordable(
                loaded.footprint,
                loaded.device,
                slots=config.slots,
                context_tokens=context_tokens,
                memory_share=config.memory_share,
            )
        self._scheduler = Scheduler(
            tokenizer,
            slots=sizing.slots,
            kv_tokens=sizing.kv_tokens,
            context_tokens=context_tokens,
            max_batched_tokens=config.max_batched_tokens,
            adapters=config.adapters,
            shared_tokens=lambda: self._cache.shared_tokens,
        )
        self._cache, self._runner = build_backend(
            loaded,
            kv_tokens=sizing.kv_tokens,
            slots=sizing.slots,
            prefix_cache_tokens=config.prefix_cache_tokens,
            prefix=shared_prefix(config.preset, tokenizer),
        )
        self._sampler = build_sampler(loaded)
        self._verifier = self._runner if isinstance(self._runner, NativeRunner) else None
        self._speculator = Speculator(config.speculative_tokens if self._verifier else 0)
        self._masks = MaskThread()
        self._info = EngineInfo(
            engine="transformers",
            backend=loaded.backend,
            model=config.preset.name,
            dtype=loaded.dtype_name,
            device=str(loaded.device),
            slots=sizing.slots,
            context_tokens=context_tokens,
        )

    @classmethod
    def load(cls, config: EngineConfig, tokenizer: Tokenizer) -> "TransformersEngine":
        """Load the model of ``config.model_folder`` and check it. Raises ModelLoadError."""
        if config.model_folder is None:
            raise ModelLoadError("the transformers engine needs a model folder")
        loaded = loading.load(config, tokenizer)
        passed = PassedCheck(config, loaded)
        self_check.check(loaded, config.preset, tokenizer, long=not passed.known)
        passed.remember()
        return cls(loaded.without_reference(), config, tokenizer)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def num_rows(self) -> int:
        return self._scheduler.num_rows

    def warm_up(self) -> None:
        assert self.num_rows == 0
        self._runner.warm_up()
        if self._verifier is not None and self._speculator.most_tokens:
            limit = self._scheduler.row_limit_tokens
            measured = measure_steps(self._verifier, self._cache, most_tokens=limit)
            self._speculator.costs = measured or self._speculator.costs
        rows = [
            GenerationRequest(
                f"warm-up-{i}", [0] * 8, Sampling(4, i, temperature=i, ignore_eos=True)
            )
            for i in range(min(2, self.capacity().free_slots))
        ]
        rejections = self.admit(rows)
        assert not rejections
        while self.num_rows:
            for event in self.step():
                if isinstance(event, Finished) and event.error is not None:
                    raise ModelLoadError(f"the model fails its first request: {event.error}")

    def capacity(self) -> Capacity:
        return self._scheduler.capacity()

    def admit(self, requests: Sequence[GenerationRequest]) -> list[Rejection]:
        return self._scheduler.admit(requests)

    def cancel(self, ids: Sequence[str]) -> None:
        self._scheduler.cancel(ids)

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        scheduler = self._scheduler
        ended = scheduler.take_ended()
        self._release(ended)
        touched = self._prefill() if scheduler.begin_prefill() else self._decode()
        self._release([s for s in touched if s.finish_reason is not None])
        return scheduler.collect((*ended, *touched))

    def close(self) -> None:
        self._masks.close()
        self._cache.clear()
        del self._runner
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prefill(self) -> list[Row]:
        """Read a chunk of the group's tokens, and draw a token for each row that it reads to its end.

        Out of memory, the rows that have not started are queued again in two halves; a row that
        fails alone ends.
        """
        read = attempt(self._read_chunk)
        if isinstance(read, OutOfMemory):
            group = self._scheduler.give_up_prefill()
            self._release(group)
            self._recover_memory()
            return self._split(group, read)
        rows, drawn = read
        self._scheduler.start(rows)
        self._scheduler.step_worked()
        _append(rows, drawn)
        return rows

    def _read_chunk(self) -> tuple[list[Row], NextTokens]:
        prefill = self._scheduler.prefill
        assert prefill is not None
        if not prefill.begun:
            self._cache.allocate(prefill.rows)
        chunk = self._scheduler.next_chunk(self._cache.share(prefill.rows))
        ended = prefill.ended(chunk)
        rows = [row for alike in ended.values() for row in alike]
        for row in rows:
            if not row.token_ids:  # else it is read again
                row.cached_tokens = self._cache.given_tokens(row)
        shared = len(rows) > len(ended)
        with self._masks.beside(rows):
            output = self._runner.read(chunk, logits=shared and any(map(needs_logits, rows)))
        self._cache.offer([row for row, _, _ in chunk.pieces])
        if not rows:
            return [], NextTokens([], [])
        for source, *others in ended.values():
            for row in others:
                self._cache.copy(source, row)
        if shared:
            output = output.of([i for i, alike in enumerate(ended.values()) for _ in alike])
        return rows, next_tokens(output, rows, self._sampler)

    def _split(self, group: list[Row], failure: OutOfMemory) -> list[Row]:
        if len(group) > 1:
            self._scheduler.split(group)
            return []
        [row] = group
        if self._scheduler.running:
            # Others hold memory that will come free; the row waits for it.
            self._scheduler.preempt(row)
            self._scheduler.step_failed(self._scheduler.placed_tokens)
            return []
        return self._end_out_of_memory(row, row.num_tokens // 2, failure)

    def _decode(self) -> list[Row]:
        """One more token for each running row. Out of memory, the youngest row is preempted."""
        if not self._scheduler.running:
            return []
        self._scheduler.make_room(self._cache.free)
        running = self._scheduler.running
        drafts = self._speculator.drafts(running, self._scheduler.room_tokens)
        if drafts and (verified := self._verify(drafts)) is not None:
            return verified
        stepped = attempt(self._decode_step)
        if isinstance(stepped, OutOfMemory):
            return self._shed_youngest(stepped)
        rows, drawn = stepped
        self._stepped(rows, drawn)
        return rows

    def _stepped(self, rows: list[Row], drawn: NextTokens) -> None:
        self._scheduler.step_worked()
        for row in rows:
            row.decode_steps += 1
            row.decode_rows += len(rows)
        _append(rows, drawn)

    def _decode_step(self) -> tuple[list[Row], NextTokens]:
        self._cache.make_room()
        with self._masks.beside(self._scheduler.running):
            rows, output = self._runner.decode(self._scheduler.running)
        return rows, next_tokens(output, rows, self._sampler)

    def _verify(self, drafts: Mapping[str, Sequence[int]]) -> list[Row] | None:
        """As many more tokens for each running row as its draft foresaw, and one. None: out of memory, for
        which a step without drafts may have enough."""
        stepped = attempt(lambda: self._verify_step(drafts))
        if isinstance(stepped, OutOfMemory):
            return None
        step, drawn = stepped
        self._stepped(step.rows, drawn)
        for rows, output in step.further():
            further = attempt(partial(self._draw, rows, output))
            if isinstance(further, OutOfMemory):
                break
            _append(rows, further)
        for row, drafted, accepted in step.accepted():
            row.drafted_tokens += drafted
            row.accepted_tokens += accepted
            self._speculator.verified(row, drafted=drafted, accepted=accepted)
        for row in step.spoiled:
            self._cache.free(row, scrub=True)
            self._scheduler.preempt(row)
            self._speculator.leave_alone(row)
        return step.rows

    def _verify_step(self, drafts: Mapping[str, Sequence[int]]) -> tuple[DraftedStep, NextTokens]:
        assert self._verifier is not None
        rows = self._scheduler.running
        self._cache.make_room()
        with self._masks.beside(rows):
            step = DraftedStep(rows, drafts, self._verifier.verify(rows, drafts))
        return step, next_tokens(step.output, step.rows, self._sampler)

    def _draw(self, rows: list[Row], output: Output) -> NextTokens:
        with self._masks.beside(rows):
            pass  # the model has run already
        return next_tokens(output, rows, self._sampler)

    def _shed_youngest(self, failure: OutOfMemory) -> list[Row]:
        row = self._scheduler.youngest
        alone = self._scheduler.num_placed == 1
        self._cache.free(row)
        self._recover_memory()
        if alone:
            return self._end_out_of_memory(row, row.num_tokens - 1, failure)
        self._scheduler.preempt(row)
        self._scheduler.step_failed(self._scheduler.placed_tokens)
        return []

    def _end_out_of_memory(self, row: Row, fitting: int, failure: OutOfMemory) -> list[Row]:
        """End a row that is alone. ``fitting`` tokens should fit."""
        self._scheduler.step_failed(fitting)
        row.end(
            FinishReason.ERROR,
            f"out of memory at {row.num_tokens} tokens with nothing else running; prompt and output "
            f"of {fitting} tokens together should fit ({failure.message})",
        )
        return [row]

    def _release(self, rows: list[Row]) -> None:
        for row in rows:
            self._cache.free(row, scrub=row.finish_reason is FinishReason.ERROR)
            if row.finish_reason is not None:
                self._speculator.ended(row)
        if rows:
            self._scheduler.retire()

    def _recover_memory(self) -> None:
        """Release unused memory. Trimming moves what is in use, for which there may be no room."""
        self._runner.trim()
        attempt(self._cache.trim)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _append(rows: list[Row], drawn: NextTokens) -> None:
    for row, token, logprobs in zip(rows, drawn.tokens, drawn.logprobs, strict=True):
        if token is None and row.matcher is not None and row.matcher.error is not None:
            row.fail_constraint()
        elif token is None:
            row.end(FinishReason.ERROR, _NOT_FINITE, retryable=True)
        else:
            row.append(token, logprobs)
