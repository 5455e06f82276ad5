-- What time alone brings about, bounded by `limit` of each kind. Prepended to claim and reap.

-- Retries whose delay is over, the first due foremost. A job that has met a death is tried alone.
local function promote_due(now, limit)
  local ids = redis.call('ZRANGEBYSCORE', K.delayed, '-inf', int(now), 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    redis.call('ZREM', K.delayed, id)
    redis.call('HDEL', K.job .. id, 'due')
    local record = redis.call('HMGET', K.job .. id, 'status', 'deaths')
    if not record[1] then
      miss(id)
    elseif record[2] then
      to_suspects({ id }, now)
    else
      to_lane(id)
    end
  end
  return #ids
end

local function end_expired(id, was, now)
  finish(id, was, 'expired', bare_result(id, 'expired', 'cancelled', 'deadline_exceeded',
    'the deadline passed before the job was finished'), now, false)
end

-- A worker died or was cut off while it ran this job alone. That may be chance, so it counts apart from
-- the attempts, and the next trial waits much longer each time: whatever kills workers one after the
-- other is to be over by then.
local function blame_for_death(id, now)
  local deaths = redis.call('HINCRBY', K.job .. id, 'deaths', 1)
  if deaths >= OPTIONS.max_deaths then
    bury(id, 'running', bare_result(id, 'failed', 'error', 'attempts_exhausted',
      'its worker died or lost the lease ' .. deaths .. ' times while it ran alone'), now)
  elseif take_back(id, now, false, 'lease_expired') then
    -- Without the tenant's charge: the worker's time is gone.
    redis.call('HINCRBY', K.job .. id, 'attempts', -1)
    local delay = OPTIONS.retry_delay_ms * 4 ^ (deaths - 1)
    to_delay(id, now + math.min(delay, OPTIONS.retry_delay_max_ms))
  end
end

-- Leases that ran out: their workers are dead, stopped or cut off. What else those workers hold is
-- taken from them too, claimed after their last renewal as it may be: one death is settled at once.
local function reap_leases(now, limit)
  local first = redis.call('ZRANGEBYSCORE', K.leases, '-inf', int(now), 'LIMIT', 0, limit)
  if #first == 0 then
    return 0
  end
  local held, workers, reaped = {}, {}, 0

  local function hold(ids, known_only)
    for _, id in ipairs(ids) do
      local record = redis.call('HMGET', K.job .. id, 'worker', 'fence', 'deadline', 'cancel')
      local worker = record[1]
      if not worker then
        miss(id)
      elseif held[worker] or not known_only then
        if not held[worker] then
          held[worker] = {}
          workers[#workers + 1] = worker
        end
        record.id = id
        table.insert(held[worker], record)
      end
    end
  end

  hold(first, false)
  hold(redis.call('ZRANGEBYSCORE', K.leases, '(' .. int(now), '+inf', 'LIMIT', 0, limit), true)
  for _, worker in ipairs(workers) do
    redis.call('HDEL', K.workers, worker) -- if it lives all the same, its next beat says so
    table.sort(held[worker], function(one, other)
      return tonumber(one[2]) < tonumber(other[2])
    end)
    local suspects = {}
    for _, record in ipairs(held[worker]) do
      reaped = reaped + 1
      redis.call('HDEL', K.job .. record.id, 'fence')
      if record[3] and tonumber(record[3]) <= now then
        end_expired(record.id, 'running', now)
      elseif record[4] then
        end_cancelled(record.id, 'running', now)
      else
        suspects[#suspects + 1] = record.id
      end
    end
    if #suspects > 0 then
      isolate(suspects, now, 'lease_expired', function(id)
        blame_for_death(id, now)
      end)
    end
  end
  redis.call('HINCRBY', K.counts, 'lost', reaped)
  return reaped
end

-- Deadlines that passed. A running job is left to its worker, which learns of it when it renews; if
-- that worker is gone, the end of the lease settles it.
local function expire_deadlines(now, limit)
  local ids = redis.call('ZRANGEBYSCORE', K.deadlines, '-inf', int(now), 'LIMIT', 0, limit)
  local expired = 0
  for _, id in ipairs(ids) do
    if copied >= METADATA_A_CALL then
      break
    elseif redis.call('HGET', K.job .. id, 'status') == 'queued' then
      end_expired(id, 'queued', now)
      expired = expired + 1
    else
      redis.call('ZREM', K.deadlines, id)
    end
  end
  return expired
end

local function sweep(now, limit)
  local reaped = reap_leases(now, limit)
  local promoted = promote_due(now, limit)
  return { reaped, promoted, expire_deadlines(now, limit) }
end
