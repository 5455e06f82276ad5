-- The life of one job record. Prepended, after lanes, to every script that changes a job's state.
--
-- status:  queued -> running -> succeeded | failed | cancelled | expired
--                 \-> cancelled | expired          (never claimed)
--          running -> queued                       (retry, release, lost lease)
-- The first terminal status wins: `finish` is reached only from queued and running.
--
-- Options, the same for every script, come last in ARGV as one JSON object:
--   result_ttl_ms  event_ttl_ms  event_maxlen  max_attempts  max_deaths  retry_delay_ms  retry_delay_max_ms
--   dead_max  listed_max  suspect_wait_ms  alive_ms

local OPTIONS = cjson.decode(ARGV[#ARGV])

-- Tell both channels, and the job's stream if it keeps one. `rest` is JSON members after the common
-- ones; it begins with a comma or is empty.
local function tell(id, kind, attempt, streams, rest)
  local head = '{"v":1,"type":"' .. kind .. '","id":"' .. id .. '","attempt":' .. attempt
  local body = head .. rest .. '}'
  if streams == '1' then
    local entry = redis.call('XADD', K.events .. id, 'MAXLEN', '~', int(OPTIONS.event_maxlen), '*', 'event', body)
    body = head .. ',"event_id":"' .. entry .. '"' .. rest .. '}'
  end
  redis.call('PUBLISH', K.events .. id, body)
  redis.call('PUBLISH', K.channel, head .. rest .. '}')
end

-- A result for a job that ends without a worker's word. The request's metadata stands at the head of its
-- body, so that a body need not be decoded, which for a large one takes long.
local METADATA = '{"metadata":'
-- What one call may copy of it; the rest is for the next call, as far as it can wait.
local METADATA_A_CALL = 524288
local copied = 0
local function bare_result(id, status, reason, code, message)
  local metadata = ''
  local size = redis.call('HGET', K.job .. id, 'metadata')
  if size then
    metadata = redis.call('GETRANGE', K.body .. id, #METADATA, #METADATA + size - 1)
    copied = copied + #metadata
    metadata = metadata ~= '' and ',"metadata":' .. metadata or ''
  end
  return '{"v":1,"id":"' .. id .. '","status":"' .. status .. '","finish_reason":"' .. reason ..
    '","error":{"code":"' .. code .. '","message":"' .. message .. '"}' .. metadata .. '}'
end

-- The newest of an index stay: what falls out is only listed no more.
local function list(index, id, now, most)
  redis.call('ZADD', index, int(now), id)
  redis.call('ZREMRANGEBYRANK', index, 0, int(-most - 1))
end

-- What nobody asks for any more when a job has ended; it is kept for a dead letter.
local function trim(job, n)
  redis.call('HDEL', job, 'kind', 'prompt', 'tokens', 'most', 'n', 'order', 'worker', 'charge', 'cancel',
    'deadline', 'due', 'metadata', 'trace', 'webhook', streamed_fields(0, n))
  for choice = 1, (n or 1) - 1 do
    redis.call('HDEL', job, streamed_fields(choice, n))
  end
end

-- End a queued or running job for ever: record, result, event, webhooks, publish, and all its claims at once.
-- `was` is the status it has now. The body stays for a dead letter, else it goes.
local function finish(id, was, status, result, now, keep_body)
  local job = K.job .. id
  local record = redis.call('HMGET', job, 'priority', 'attempts', 'stream', 'tenant', 'n', 'webhook', 'kept')
  redis.call('ZREM', K.deadlines, id)
  forget_kept(id, record[5], record[4], record[7])
  local idle = redis.call('HINCRBY', K.open, record[4], -1) <= 0
  if idle then
    redis.call('HDEL', K.open, record[4])
  end
  local body_bytes = redis.call('STRLEN', K.body .. id)
  local kept_bytes = #result + (keep_body and body_bytes or 0) + (record[6] and receiver_bytes(id) or 0)
  store_result(record[4], body_bytes, kept_bytes, now, OPTIONS.result_ttl_ms, idle)
  redis.call('HSET', job, 'status', status, 'finished', int(now))
  if not keep_body then
    trim(job, record[5])
  end
  redis.call('PEXPIRE', job, int(OPTIONS.result_ttl_ms))
  redis.call('SET', K.result .. id, result, 'PX', int(OPTIONS.result_ttl_ms))
  if keep_body then
    redis.call('PEXPIRE', K.body .. id, int(OPTIONS.result_ttl_ms))
  else
    redis.call('UNLINK', K.body .. id)
  end
  if was == 'running' then
    redis.call('ZREM', K.leases, id)
    redis.call('HINCRBY', K.counts, 'running', -1)
  else
    redis.call('ZREM', K.delayed, id)
    withdraw(id, record[1], record[4])
    redis.call('HINCRBY', K.counts, 'queued:' .. record[1], -1)
  end
  redis.call('HINCRBY', K.counts, 'done:' .. status, 1)
  list(K.ended .. record[4], id, now, OPTIONS.listed_max)
  redis.call('PEXPIRE', K.ended .. record[4], int(OPTIONS.result_ttl_ms))
  announce(id, record[4], 'job.' .. status, record[6], now)
  tell(id, 'finished', record[2], record[3], ',"status":"' .. status .. '","finished_ms":' .. int(now))
  if record[3] == '1' then
    redis.call('PEXPIRE', K.events .. id, int(OPTIONS.event_ttl_ms))
  end
end

local function end_cancelled(id, was, now)
  finish(id, was, 'cancelled', bare_result(id, 'cancelled', 'cancelled', 'cancelled',
    'cancelled by the client'), now, false)
end

-- Take a running job out of its worker's hands. Its fence is void. Its text stands if its tokens are kept: the
-- next worker goes on behind them. Else readers are told to forget it.
-- The caller says where the job goes: to_lane, to_delay or to_suspects.
-- What its tenant was charged is given back with the attempt, and kept with it.
-- False: the job was to be cancelled, and ended here instead.
local function take_back(id, now, refund, why)
  local job = K.job .. id
  local record = redis.call('HMGET', job, 'priority', 'attempts', 'stream', 'deadline', 'cancel', 'tenant', 'charge', 'n', 'kept')
  if record[5] then
    end_cancelled(id, 'running', now)
    return false
  end
  redis.call('ZREM', K.leases, id)
  if record[4] then
    redis.call('ZADD', K.deadlines, record[4], id)
  end
  redis.call('HSET', job, 'status', 'queued')
  redis.call('HDEL', job, 'worker', 'claimed', 'fence', 'charge')
  local stands = resumable(id, record[8], record[9])
  if not stands then
    forget_kept(id, record[8], record[6], record[9])
    for choice = 0, (record[8] or 1) - 1 do
      redis.call('HDEL', job, streamed_fields(choice, record[8]))
    end
  end
  redis.call('HINCRBY', K.counts, 'running', -1)
  redis.call('HINCRBY', K.counts, 'queued:' .. record[1], 1)
  tell(id, stands and 'requeued' or 'reset', record[2], record[3], ',"reason":"' .. why .. '"')
  if refund then
    redis.call('HINCRBY', job, 'attempts', -1)
    charge(record[1], record[6], -tonumber(record[7]))
  end
  return true
end

-- To its old place in the order, which is near the head: it has waited before.
local function to_lane(id)
  local record = redis.call('HMGET', K.job .. id, 'priority', 'tenant', 'order')
  enter(id, record[1], record[2], record[3])
  wake_worker()
end

local function to_delay(id, due)
  redis.call('HSET', K.job .. id, 'due', int(due))
  redis.call('ZADD', K.delayed, int(due), id)
  redis.call('HINCRBY', K.counts, 'retried', 1)
end

local function to_suspects(ids, now)
  if #ids > 0 then
    redis.call('RPUSH', K.suspects, int(now) .. ' ' .. table.concat(ids, ' '))
    wake_worker()
  end
end

-- No attempt is left: a stored failure and an entry in the dead-letter list.
local function bury(id, was, result, now)
  finish(id, was, 'failed', result, now, true)
  list(K.dead, id, now, OPTIONS.dead_max)
  redis.call('HINCRBY', K.counts, 'buried', 1)
end

-- Jobs that one worker ran when it died or its engine broke, in the order of their claims. One of
-- them may be the cause. Several: no attempt is spent, and each half is run again with nothing else
-- beside it, so the halves that pass are cleared and the cause is cornered. One: `blame(job)`.
local function isolate(ids, now, why, blame)
  if #ids == 1 then
    blame(ids[1])
    return
  end
  local halves = { {}, {} }
  for i, id in ipairs(ids) do
    if take_back(id, now, true, why) then
      local half = halves[i * 2 <= #ids and 1 or 2]
      half[#half + 1] = id
    end
  end
  to_suspects(halves[1], now)
  to_suspects(halves[2], now)
end
