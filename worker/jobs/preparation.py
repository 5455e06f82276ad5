"""From a stored request to a prompt in tokens and a compiled constraint, or to the result of a job that
cannot have them."""

from collections.abc import Sequence

import structlog

from millpond.errors import InvalidRequestError
from millpond.logs import outline
from millpond.messages import JobRequest, JobResult
from millpond.models.grammars import Grammar, GrammarCompiler
from millpond.models.presets import Preset
from millpond.models.prompts import PreparedPrompt, prepare_prompt
from millpond.models.tokenization import Tokenizer
from millpond.queue.claims import ClaimedJob
from worker.jobs.outcome import failure

log = structlog.get_logger("millpond.intake")

Prepared = tuple[JobRequest, PreparedPrompt, Grammar | None]
# In a body that has one of them, there may be a constraint or a pattern to compile.
_COMPILED = (b'"response_format"', b'"guided_', b'"vote_pattern"')


class Preparation:
    """Safe to use from any thread. ``slots`` are the engine's, which bound the texts of one job."""

    def __init__(self, preset: Preset, tokenizer: Tokenizer, slots: int) -> None:
        self._preset = preset
        self._tokenizer = tokenizer
        self._slots = slots
        self._compiler = GrammarCompiler(tokenizer)

    def may_be_slow(self, claimed: Sequence[ClaimedJob]) -> bool:
        """Whether something may have to be compiled."""
        return any(name in job.body for job in claimed for name in _COMPILED)

    def prepare_all(self, claimed: Sequence[ClaimedJob]) -> list[Prepared | JobResult]:
        return [self.prepare(job) for job in claimed]

    def prepare(self, job: ClaimedJob) -> Prepared | JobResult:
        """Never raises because of the job: its result reports what is wrong."""
        request: JobRequest | None = None
        try:
            request = JobRequest.from_json(job.body)
            prompt = prepare_prompt(request, self._preset, self._tokenizer)
            self._check_slots(request)
            constraint = request.constraint
            grammar = None if constraint is None else self._compiler.compile(constraint)
        except InvalidRequestError as error:
            return failure(job, error.code, str(error), request)
        except ValueError as error:
            message = f"the stored request cannot be read: {error}"
            return failure(job, "invalid_request", message, request)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizer's Rust code is no Exception
            log.error("preparation_failed", job=job.id, **outline(error))
            message = f"the request could not be prepared: {type(error).__name__}"
            return failure(job, "preparation_failed", message, request)
        return request, prompt, grammar

    def _check_slots(self, request: JobRequest) -> None:
        if request.n > self._slots:
            message = f"{request.n} texts at once, this worker has {self._slots} slots"
            raise InvalidRequestError("n", message, limit=self._slots)
