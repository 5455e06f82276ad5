-- keys: counts dead delayed open workers
-- flags: no-writes
-- uses: clock
-- ARGV: none
-- -> {counts, dead letters, delayed jobs, unfinished jobs by tenant, workers, now}; hashes as flat lists
-- Reads only.

return {
  redis.call('HGETALL', K.counts),
  redis.call('ZCARD', K.dead),
  redis.call('ZCARD', K.delayed),
  redis.call('HGETALL', K.open),
  redis.call('HGETALL', K.workers),
  clock_ms(),
}
