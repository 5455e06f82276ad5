"""What the client refuses before it asks the server."""

import pytest

from millpond import Client, InvalidRequestError, JobRequest

NOBODY = "redis://127.0.0.1:1"


async def test_fields_beside_a_whole_request_are_refused() -> None:
    """They would be dropped in silence, and the job would run with other limits than were asked for."""
    async with Client(NOBODY) as client:
        for call in (client.submit, client.generate):
            with pytest.raises(InvalidRequestError, match="JobRequest") as caught:
                await call(JobRequest(prompt="hi"), max_tokens=3)
            assert caught.value.field == "max_tokens"


async def test_an_id_and_a_key_are_one_too_many() -> None:
    async with Client(NOBODY) as client:
        with pytest.raises(InvalidRequestError, match="not both") as caught:
            await client.submit("hi", id="mine", idempotency_key="key")
    assert caught.value.field == "id"
