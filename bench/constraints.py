"""``python -m bench.constraints``: what constraints cost a batch, beside free rows of the same length.

The same prompts run free and under a schema that none of them fulfils before its last token, alternately.
Told are the medians of both speeds of decoding, and their ratio.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

from millpond.messages import JobRequest
from millpond.messages.constraints import Constraint
from millpond.models.grammars import Grammar, GrammarCompiler
from millpond.models.prompts import prepare_prompt
from millpond.settings import load_settings
from worker.assembly import prepare_folder, worker_engine
from worker.engines.base import Engine, Finished, GenerationRequest, Sampling

FIELDS = 60
SCHEMA = {
    "type": "object",
    "properties": {
        f"field_{n}": {"type": "string", "pattern": "^[A-Z][a-z ]+$", "maxLength": 40}
        if n % 2
        else {"type": "integer", "minimum": 0, "maximum": 10**6}
        for n in range(FIELDS)
    },
    "required": [f"field_{n}" for n in range(FIELDS)],
    "additionalProperties": False,
}


def tokens_per_s(engine: Engine, rows: list[GenerationRequest]) -> float:
    """Of decoding: from the first token of the last row on."""
    assert engine.admit(rows) == []
    begun: set[str] = set()
    while len(begun) < len(rows):
        begun |= {event.id for event in engine.step()}
    tokens, begun_s = -len(rows), time.perf_counter()
    while engine.num_rows:
        for event in engine.step():
            if isinstance(event, Finished):
                assert event.error is None, event.error
                tokens += len(event.token_ids)
    return tokens / (time.perf_counter() - begun_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    settings = load_settings(slots=given.rows, speculative_tokens=0)
    preset = settings.preset()
    tokenizer, build = worker_engine(settings, preset, prepare_folder(settings, preset))
    engine = build()
    engine.warm_up()
    wanted = Constraint("json_schema", "response_format", json.dumps(SCHEMA))
    started_s = time.perf_counter()
    compiler = GrammarCompiler(tokenizer)
    grammar = compiler.compile(wanted)
    first_ms = 1000 * (time.perf_counter() - started_s)
    started_s = time.perf_counter()
    compiler.compile(wanted)
    again_ms = 1000 * (time.perf_counter() - started_s)
    print(
        f"{engine.info.backend}: compiled in {first_ms:.0f} ms with the vocabulary, {again_ms:.1f} after"
    )

    def rows(temperature: float, grammar: Grammar | None) -> list[GenerationRequest]:
        job = JobRequest(prompt="Make up a data record.", max_tokens=given.tokens)
        prompt = prepare_prompt(job, preset, tokenizer).token_ids
        sampling = Sampling(
            given.tokens, seed=0, temperature=temperature, ignore_eos=grammar is None
        )
        return [
            GenerationRequest(f"{i}", prompt, replace(sampling, seed=i), grammar=grammar)
            for i in range(given.rows)
        ]

    for name, temperature in (("greedy", 0.0), ("sampled", 0.8)):
        speeds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(given.rounds):
            for constrained in speeds:
                made = rows(temperature, grammar if constrained else None)
                speeds[constrained].append(tokens_per_s(engine, made))
        free, kept = (statistics.median(speeds[way]) for way in (False, True))
        print(
            f"{name}: free {free:.0f} tok/s, constrained {kept:.0f} tok/s, ratio {kept / free:.2f}"
        )
    engine.close()


if __name__ == "__main__":
    main()
