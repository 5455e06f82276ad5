"""The API's tokenizer: loaded when the model's files are there, run off the event loop.

Constraints are compiled, too, to refuse those that cannot be.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog

from api.answers.errors import ModelNotReadyError
from millpond.errors import ModelLoadError
from millpond.messages import JobRequest
from millpond.models.grammars import GrammarCompiler
from millpond.models.presets import Preset, model_folder
from millpond.models.prompts import PreparedPrompt, prepare_prompt
from millpond.models.tokenization import ByteTokenizer, FolderTokenizer, Tokenizer
from millpond.settings import Settings

T = TypeVar("T")

LOOK_AGAIN_S = 0.5
LOAD_AGAIN_S = 5.0
# Encoding this much takes about as long as a round trip to a thread.
MAX_INLINE_CHARS = 2_000
THREADS = 2

log = structlog.get_logger("millpond.api")


class Tokenizing:
    """Run `load` as a task; `prepare` works once it has found the model's files."""

    def __init__(self, settings: Settings, preset: Preset, name: str | None = None) -> None:
        """``name``: what the model is called in requests, if not as its preset is."""
        self.preset = preset if name is None else replace(preset, name=name)
        self._folder = model_folder(preset, settings.cache_dir)
        self._tokenizer: Tokenizer | None = None
        self._compiler: GrammarCompiler | None = None
        if settings.counts_bytes:
            self._use(ByteTokenizer())
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenizing")

    @property
    def ready(self) -> bool:
        return self._tokenizer is not None

    async def load(self) -> None:
        """Wait for the folder, which a worker puts there whole, and load its tokenizer."""
        while self._tokenizer is None:
            if not await asyncio.to_thread(_is_there, self._folder):
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            try:
                self._use(await asyncio.to_thread(FolderTokenizer, self._folder))
                log.info("tokenizer_loaded", model=self.preset.name)
            except (ModelLoadError, OSError, ValueError) as error:
                log.error("tokenizer_failed", model=self.preset.name, cause=str(error))
                await asyncio.sleep(LOAD_AGAIN_S)

    async def prepare(self, request: JobRequest) -> PreparedPrompt:
        """See `prepare_prompt` and `GrammarCompiler`. Raises ModelNotReadyError before the tokenizer is
        loaded."""
        if _size_chars(request) <= MAX_INLINE_CHARS and request.constraint is None:
            return self.prepare_now(request)
        return await self.in_thread(lambda: self.prepare_now(request))

    def prepare_now(self, request: JobRequest) -> PreparedPrompt:
        """The same on the calling thread."""
        if self._tokenizer is None or self._compiler is None:
            raise ModelNotReadyError
        prompt = prepare_prompt(request, self.preset, self._tokenizer)
        if (constraint := request.constraint) is not None:
            self._compiler.compile(constraint)
        return prompt

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run it on the small thread pool for long prompts and constraints."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _use(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._compiler = tokenizer, GrammarCompiler(tokenizer)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _is_there(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def _size_chars(request: JobRequest) -> int:
    if request.token_ids is not None:
        return len(request.token_ids)
    messages = sum(len(message.content) for message in request.messages or ())
    return len(request.prompt or "") + len(request.system or "") + messages
