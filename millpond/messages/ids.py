"""Ids of jobs and the seeds that are derived from them."""

import base64
import hashlib
import os
import re

from millpond.messages.sampling_params import MAX_SEED

JOB_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
TENANT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")

_FIVE_BITS = b"abcdefghijklmnopqrstuvwxyz234567" * 8  # the character of a byte's low five bits


def new_job_id() -> str:
    """120 random bits as 24 lower-case base32 characters."""
    return os.urandom(24).translate(_FIVE_BITS).decode("ascii")


def job_id_from_key(tenant: str, idempotency_key: str) -> str:
    """The id of the job that this tenant submits under this idempotency key.

    Deriving the id makes idempotency a property of the job record alone: the second submit of a key
    finds the first one's record. 120 bits of SHA-256 over ``tenant NUL key``.
    """
    digest = hashlib.sha256(f"{tenant}\0{idempotency_key}".encode()).digest()[:15]
    return base64.b32encode(digest).decode("ascii").lower()


def seed_from_id(job_id: str) -> int:
    """The seed of a job without one: derived from its id, so every attempt writes the same text."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8]) & MAX_SEED


def choice_seed(seed: int, index: int) -> int:
    """The seed of one choice of a job; the first choice has the job's own."""
    return seed if index == 0 else seed_from_id(f"{seed}/{index}")
