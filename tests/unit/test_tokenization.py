"""Text to token ids and back, without torch."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from millpond.errors import ModelLoadError
from millpond.messages import Message
from millpond.models.chat_template import ChatTemplateError
from millpond.models.tokenization import ByteTokenizer, FolderTokenizer, Tokenizer

CORPUS = ["the mill by the pond grinds the grain", "naïve café déjà vu", "漢字 🎉 emoji 👩‍🌾"] * 3
TEMPLATE = """
{%- for message in messages %}
{%- if message.role == 'system' and not loop.first %}
{{- raise_exception('system must come first') }}
{%- endif %}
{{- '<|' + message.role + '|>' + message.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""
SPECIALS = ["<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as small models have it, with a beginning token and a chat template."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = RustTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    tokenizer.enable_truncation(4)  # what a folder brings along must not cut prompts
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "config.json", {"vocab_size": 512, "eos_token_id": 1})
    write(
        folder,
        "tokenizer_config.json",
        {
            "bos_token": "<bos>",
            "eos_token": {"content": "<eos>", "special": True},
            "chat_template": TEMPLATE,
        },
    )
    return folder


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def changed(model_folder: Path, tmp_path: Path, **files: Any) -> FolderTokenizer:
    """The tokenizer of the folder with some of its files replaced; None takes one away."""
    for file in model_folder.iterdir():
        if files.get(file.stem, ...) is not None:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    for stem, content in files.items():
        if content is not None:
            write(tmp_path, f"{stem}.json", content)
    return FolderTokenizer(tmp_path)


@pytest.fixture
def folder_tokenizer(model_folder: Path) -> FolderTokenizer:
    return FolderTokenizer(model_folder)


def chat(*turns: tuple[str, str]) -> list[Message]:
    return [Message.model_validate({"role": role, "content": content}) for role, content in turns]


def streamed(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(stream.push(token_id) for token_id in token_ids)


@given(st.text())
def test_bytes_there_and_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    token_ids = tokenizer.encode(text)
    assert tokenizer.decode(token_ids) == text
    assert streamed(tokenizer, token_ids) == text
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids)


@given(st.lists(st.integers(0, 256)))
def test_any_bytes_stream_as_they_decode(token_ids: list[int]) -> None:
    """Broken characters come out as the same replacements; an unfinished one at the end waits."""
    tokenizer = ByteTokenizer()
    complete = [*token_ids, ord(".")]
    assert streamed(tokenizer, complete) == tokenizer.decode(complete)
    assert tokenizer.decode(token_ids).startswith(streamed(tokenizer, token_ids))


def test_the_end_token_of_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.eos_token_ids == {256}
    assert tokenizer.decode([104, 256, 105]) == "hi"
    assert tokenizer.decode(tokenizer.encode_chat(chat(("user", "hi")))) == "user: hi\nassistant: "


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_folder_there_and_back(model_folder: Path, text: str) -> None:
    tokenizer = FolderTokenizer(model_folder)
    if any(special in text for special in SPECIALS):
        return
    token_ids = tokenizer.encode(text)
    assert token_ids[0] == 0
    assert tokenizer.decode(token_ids) == text
    assert streamed(tokenizer, [*token_ids[1:], 1]) == text


def test_a_folders_own_truncation_and_padding_are_off(folder_tokenizer: FolderTokenizer) -> None:
    token_ids = folder_tokenizer.encode("the mill by the pond grinds the grain " * 10)
    assert len(token_ids) > 32
    assert len(folder_tokenizer.encode("a")) == 2


def test_chat(folder_tokenizer: FolderTokenizer) -> None:
    token_ids = folder_tokenizer.encode_chat(chat(("system", "be brief"), ("user", "the mill")))
    assert token_ids.count(0) == 0  # the template says what begins; no second <bos>
    assert [t for t in token_ids if t < len(SPECIALS)] == [2, 1, 3, 1, 4]
    assert folder_tokenizer.decode(token_ids) == "be briefthe mill"


def test_a_template_that_refuses(folder_tokenizer: FolderTokenizer) -> None:
    with pytest.raises(ChatTemplateError, match="refuses: system must come first"):
        folder_tokenizer.encode_chat(chat(("user", "a"), ("system", "b")))


def test_a_template_cannot_reach_out(model_folder: Path, tmp_path: Path) -> None:
    """Chat templates come with models, from strangers: they run in a sandbox."""
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    tokenizer = changed(model_folder, tmp_path, tokenizer_config={"chat_template": template})
    with pytest.raises(ChatTemplateError, match="unsafe"):
        tokenizer.encode_chat(chat(("user", "a")))


def test_a_template_that_cannot_be_compiled_names_its_folder(
    model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=f"{tmp_path}: the chat template, line 1: "):
        changed(model_folder, tmp_path, tokenizer_config={"chat_template": "{% nonsense %}"})


def test_no_template(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = changed(model_folder, tmp_path, tokenizer_config=None)
    assert tokenizer.encode("a")
    with pytest.raises(ChatTemplateError, match="no chat template"):
        tokenizer.encode_chat(chat(("user", "a")))


def test_named_templates_and_a_template_file(model_folder: Path, tmp_path: Path) -> None:
    named = [
        {"name": "tools", "template": "no"},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]
    tokenizer = changed(model_folder, tmp_path, tokenizer_config={"chat_template": named})
    assert tokenizer.decode(tokenizer.encode_chat(chat(("user", "pond")))) == "pond"
    (tmp_path / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    tokenizer = FolderTokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat(chat(("user", "pond")))) == "file pond"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {1}),
        ({"generation_config": {"eos_token_id": [3, 4]}}, {1, 3, 4}),
        ({"config": {"eos_token_id": 2}, "tokenizer_config": None}, {2}),
        ({"config": None, "tokenizer_config": None}, set()),
    ],
)
def test_end_tokens(
    model_folder: Path, tmp_path: Path, files: dict[str, Any], expected: set[int]
) -> None:
    assert changed(model_folder, tmp_path, **files).eos_token_ids == expected


def test_vocabulary_size(model_folder: Path, tmp_path: Path) -> None:
    assert FolderTokenizer(model_folder).vocab_size == 512  # the model's, padding rows included
    own = RustTokenizer.from_file(str(model_folder / "tokenizer.json")).get_vocab_size()
    assert changed(model_folder, tmp_path, config=None).vocab_size == own


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_no_readable_tokenizer(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        FolderTokenizer(tmp_path)


def test_a_tokens_own_text(model_folder: Path) -> None:
    tokenizer = FolderTokenizer(model_folder)
    assert tokenizer.token_text(1) == "<eos>"
    ids = tokenizer.encode(" the grain")[1:]
    assert "".join(tokenizer.token_text(i) for i in ids) == " the grain"
    assert [tokenizer.token_text(i) for i in ids] == [tokenizer.decode([i]) for i in ids]
    bytes_ = ByteTokenizer()
    assert [bytes_.token_text(i) for i in (97, 0xC3, ByteTokenizer.EOS)] == ["a", "\ufffd", "<end>"]
