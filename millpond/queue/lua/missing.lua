-- Jobs whose records are gone, deleted by hand or evicted, though the indexes still name them. Prepended,
-- after waking, to claim and reap.
--
-- Such a job cannot be saved: what is left of it is removed, and it is counted. What it counted for is not
-- known any more, so the numbers of queued, running and unfinished jobs are then counted anew.

local num_missing = 0

local function miss(id)
  num_missing = num_missing + 1
  redis.call('ZREM', K.leases, id)
  redis.call('ZREM', K.delayed, id)
  redis.call('ZREM', K.deadlines, id)
  redis.call('UNLINK', K.body .. id, K.events .. id, K.delivery .. 'url/' .. id)
  redis.call('UNLINK', unpack(kept_keys(id, MOST_TEXTS)))
end

local function count_anew()
  local queued, open = { interactive = 0, normal = 0, batch = 0 }, {}
  local function add(tenant, number)
    open[tenant] = (open[tenant] or 0) + number
  end
  for priority in pairs(queued) do
    for _, tenant in ipairs(redis.call('ZRANGE', K.active .. priority, 0, -1)) do
      local jobs = redis.call('ZCARD', lane_of(priority, tenant))
      queued[priority] = queued[priority] + jobs
      add(tenant, jobs)
    end
  end
  local elsewhere = redis.call('ZRANGE', K.delayed, 0, -1)
  for _, group in ipairs(redis.call('LRANGE', K.suspects, 0, -1)) do
    for id in string.gmatch(string.match(group, ' .*') or '', '%S+') do
      elsewhere[#elsewhere + 1] = id
    end
  end
  for _, id in ipairs(elsewhere) do
    local record = redis.call('HMGET', K.job .. id, 'status', 'priority', 'tenant')
    if record[1] == 'queued' then
      queued[record[2]] = queued[record[2]] + 1
      add(record[3], 1)
    end
  end
  local running = redis.call('ZRANGE', K.leases, 0, -1)
  for _, id in ipairs(running) do
    local tenant = redis.call('HGET', K.job .. id, 'tenant')
    if tenant then
      add(tenant, 1)
    end
  end
  redis.call('HSET', K.counts, 'running', #running)
  for priority, number in pairs(queued) do
    redis.call('HSET', K.counts, 'queued:' .. priority, number)
  end
  redis.call('DEL', K.open)
  for tenant, number in pairs(open) do
    if number > 0 then
      redis.call('HSET', K.open, tenant, number)
    end
  end
end

-- To be called when all else is written.
local function settle_missing()
  if num_missing > 0 then
    redis.call('HINCRBY', K.counts, 'missing', num_missing)
    count_anew()
  end
  return num_missing
end
