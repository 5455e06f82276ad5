"""``python -m tests.integration.golden.make_rows``: what transformers' own `generate` says, in float32.

Written once to rows.jsonl and kept: the kernels are to say the same for as long as the model is this one.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bench.prompts import DEMO_PROMPTS
from millpond.messages import Message
from millpond.models.presets import PRESETS
from millpond.models.tokenization import FolderTokenizer
from worker.weights import prepare_model

ROWS = Path(__file__).parent / "rows.jsonl"
TOKENS = 24
PROMPTS = (
    *DEMO_PROMPTS,
    *(f"What is {a} times {b}? Show your steps." for a, b in ((7, 8), (13, 4), (25, 25), (99, 3))),
    *(
        f"Write a Python function that {what}."
        for what in (
            "reverses a string",
            "counts the vowels of a word",
            "returns the largest of three numbers",
            "tells whether a year is a leap year",
        )
    ),
    *(
        f"Translate into {language}: Where is the nearest bakery?"
        for language in (
            "French",
            "German",
            "Spanish",
            "Italian",
        )
    ),
    *(
        f"Explain {topic} to a child."
        for topic in (
            "the tides",
            "why leaves fall",
            "what a magnet does",
            "how bread rises",
            "why ice floats",
        )
    ),
    *(
        f"Give me three facts about {topic}."
        for topic in ("Norway", "bees", "copper", "the Moon", "rice")
    ),
    *(
        f"Continue the story: {beginning}"
        for beginning in (
            "The lighthouse keeper had not slept for two days.",
            "Nobody in the village had ever seen a train.",
            "When the river froze, the letters stopped coming.",
            "The cat knew the way home, but it was in no hurry.",
        )
    ),
    *(f"Solve for x: {equation}" for equation in ("2x + 3 = 11", "5x - 4 = 3x + 10")),
)


def main() -> None:
    assert len(PROMPTS) == 40
    folder = prepare_model(PRESETS["smollm2-135m"], Path.home() / ".cache" / "millpond")
    tokenizer = FolderTokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    lines = []
    for prompt in PROMPTS:
        ids = tokenizer.encode_chat([Message(role="user", content=prompt)])
        given = torch.tensor([ids])
        with torch.inference_mode():
            out = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
        lines.append({"prompt": prompt, "token_ids": out[0, len(ids) :].tolist()})
    ROWS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
