-- keys: counts dead delayed open workers active lane job deliveries
-- flags: no-writes
-- uses: clock
-- ARGV: none
-- -> {counts, dead letters, delayed jobs, unfinished jobs by tenant, workers, now, {acceptance of the next job of each priority that has waited longest, or nothing, ...}, pending webhooks}; hashes as flat lists
-- Reads only.

-- The next job of a lane has mostly waited longest there; of many tenants only those that are served next are
-- looked at, which bounds the time of one call.
local TENANTS = 32
local now, since = clock_ms(), {}
for i, priority in ipairs({ 'interactive', 'normal', 'batch' }) do
  since[i] = false
  for _, tenant in ipairs(redis.call('ZRANGE', K.active .. priority, 0, TENANTS - 1)) do
    local first = redis.call('ZRANGE', K.lane .. priority .. ':' .. tenant, 0, 0)[1]
    local created = first and tonumber(redis.call('HGET', K.job .. first, 'created') or now)
    if created and not (since[i] and since[i] <= created) then
      since[i] = created
    end
  end
end

return {
  redis.call('HGETALL', K.counts),
  redis.call('ZCARD', K.dead),
  redis.call('ZCARD', K.delayed),
  redis.call('HGETALL', K.open),
  redis.call('HGETALL', K.workers),
  now,
  since,
  redis.call('ZCARD', K.deliveries),
}
