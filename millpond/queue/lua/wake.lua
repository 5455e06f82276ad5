-- keys: wake
-- flags: allow-oom
-- uses: waking
-- ARGV: none
-- -> nothing. Passes on a wake-up that this worker has no use for.

wake_worker()
