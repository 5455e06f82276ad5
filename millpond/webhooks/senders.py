"""Whether there is anybody to send webhooks."""

from millpond.errors import NoWebhooksError
from millpond.queue.connection.address import Address, Kind


def check_sent(redis_url: str, field: str = "webhook_url") -> None:
    """Raises NoWebhooksError in a Redis Cluster: RQ, which runs the senders, cannot live there."""
    if Address.parse(redis_url).kind is Kind.CLUSTER:
        raise NoWebhooksError(field)
