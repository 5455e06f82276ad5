-- What time alone brings about, bounded by `limit` of each kind. Prepended to claim and reap.

-- Retries whose delay is over go to the head of their lane, the first due foremost.
local function promote_due(now, limit)
  local ids = redis.call('ZRANGEBYSCORE', K.delayed, '-inf', int(now), 'LIMIT', 0, limit)
  for i = #ids, 1, -1 do
    local id = ids[i]
    redis.call('ZREM', K.delayed, id)
    redis.call('HDEL', K.job .. id, 'due')
    redis.call('LPUSH', lane_of(redis.call('HGET', K.job .. id, 'priority')), id)
  end
  if #ids > 0 then
    wake_worker()
  end
  return #ids
end

local function end_expired(id, was, now)
  finish(id, was, 'expired', bare_result(id, 'expired', 'cancelled', 'deadline_exceeded',
    'the deadline passed before the job was finished'), now, false)
end

-- Leases that ran out: the worker is dead, stopped or cut off. Their fences are void, whatever comes
-- next. Later claims are put back first, so that the lane's order stays.
local function reap_leases(now, limit)
  local ids = redis.call('ZRANGEBYSCORE', K.leases, '-inf', int(now), 'LIMIT', 0, limit)
  local records = {}
  for i, id in ipairs(ids) do
    records[i] = redis.call('HMGET', K.job .. id, 'attempts', 'cancel', 'deadline', 'fence')
    records[i].id = id
  end
  table.sort(records, function(one, other)
    return tonumber(one[4]) > tonumber(other[4])
  end)
  for _, record in ipairs(records) do
    local id = record.id
    redis.call('HDEL', K.job .. id, 'fence')
    if record[3] and tonumber(record[3]) <= now then
      end_expired(id, 'running', now)
    elseif record[2] then
      end_cancelled(id, 'running', now)
    elseif tonumber(record[1]) >= OPTIONS.max_attempts then
      bury(id, 'running', bare_result(id, 'failed', 'error', 'attempts_exhausted',
        'its worker died or lost the lease in each of ' .. record[1] .. ' attempts'), now)
    else
      requeue(id, now, nil, false, 'lease_expired')
    end
  end
  return #ids
end

-- Deadlines that passed. A running job is left to its worker, which learns of it when it renews; if
-- that worker is gone, the end of the lease settles it.
local function expire_deadlines(now, limit)
  local ids = redis.call('ZRANGEBYSCORE', K.deadlines, '-inf', int(now), 'LIMIT', 0, limit)
  local expired = 0
  for _, id in ipairs(ids) do
    if redis.call('HGET', K.job .. id, 'status') == 'queued' then
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
