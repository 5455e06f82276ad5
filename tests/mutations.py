"""Faults planted one at a time, to see that the tests notice: ``python -m tests.mutations [NAME...]``.

Each is put into a copy of the tree, where the tests named with it must fail. For those of the scripts
that is the model checker (row 9 of docs/reliability.md) wherever it can see the fault.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = "tests/chaos/test_model.py"
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """``old`` occurs once in ``file``; with ``new`` in its place, ``caught_by`` fails."""

    name: str
    file: str
    old: str
    new: str
    caught_by: str = MODEL


def lua(name: str, script: str, old: str, new: str, caught_by: str = MODEL) -> Mutation:
    return Mutation(name, f"millpond/queue/lua/{script}.lua", old, new, caught_by)


LEASES = "tests/contract/test_queue_leases.py"
EVENTS = "tests/contract/test_results_events.py"
MISSING = "tests/contract/test_queue_missing.py"
SIZES = "tests/contract/test_queue_sizes.py"
SUSPECTS = "tests/contract/test_queue_suspects.py"
OWED = "tests/contract/test_webhooks.py"
SENT = "tests/integration/test_webhooks.py"
NETWORK = "tests/chaos/test_network.py"
VOTES = "tests/unit/test_voting.py"
MUTATIONS = [
    lua("complete takes any fence", "complete", "record[2] == fence and ", ""),
    lua(
        "complete does not know its own end",
        "complete",
        "elseif record[2] == fence",
        "elseif false",
    ),
    lua("fail takes any fence", "fail", "record[2] ~= fence", "false"),
    lua("fail never buries", "fail", ">= OPTIONS.max_attempts", ">= 1000"),
    lua("fail is tried again at once", "fail", "now + tonumber(ARGV[3])", "now"),
    lua("renew takes any fence", "renew", " or record[2] ~= ARGV[i + 1]", ""),
    lua("renew does not prolong", "renew", "ZADD', K.leases, expiry", "ZADD', K.leases, 'XX', 0"),
    lua("renew does not tell a cancel", "renew", "if record[3] then", "if false then"),
    lua("emit takes any fence", "emit", " or record[2] ~= ARGV[i + 1]", ""),
    lua(
        "a delta that comes again is written again",
        "emit",
        " and offset >= tonumber(record[7] or 0)",
        "",
    ),
    lua(
        "what was written counts in the next attempt",
        "records",
        "redis.call('HDEL', job, streamed_fields(choice, record[8]))",
        "local _ = choice",
    ),
    lua("tokens that come again are kept again", "emit", "length ~= offset", "false"),
    lua(
        "an attempt that failed goes on",
        "fail",
        "forget_kept(id, record[4], record[5], record[6])\n",
        "",
    ),
    lua(
        "tokens that lost their beginning are kept",
        "emit",
        "if length < offset then",
        "if false then",
    ),
    lua(
        "tokens do not count for their tenant",
        "emit",
        "  redis.call('HINCRBY', K.stored .. tenant, 'bodies', #bytes)\n",
        "",
    ),
    lua(
        "a job goes on without its tokens",
        "kept",
        "redis.call('EXISTS', key) == 0",
        "false",
        "tests/contract/test_queue_kept.py",
    ),
    lua(
        "a payment that comes again is charged again",
        "spend",
        "local again = redis.call('EXISTS', paid) == 1",
        "local again = false",
        "tests/contract/test_api_keys.py",
    ),
    lua(
        "a submit that comes again is not accepted again",
        "submit",
        "accepted_under == nonce and 'accepted' or 'known'",
        "'known'",
        "tests/contract/test_queue_submit.py",
    ),
    lua(
        "a key that is made again is refused",
        "key_create",
        "return record[1] == ARGV[2] and record[2]",
        "return false",
        "tests/contract/test_api_keys.py",
    ),
    lua("release does not refund", "release", "now, true, 'released'", "now, false, 'released'"),
    lua("release forgets the lane", "release", "      to_lane(ARGV[i])\n", ""),
    lua(
        "halves are not refunded",
        "records",
        "take_back(id, now, true, why)",
        "take_back(id, now, false, why)",
    ),
    lua("the second half is forgotten", "records", "  to_suspects(halves[2], now)\n", ""),
    lua(
        "a job taken back keeps its lease",
        "records",
        "  redis.call('ZREM', K.leases, id)\n  if record[4]",
        "  if record[4]",
    ),
    lua(
        "a job taken back loses its deadline",
        "records",
        "    redis.call('ZADD', K.deadlines, record[4], id)\n",
        "",
    ),
    lua(
        "an ended job keeps its lease",
        "records",
        "    redis.call('ZREM', K.leases, id)\n    redis.call('HINCRBY', K.counts, 'running', -1)",
        "    redis.call('HINCRBY', K.counts, 'running', -1)",
    ),
    lua(
        "an ended job keeps its deadline", "records", "  redis.call('ZREM', K.deadlines, id)\n", ""
    ),
    lua(
        "an ended job stays with its tenant",
        "records",
        "K.open, record[4], -1",
        "K.open, record[4], 0",
    ),
    lua(
        "a cancel is forgotten when a job comes back",
        "records",
        "  if record[5] then\n    end_cancelled",
        "  if false then\n    end_cancelled",
    ),
    lua("the dead are not listed", "records", "  list(K.dead, id, now, OPTIONS.dead_max)\n", ""),
    lua("fences do not grow", "claim", "  fence = fence + 1\n", ""),
    lua("fences rewind with the server", "claim", ", now * 1000)", ", 0)", LEASES),
    lua("a claim takes ended jobs", "claim", "record[1] ~= 'queued' or record[8]", "false"),
    lua(
        "suspects come to a busy worker",
        "claim",
        "others_drain = budget >= capacity,",
        "others_drain = true,",
    ),
    lua(
        "suspects run beside others", "claim", "if not alone and not draining then", "if true then"
    ),
    lua(
        "nobody drains for suspects",
        "claim",
        "draining = suspects_overdue(now, OPTIONS.suspect_wait_ms)",
        "draining = false",
    ),
    lua("everybody drains", "claim", "running == 0 and not others_drain", "running == 0"),
    lua(
        "a trial that is over counts",
        "trials",
        "record[1] == 'running' and record[2] == worker",
        "true",
    ),
    lua(
        "a dead worker stays in the registry",
        "sweep",
        "    redis.call('HDEL', K.workers, worker)",
        "    --",
        SUSPECTS,
    ),
    lua("a missing job stays counted", "claim", "    miss(id)\n", "", MISSING),
    lua(
        "a missing job keeps its lease",
        "sweep",
        "      if not worker then\n        miss(id)\n",
        "      if not worker then\n",
        MISSING,
    ),
    lua(
        "a small worker takes all",
        "claim",
        "n > slots or row_tokens > most_row_tokens",
        "false",
        SIZES,
    ),
    lua(
        "a silent worker counts as larger",
        "sizes",
        " and tonumber(beat) + alive_ms >= now",
        "",
        SIZES,
    ),
    lua("all workers try suspects", "trials", "math.max(1, others)", "1000", SUSPECTS),
    lua(
        "an unheard claim is forgotten",
        "claim",
        "  remember_claim(worker, nonce, claimed, alone, lease_ms)\n",
        "",
    ),
    lua(
        "an unheard claim gives what was lost",
        "last_claim",
        "record[1] == 'running' and record[2] == worker and ",
        "",
    ),
    lua("an unheard claim is not renewed", "last_claim", "int(now + lease_ms), id", "int(now), id"),
    lua("a known id is accepted anew", "submit", "if known[1] then", "if false then"),
    lua(
        "a cancel does not reach a running job",
        "cancel",
        "  redis.call('HSET', K.job .. id, 'cancel', '1')\n",
        "",
    ),
    lua(
        "only what ended is reaped",
        "sweep",
        "  hold(redis.call('ZRANGEBYSCORE', K.leases, '(' .. int(now), '+inf', 'LIMIT', 0, limit), true)\n",
        "",
    ),
    lua("a death is not counted", "sweep", "'deaths', 1)", "'deaths', 0)"),
    lua(
        "a death spends an attempt",
        "sweep",
        "'attempts', -1)",
        "'attempts', 0)",
    ),
    lua("trials alone do not wait", "sweep", " * 4 ^ (deaths - 1)", " * 0"),
    lua(
        "a retry that is due stays delayed", "sweep", "    redis.call('ZREM', K.delayed, id)\n", ""
    ),
    lua("deadlines pass unnoticed", "sweep", "      end_expired(id, 'queued', now)\n", ""),
    lua(
        "an engine's break spends no attempt",
        "suspect",
        "now, false, 'failed'",
        "now, true, 'failed'",
    ),
    lua(
        "nobody is told of the end",
        "records",
        "tell(id, 'finished', ",
        "tell(id, 'delta', ",
        EVENTS,
    ),
    lua(
        "the end of a job owes no webhook",
        "records",
        "  announce(id, record[4], 'job.' .. status, record[6], now)\n",
        "",
        OWED,
    ),
    lua(
        "a webhook is settled by whoever had it",
        "delivery_settle",
        "record[1] ~= ARGV[2] or ",
        "",
        OWED,
    ),
    lua(
        "an endpoint is told of everything",
        "webhooks",
        "if events == ' * ' or ",
        "if true or ",
        OWED,
    ),
    Mutation(
        "a webhook's name is resolved again for the connection",
        "background/webhooks/checked_transport.py",
        "url.copy_with(host=address)",
        "url",
        SENT,
    ),
    Mutation(
        "a webhook goes to any address",
        "millpond/webhooks/guard.py",
        "if may_be_called(address, self._allowed)",
        "if address",
        SENT,
    ),
    Mutation(
        "a webhook follows redirects",
        "background/webhooks/sender.py",
        "follow_redirects=False",
        "follow_redirects=True",
        SENT,
    ),
    Mutation(
        "the worker makes no claim again",
        "worker/intake.py",
        "nonce=self._underway,",
        "nonce=None,",
        NETWORK,
    ),
    Mutation(
        "the worker keeps unheard claims at its end",
        "worker/handover.py",
        "released = await queue.release(unheard)",
        "released = 0",
        "tests/integration/test_worker.py",
    ),
    Mutation(
        "the worker releases nothing at its end",
        "worker/handover.py",
        "released = await jobs.release_all()",
        "released = 0",
        "tests/integration/test_worker.py",
    ),
    Mutation(
        "the worker goes on with rows that it has lost",
        "worker/jobs/lease.py",
        "    Lease.LOST: JobState.LOST,\n",
        "",
        "tests/integration/test_worker.py",
    ),
    Mutation(
        "the worker drops results while Redis is away",
        "worker/jobs/committer.py",
        "            except QueueUnavailableError as error:\n",
        "            except QueueUnavailableError as error:\n                self._endings.clear()\n",
        "tests/integration/test_worker.py",
    ),
    Mutation(
        "results wait for streamed text",
        "worker/jobs/committer.py",
        "            refusal = error\n",
        "            raise\n",
        "tests/chaos/test_outages.py",
    ),
    Mutation(
        "a hung engine keeps its jobs",
        "worker/worker.py",
        '                await self._jobs.give_up_rows("the engine hung")\n',
        "                await asyncio.sleep(10)\n",
        "tests/integration/test_worker.py",
    ),
    Mutation(
        "a vote forgets who may still give a new answer",
        "worker/voting/vote.py",
        "            rivals.append([])\n",
        "            pass\n",
        VOTES,
    ),
    Mutation(
        "a vote takes every tie for won",
        "worker/voting/vote.py",
        "return (-votes, first_text) < (-len(self.texts), self.texts[0])",
        "return votes > len(self.texts)",
        VOTES,
    ),
    Mutation(
        "a text that was cut votes",
        "worker/jobs/in_flight.py",
        "finished.text if whole else None",
        "finished.text",
        "tests/integration/test_voting.py",
    ),
    Mutation(
        "texts that cannot change a vote go on",
        "worker/jobs/job_table.py",
        "            self._spare_rest(job)\n",
        "",
        "tests/integration/test_voting.py",
    ),
    Mutation(
        "the worker does not renew",
        "worker/jobs/lease.py",
        "                await self.renew()\n",
        "                await asyncio.sleep(0)\n",
        "tests/integration/test_worker.py",
    ),
]


def planted(mutation: Mutation) -> str:
    """The file's text with the fault."""
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1, f"{mutation.name}: {mutation.file} has changed"
    return text.replace(mutation.old, mutation.new)


def outcome(tests: str, tree: Path) -> str:
    """What becomes of the tests there. The model checker need not make its example small."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--hypothesis-profile=unshrunk", tests]
    full = {"MILLPOND_CHAOS": "full"} if tests == MODEL else {}
    environment = {**os.environ, "PYTHONPATH": str(tree), **full}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return "HUNG"
    return "caught" if done.returncode == 1 else "MISSED"


def main() -> int:
    wanted = set(sys.argv[1:])
    missed = 0
    for mutation in MUTATIONS:
        if wanted and mutation.name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "tree"
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__"))
            (tree / mutation.file).write_text(planted(mutation))
            start_s = time.monotonic()
            what = outcome(mutation.caught_by, tree)
        missed += what != "caught"
        seconds = time.monotonic() - start_s
        print(f"{what} | {mutation.name} | {mutation.caught_by} | {seconds:.0f} s", flush=True)
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
