"""Chat templates render here as transformers renders them: the same strings, and the same refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models
from transformers import AutoTokenizer

from millpond.errors import ModelLoadError
from millpond.local.server import RedisServer
from millpond.messages import Message
from millpond.models.chat_template import ChatTemplate, ChatTemplateError
from millpond.models.files import read_chat_template, read_special_tokens
from tests.acceptance.conftest import until
from tests.integration.chat_templates import CONSTRUCTS, PUBLIC, REFUSED
from tests.integration.conftest import StartApi

SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
    "unk_token": "<unk>",
    "pad_token": None,
    "image_token": "<image>",
    "extra_special_tokens": {"audio_token": "<audio>"},
}
CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "a question": [("user", "Why is the sea salty?")],
    "a system prompt": [("system", "Be brief. /no_think"), ("user", " hi \n")],
    "several turns": [
        ("system", "System <&> é"),
        ("user", "a\nb"),
        ("assistant", "<think>\nhm\n</think>\n\nb"),
        ("user", "c"),
        ("assistant", "<think>x</think>d "),
        ("user", "漢字 🎉"),
    ],
    "a continued answer": [("user", "a"), ("assistant", "b")],
    "the wrong order": [("assistant", "a"), ("user", "b"), ("user", "c")],
    "a late system prompt": [("user", "a"), ("system", "b"), ("user", "c")],
}


def folder_with(folder: Path, template: Any, **config: Any) -> Path:
    """A model folder with this template; transformers and this project both read it."""
    known = ["<unk>", "<s>", "</s>", "<image>", "<audio>"]
    vocabulary = {text: i for i, text in enumerate(known)}
    RustTokenizer(models.WordLevel(vocabulary, "<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIAL_TOKENS,
        "chat_template": template,
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def ours(folder: Path, turns: list[tuple[str, str]]) -> str:
    source = read_chat_template(folder)
    assert source is not None
    messages = [Message.model_validate({"role": r, "content": c}) for r, c in turns]
    return ChatTemplate(source, read_special_tokens(folder)).render(messages)


def theirs(folder: Path, turns: list[tuple[str, str]]) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert isinstance(rendered, str)
    return rendered


def agree(folder: Path, turns: list[tuple[str, str]]) -> str | None:
    """What both render, or None if both refuse."""
    refusal: Exception | None = None
    try:
        expected = theirs(folder, turns)
    except Exception as error:
        refusal = error
    if refusal is None:
        assert ours(folder, turns) == expected
        return expected
    with pytest.raises(ChatTemplateError) as caught:
        ours(folder, turns)
    if type(refusal) is TemplateError:  # of raise_exception; others name classes
        assert str(caught.value) == f"the chat template refuses: {refusal}"
    return None


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("template", PUBLIC.values(), ids=PUBLIC)
def test_public_templates(tmp_path: Path, template: str, turns: list[tuple[str, str]]) -> None:
    rendered = agree(folder_with(tmp_path, template), turns)
    if turns is CONVERSATIONS["a question"]:
        assert rendered is not None
        assert turns[0][1] in rendered


@pytest.mark.parametrize("template", CONSTRUCTS.values(), ids=CONSTRUCTS)
def test_constructs(tmp_path: Path, template: str) -> None:
    assert agree(folder_with(tmp_path, template), CONVERSATIONS["several turns"]) is not None


@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED)
def test_refusals(tmp_path: Path, template: str) -> None:
    assert agree(folder_with(tmp_path, template), CONVERSATIONS["several turns"]) is None


def test_where_templates_lie(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "default"}]
    folder = folder_with(tmp_path, named)
    assert agree(folder, CONVERSATIONS["a question"]) == "default"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    (folder / "chat_template.jinja").write_text("file {{ bos_token }}")
    assert agree(folder, CONVERSATIONS["a question"]) == "file <s>"


def test_tokens_in_the_map_of_an_older_folder(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "{{ bos_token }}{{ eos_token }}{{ sep_token }}")
    tokens = {"bos_token": "<image>", "sep_token": {"content": "<audio>", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    assert agree(folder, CONVERSATIONS["a question"]) == "<image></s><audio>"


@pytest.mark.parametrize("template", ["{% if %}", "{% nonsense %}", "{{ 'a' ", "{% generation %}a"])
def test_no_template_at_all(tmp_path: Path, template: str) -> None:
    """What is no Jinja is told when the model is loaded, not at each request."""
    with pytest.raises(ModelLoadError, match="chat template, line 1"):
        ours(folder_with(tmp_path, template), CONVERSATIONS["a question"])


FAILING = "{{ raise_exception('roles must alternate') if messages | length > 1 else 1 / 0 }}"


async def test_what_a_template_refuses_is_the_clients_mistake(
    tmp_path: Path, redis_server: RedisServer, start_api: StartApi
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    folder_with(model, FAILING)
    async with start_api(redis_server.url, engine="transformers", model=str(model)) as api:
        await until(lambda: api.services.home.tokenizing.ready)
        turn = {"role": "user", "content": "hi"}
        refused = await api.http.post("/v1/jobs", json={"messages": [turn, turn]})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "messages", refused.text
        assert "the chat template refuses: roles must alternate" in refused.text
        failed = await api.http.post("/v1/jobs", json={"prompt": "hi"})
        assert failed.status_code == 422
        assert "the chat template fails: ZeroDivisionError: division by zero" in failed.text
        raw = await api.http.post("/v1/jobs", json={"prompt": "<s>", "raw": True})
        assert raw.status_code == 202, raw.text
