-- keys: job result counts lane active weights idle lengths
-- flags: no-writes
-- uses: clock lanes lengths
-- ARGV: id, tenant or '' for any
-- -> {record as a flat list, result or false, now, counts as a flat list, place in its lane from 0 or false, jobs of others that go before it at its priority, about}
-- Reads only. An empty list: there is no such job.

-- Tenants that are looked at one by one; of more, these speak for the rest.
local TENANT_LOOKS = 100

-- By the time that `place` more jobs of this tenant have been served, its counter is so and so high, and
-- the others will have been served up to it: as if all jobs were as long as this one is thought to be.
local function others_before(priority, tenant, place, expected)
  local active = K.active .. priority
  local turn = tonumber(redis.call('ZSCORE', active, tenant)) + place * units(expected, tenant)
  local others = redis.call('ZRANGEBYSCORE', active, '-inf', '(' .. int(turn), 'WITHSCORES', 'LIMIT', 0, TENANT_LOOKS)
  local jobs, looked = 0, 0
  for i = 1, #others, 2 do
    if others[i] ~= tenant then
      local share = (turn - tonumber(others[i + 1])) / math.max(1, units(expected, others[i]))
      jobs = jobs + math.min(redis.call('ZCARD', lane_of(priority, others[i])), math.ceil(share))
      looked = looked + 1
    end
  end
  if looked >= TENANT_LOOKS - 1 then
    jobs = math.ceil(jobs / looked * (redis.call('ZCARD', active) - 1))
  end
  return jobs
end

local id = ARGV[1]
-- The tenant before the record: another's job takes no longer to refuse than one that is not there.
local tenant = redis.call('HGET', K.job .. id, 'tenant')
if not tenant or (ARGV[2] ~= '' and tenant ~= ARGV[2]) then
  return {}
end
local record = redis.call('HGETALL', K.job .. id)
local now = clock_ms()
local place, others = false, 0
if redis.call('HGET', K.job .. id, 'status') == 'queued' then
  local job = redis.call('HMGET', K.job .. id, 'priority', 'prompt', 'tokens', 'kind', 'most', 'n')
  local n = tonumber(job[6] or 1)
  local priority, likely = job[1], predict(job[4], job[5], n)
  place = redis.call('ZRANK', lane_of(priority, tenant), id)
  if place then
    others = others_before(priority, tenant, place, likely and tonumber(job[2]) + n * likely or tonumber(job[3]))
  end
end
return { record, redis.call('GET', K.result .. id), now, redis.call('HGETALL', K.counts), place, others }
