"""Every Redis key and channel. Nothing else in the project spells one.

All carry the hash tag ``{queue}``, so one queue lives in one slot of a Redis Cluster and each script
touches one slot only. Scripts get these names through ``KEYS`` (see `millpond.queue.scripts`); where a name
below ends in a colon it is a prefix, and the script appends the id of a job, a worker or an API key, a
priority, or a priority and a tenant.
"""

import re

from millpond.errors import InvalidRequestError
from millpond.messages import TENANT_PATTERN, Priority

# Each name that a script may ask for in its ``keys:`` line, and what lies there.
QUEUE_KEYS: dict[str, str] = {
    # Sorted set for each priority and tenant, PRIORITY:TENANT: job id -> its place there: server time
    # of acceptance in microseconds, and ageing by its predicted length. Exists while the tenant has
    # jobs waiting there.
    "lane": "lane:",
    # Sorted set for each priority: tenant with a lane -> its counter (see lanes.lua).
    "active": "active:",
    # Sorted set for each priority: tenant without a lane -> its counter, while that says anything.
    "idle": "idle:",
    # Hash, tenant -> weight; a tenant that is not in it has 1.
    "weights": "weights",
    # List of "SINCE_MS ID ID ...": the poison-message quarantine, groups of jobs whose worker died while
    # it ran them. One of them may be the cause, so each group runs with nothing else beside it.
    "suspects": "suspects",
    # Hash with a time to live, worker -> what it does about suspects, see trials.lua.
    "trials": "trials",
    # Sorted set, job id -> server time in ms at which the running job's lease ends.
    "leases": "leases",
    # Sorted set, job id -> server time in ms at which a failed attempt is to be queued again.
    "delayed": "delayed",
    # Sorted set, job id -> server time in ms at which the unfinished job expires.
    "deadlines": "deadlines",
    # Sorted set, job id -> server time in ms at which it ran out of attempts; the last 10,000.
    "dead": "dead",
    # Sorted set with a time to live, for each tenant: job id -> server time in ms of its end; the last 1,000.
    "ended": "ended:",
    # Hash, kind of job or all -> "JOBS MEDIAN HIGH": how long outputs get (see lengths.lua).
    "lengths": "lengths",
    # Hash of integers: queued:PRIORITY and running (now), accepted:PRIORITY (ever), done:STATUS (ended,
    # for ever), lost, retried and buried (ever), level:PRIORITY (see lanes.lua), fence and turn (see
    # claim.lua).
    "counts": "counts",
    # Hash: version of keys and scripts, name and identity of the model served (see join.lua).
    "about": "about",
    # List of at most one token; idle workers block on it.
    "wake": "wake",
    # Hash, worker id -> "BEAT_MS JSON".
    "workers": "workers",
    # String with a time to live: somebody watches the workers' rows.
    "watched": "watched",
    # Channel: while watched, the rows of each worker, several times a second.
    "rows": "rows",
    # String with a time to live: the last claim of a worker, see last_claim.lua.
    "last_claim": "claim:",
    # Hash, tenant -> number of its queued and running jobs; a tenant without any is not in it.
    "open": "open",
    # Hash for each tenant: bytes of the bodies of its unfinished jobs, and of its results by the hour
    # in which they expire (see stored.lua).
    "stored": "stored:",
    # Set of the ids of all API keys, revoked ones too.
    "api_keys": "api-keys",
    # Hash: an API key (digest, tenant, scopes, limits, created, revoked); never the key itself.
    "api_key": "api-key:",
    # Hash with a time to live, bucket -> "LEVEL AT_MS": what an API key has left of this minute.
    "spent": "spent:",
    # String with a time to live, named by a nonce: a payment from a key's minute that has been made.
    "paid": "paid:",
    # Sorted set, name of a delivery -> server time in ms at which it is due (see webhooks.lua).
    "deliveries": "deliveries",
    # Hash: one event for one receiver, until it is delivered or given up.
    "delivery": "delivery:",
    # Hash for each tenant: id of an endpoint that is not disabled -> its events, * or types.
    "endpoints": "endpoints:",
    # Hash: a registered receiver of webhooks, with the secret that signs what it gets.
    "endpoint": "endpoint:",
    # Set of the ids of all endpoints, disabled ones too.
    "endpoint_ids": "endpoint-ids",
    # Hash, tenant -> secret that signs what its jobs' own receivers get.
    "webhook_secrets": "webhook-secrets",
    # Channel: one message for every change of state of any job; small, without results.
    "channel": "events",
    # Hash: the job record (status, priority, tenant, attempts, fence, ...), always small.
    "job": "job:",
    # String: the request as JSON; gone when the job has ended.
    "body": "body:",
    # String for each text of a running job, ID/CHOICE: its tokens so far, for whoever goes on with it (see
    # kept.lua).
    "kept": "kept:",
    # String with a time to live: the result as JSON.
    "result": "result:",
    # Stream of events with a length limit and, once ended, a time to live. The channel of the same
    # name carries the same events as they happen.
    "events": "events:",
}

# Hash of the server, of no queue: queue -> JSON of the model that it serves (see queue_directory.py).
QUEUES = "mp:queues"
# A channel that belongs to no queue and carries no messages: it keeps a connection in pub/sub mode.
IDLE_CHANNEL = "mp:idle"
MAX_QUEUE_CHARS = 32


def queue_of_model(model: str) -> str:
    """The queue of a model that has one of its own: its name, as far as a queue may be called so."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-.")
    return name[-MAX_QUEUE_CHARS:].lstrip("-._") or "model"


class Keys:
    """The names of one queue. Raises InvalidRequestError for a queue name that cannot be a hash tag."""

    def __init__(self, queue: str) -> None:
        if not TENANT_PATTERN.fullmatch(queue):
            raise InvalidRequestError(
                "queue", f"{queue!r} must match {TENANT_PATTERN.pattern}", limit=MAX_QUEUE_CHARS
            )
        self.queue = queue
        self._queue = queue
        self._base = f"mp:{{{queue}}}:"
        self.counts = self["counts"]
        self.wake = self["wake"]
        self.workers = self["workers"]
        self.dead = self["dead"]
        self.channel = self["channel"]

    def __getitem__(self, name: str) -> str:
        return self._base + QUEUE_KEYS[name]

    def beside(self, kind: str) -> str:
        """The start of the keys of this kind that belong to the queue's API, in a slot of their own."""
        return f"mp:{{{self._queue}/{kind}}}:"

    def lane(self, priority: Priority, tenant: str) -> str:
        return f"{self['lane']}{priority}:{tenant}"

    def ended(self, tenant: str) -> str:
        return self["ended"] + tenant

    def job(self, job_id: str) -> str:
        return self["job"] + job_id

    def body(self, job_id: str) -> str:
        return self["body"] + job_id

    def kept(self, job_id: str, choice: int = 0) -> str:
        return f"{self['kept']}{job_id}/{choice}"

    def result(self, job_id: str) -> str:
        return self["result"] + job_id

    def events(self, job_id: str) -> str:
        """The event stream of a job; also the name of its channel."""
        return self["events"] + job_id

    def api_key(self, key_id: str) -> str:
        return self["api_key"] + key_id
