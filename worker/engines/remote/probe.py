"""What an upstream is, found out before the first job."""

from collections.abc import Mapping
from contextlib import aclosing

from millpond.messages import Message
from millpond.models.tokenization import Tokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.remote import wire
from worker.engines.remote.config import RemoteConfig
from worker.engines.remote.upstream import (
    MisconfiguredError,
    RequestRefusedError,
    ServedModel,
    Upstream,
)


async def probe(
    upstream: Upstream, tokenizer: Tokenizer, remote: RemoteConfig, adapters: Mapping[str, str]
) -> tuple[ServedModel, bool]:
    """The model to ask for, and whether the upstream tells token ids. Raises UpstreamError."""
    models = await upstream.served_models()
    served = _chosen(models, remote)
    missing = set(adapters.values()) - {model.name for model in models}
    if models and missing:
        raise MisconfiguredError(
            f"adapters: the upstream serves no {', '.join(sorted(missing))}; it lists {_names(models)}"
        )
    hello = "Hello"
    request = GenerationRequest(
        "probe",
        tokenizer.encode(hello),
        Sampling(max_tokens=1, seed=0),
        messages=(Message(role="user", content=hello),),
    )
    exact = remote.route == "completions"
    body = wire.body(
        request, (), route=remote.route, model=served.name, end_token_ids=(), exact=exact
    ) | {"stream_options": {"include_usage": True}}
    try:
        async with aclosing(upstream.generate(body)) as stream:
            chunks = [chunk async for chunk in stream]
    except RequestRefusedError as error:
        advice = ""
        if exact:
            advice = "; remote_route=chat is for upstreams that take no token ids"
        raise MisconfiguredError(f"remote_route {remote.route}: {error}{advice}") from error
    read = [chunk.usage.prompt for chunk in chunks if chunk.usage]
    if exact and read and read[-1] != len(request.prompt_token_ids):
        raise MisconfiguredError(
            f"remote_route: the upstream reads {len(request.prompt_token_ids)} token ids as "
            f"{read[-1]} tokens; set it to chat"
        )
    return served, exact and any(chunk.token_ids for chunk in chunks)


def _chosen(models: list[ServedModel], remote: RemoteConfig) -> ServedModel:
    if not models:
        if remote.model is None:
            raise MisconfiguredError("remote_model: the upstream lists no models, so name one")
        return ServedModel(remote.model, None)
    if remote.model is None:
        return models[0]
    for model in models:
        if model.name == remote.model:
            return model
    raise MisconfiguredError(
        f"remote_model: the upstream serves no {remote.model!r}; it lists {_names(models)}"
    )


def _names(models: list[ServedModel]) -> str:
    return ", ".join(model.name for model in models[:20])
