-- keys: job body result events channel counts open leases delayed deadlines dead suspects wake last_claim pending_interactive pending_normal pending_batch
-- uses: records sweep last_claim
-- ARGV: worker, nonce, count, budget_tokens, capacity_tokens, lease_ms, sweep_limit, options
-- -> {now, ids left in the lanes, {{id, fence, attempt, created, body}, ...}, '1' if they are suspects}
-- Takes up to `count` jobs whose tokens fit the budget, in arrival order within each priority. A job
-- that claims to need more than the worker's whole capacity counts as needing all of it: the worker
-- gets to see it when it is empty, and refuses it.
--
-- Suspects come first and alone: a worker that runs nothing takes one group of them and is to take
-- nothing else until they have ended; a busy worker gets nothing until somebody has taken them.
--
-- A claim with the nonce of the worker's last one, whose answer was lost, hands out the same jobs.

-- Sixteen turns: a backlogged lane gets at least its share of them, so nothing starves. A turn whose
-- lane is empty goes to the highest lane that is not.
local TURNS = 'iiiniiiiniiiinib'
local LANES = { i = K.pending_interactive, n = K.pending_normal, b = K.pending_batch }
-- Both bound the time of one call: jobs claimed, and the work of skipping tombstones (1 each) and of
-- ending jobs that are not worth claiming (10 each).
local CLAIMED_A_CALL = 1000
local SKIPPING_A_CALL = 1000

local worker, nonce, budget = ARGV[1], ARGV[2], tonumber(ARGV[4])
local count = math.min(tonumber(ARGV[3]), CLAIMED_A_CALL)
local capacity, lease_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local now = clock_ms()

local function ids_left()
  local left = 0
  for _, list in ipairs({ K.suspects, LANES.i, LANES.n, LANES.b }) do
    left = left + redis.call('LLEN', list)
  end
  return left
end

local same, were_alone = claimed_before(worker, nonce, now, lease_ms)
if same then
  return { now, ids_left(), same, were_alone and '1' or '0' }
end
sweep(now, tonumber(ARGV[7]))

local function pop(turn)
  local at = turn % #TURNS + 1
  local wanted = LANES[string.sub(TURNS, at, at)]
  for _, lane in ipairs({ wanted, LANES.i, LANES.n, LANES.b }) do
    local id = redis.call('LPOP', lane)
    if id then
      return id, lane
    end
  end
end

local counts = redis.call('HMGET', K.counts, 'turn', 'fence')
local turn, fence = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
local claimed, leases, taken = {}, {}, { interactive = 0, normal = 0, batch = 0 }
local skipping = 0

-- 'claimed', 'skipped' (it has ended, or does now) or 'full' (it does not fit the budget).
local function claim(id)
  local job = K.job .. id
  local record = redis.call('HMGET', job, 'status', 'tokens', 'deadline', 'attempts', 'created', 'priority',
    'stream', 'due')
  if record[1] ~= 'queued' or record[8] then
    skipping = skipping + 1
    return 'skipped'
  end
  if record[3] and tonumber(record[3]) <= now then
    end_expired(id, 'queued', now)
    skipping = skipping + 10
    return 'skipped'
  end
  local body = redis.call('GET', K.body .. id)
  if not body then
    bury(id, 'queued', bare_result(id, 'failed', 'error', 'body_missing', 'the stored request is gone'), now)
    skipping = skipping + 10
    return 'skipped'
  end
  local need = math.min(tonumber(record[2]), capacity)
  if need > budget then
    return 'full'
  end
  budget = budget - need
  fence = fence + 1
  local attempt = tonumber(record[4]) + 1
  -- At once: the lane may hold this id again, as the tombstone of an earlier job.
  redis.call('HSET', job, 'status', 'running', 'worker', worker, 'fence', int(fence),
    'attempts', attempt, 'claimed', int(now))
  tell(id, 'started', attempt, record[7], '', '')
  taken[record[6]] = taken[record[6]] + 1
  leases[#leases + 1] = int(now + lease_ms)
  leases[#leases + 1] = id
  claimed[#claimed + 1] = { id, fence, attempt, record[5], body }
  return 'claimed'
end

-- Claim the first group of suspects that has a job left; what does not fit stays a group of its own.
local function claim_suspects()
  while #claimed == 0 do
    local group = redis.call('LPOP', K.suspects)
    if not group then
      return
    end
    local rest = {}
    for id in string.gmatch(group, '%S+') do
      if #claimed >= count or claim(id) == 'full' then
        rest[#rest + 1] = id
      end
    end
    if #rest > 0 then
      redis.call('LPUSH', K.suspects, table.concat(rest, ' '))
    end
  end
end

local function claim_lanes()
  while #claimed < count and skipping < SKIPPING_A_CALL do
    local id, lane = pop(turn)
    if not id then
      return
    end
    local outcome = claim(id)
    if outcome == 'full' then
      redis.call('LPUSH', lane, id)
      return
    elseif outcome == 'claimed' then
      turn = turn + 1
    end
  end
end

local alone = false
if count > 0 and redis.call('LLEN', K.suspects) > 0 and budget >= capacity then
  claim_suspects()
  alone = #claimed > 0
end
if redis.call('LLEN', K.suspects) == 0 and not alone then
  claim_lanes()
end

if #claimed > 0 then
  redis.call('ZADD', K.leases, unpack(leases))
  for priority, number in pairs(taken) do
    if number > 0 then
      redis.call('HINCRBY', K.counts, 'queued:' .. priority, -number)
    end
  end
  redis.call('HINCRBY', K.counts, 'running', #claimed)
  redis.call('HSET', K.counts, 'turn', turn % #TURNS, 'fence', int(fence))
  remember_claim(worker, nonce, claimed, alone, lease_ms)
end
local left = ids_left()
if left > 0 then
  wake_worker()
end
return { now, left, claimed, alone and '1' or '0' }
