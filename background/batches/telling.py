"""What webhooks are owed when a batch has ended.

The script that ends it notes that nobody has been told, since webhooks lie under other keys. Whoever dies
before the note is taken away leaves it to the next, so nothing is lost, and what comes twice has one id.
"""

from typing import Any

from millpond.batches.batches import Batches
from millpond.batches.records import BatchRecord
from millpond.webhooks.deliveries import Deliveries
from millpond.webhooks.events import WebhookEvent


async def tell_webhooks(batches: Batches, deliveries: Deliveries) -> None:
    """Announce every batch that has ended and was not yet. ``deliveries`` are the home queue's."""
    for id, batch in await batches.untold():
        if batch is not None:
            await deliveries.announce(
                WebhookEvent(f"batch.{batch.status}"),
                id,
                _data(batch),
                tenant=batch.tenant,
                at_ms=batch.at[batch.status],
                url=batch.webhook_url,
            )
        await batches.told(id)


def _data(batch: BatchRecord) -> dict[str, Any]:
    return {
        "id": batch.id,
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
    }
