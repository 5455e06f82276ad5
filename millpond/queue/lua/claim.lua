-- keys: job body kept result events channel counts open leases delayed deadlines dead ended suspects trials workers wake last_claim lane active idle weights lengths stored delivery deliveries endpoints
-- flags: allow-oom
-- uses: clock lanes lengths waking stored kept webhooks records missing sizes sweep trials last_claim
-- ARGV: worker, nonce, count, budget_tokens, capacity_tokens, lease_ms, sweep_limit, slots, row_tokens, options
-- -> {now, jobs left that a claim could take, {{id, fence, attempt, created, body, predicted output tokens or nothing, traceparent or nothing, {{characters of its text that were streamed, of its reasoning, its tokens}, ...} for each text of a job that goes on, or nothing}, ...}, 'alone' if they are suspects, 'draining' if the worker is to take nothing until it is empty, or '', jobs found missing}
-- Takes up to `count` jobs whose prompts and predicted outputs fit the budget: the priority by turns, then the active tenant
-- with the least counter, then the first job of its lane. A job that claims to need more than the
-- worker's whole capacity counts as needing all of it: the worker gets to see it when it is empty, and
-- refuses it.
--
-- Suspects run alone: a worker that runs nothing takes a group of them before anything else, unless
-- another worker tries one, and is to take nothing beside it. Others go on as if there were none; but
-- when a group has waited for too long, the next worker that claims drains for it (see trials.lua).
--
-- A claim with the nonce of the worker's last one, whose answer was lost, hands out the same jobs.

-- Sixteen turns: a backlogged priority gets at least its share of them, so nothing starves. A turn
-- whose priority has no job goes to the highest that has.
local TURNS = 'iiiniiiiniiiinib'
local PRIORITIES = { i = 'interactive', n = 'normal', b = 'batch' }
-- These bound the time of one call: jobs claimed, jobs ended because they are not worth claiming, and
-- jobs passed over because they are for larger workers.
local CLAIMED_A_CALL = 1000
local ENDED_A_CALL = 100
local LARGER_A_CALL = 100
-- What one call hands out at most, unless a single body is longer: about half a second of tokenizing.
local BYTES_A_CALL = 1048576

local worker, nonce, budget = ARGV[1], ARGV[2], tonumber(ARGV[4])
local count = math.min(tonumber(ARGV[3]), CLAIMED_A_CALL)
local capacity, lease_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local slots, most_row_tokens = tonumber(ARGV[8]), tonumber(ARGV[9])
local now = clock_ms()

local function jobs_left()
  local left = -redis.call('ZCARD', K.delayed)
  for _, queued in ipairs(redis.call('HMGET', K.counts, 'queued:interactive', 'queued:normal', 'queued:batch')) do
    left = left + tonumber(queued or 0)
  end
  return left
end

local same, were_alone = claimed_before(worker, nonce, now, lease_ms)
if same then
  return { now, jobs_left(), same, were_alone and 'alone' or '', 0 }
end
sweep(now, tonumber(ARGV[7]))

local counts = redis.call('HMGET', K.counts, 'turn', 'fence')
-- Fences keep up with the clock, so that they grow even when the server has lost its last second.
local turn, fence = tonumber(counts[1] or 0), math.max(tonumber(counts[2] or 0), now * 1000)
local rows, bytes, claimed, leases, taken = 0, 0, {}, {}, { interactive = 0, normal = 0, batch = 0 }

-- The active tenants of a priority, the least counter foremost: as many as one call can come to.
local lines, emptied = {}, {}
local function line_of(priority)
  if not lines[priority] then
    local line = {}
    local flat = redis.call('ZRANGE', K.active .. priority, 0, count - 1, 'WITHSCORES')
    for i = 1, #flat, 2 do
      line[#line + 1] = { name = flat[i], priority = priority, counter = tonumber(flat[i + 1]) }
    end
    lines[priority] = line
  end
  return lines[priority]
end

-- Charge the first of its line, and put it where its counter now belongs.
local function charge_first(line, tokens)
  local tenant = table.remove(line, 1)
  tenant.counter = tenant.counter + units(tokens, tenant.name)
  local low, high = 1, #line + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local other = line[middle]
    if other.counter < tenant.counter or (other.counter == tenant.counter and other.name < tenant.name) then
      low = middle + 1
    else
      high = middle
    end
  end
  table.insert(line, low, tenant)
end

-- An id, its order and whose it is. What is popped is settled by `settle_lines`.
local function pop()
  local at = turn % #TURNS + 1
  local wanted = PRIORITIES[string.sub(TURNS, at, at)]
  for _, priority in ipairs({ wanted, 'interactive', 'normal', 'batch' }) do
    local line = line_of(priority)
    while line[1] do
      local popped = redis.call('ZPOPMIN', lane_of(priority, line[1].name))
      if popped[1] then
        line[1].popped = true
        return popped[1], popped[2], line
      end
      emptied[#emptied + 1] = table.remove(line, 1)
    end
  end
end

-- Write the counters down. Who has no more jobs leaves, the one with the greatest counter last: the
-- level is then what everybody has been served.
local function settle_lines()
  for priority, line in pairs(lines) do
    for _, tenant in ipairs(line) do
      if tenant.popped then
        if redis.call('EXISTS', lane_of(priority, tenant.name)) == 1 then
          redis.call('ZADD', K.active .. priority, int(tenant.counter), tenant.name)
        else
          emptied[#emptied + 1] = tenant
        end
      end
    end
  end
  table.sort(emptied, function(one, other)
    return one.counter < other.counter
  end)
  for _, tenant in ipairs(emptied) do
    if redis.call('EXISTS', lane_of(tenant.priority, tenant.name)) == 1 then -- of jobs for larger workers
      redis.call('ZADD', K.active .. tenant.priority, int(tenant.counter), tenant.name)
    else
      leave(tenant.priority, tenant.name, tenant.counter)
    end
  end
end

-- 'claimed', 'skipped' (it has ended, or does now), 'full' (it does not fit the budget) or 'larger' (it
-- fits another worker, and this one never). `line` is
-- where its tenant is the first; none for a suspect.
local function claim(id, line)
  local job = K.job .. id
  local record = redis.call('HMGET', job, 'status', 'tokens', 'deadline', 'attempts', 'created', 'priority',
    'stream', 'due', 'tenant', 'prompt', 'kind', 'most', 'n', 'trace', 'kept')
  if not record[1] then
    miss(id)
  end
  if record[1] ~= 'queued' or record[8] then
    return 'skipped'
  end
  if record[3] and tonumber(record[3]) <= now then
    end_expired(id, 'queued', now)
    return 'skipped'
  end
  local body = redis.call('GET', K.body .. id)
  if not body then
    bury(id, 'queued', bare_result(id, 'failed', 'error', 'body_missing', 'the stored request is gone'), now)
    return 'skipped'
  end
  local prompt, tokens, n = tonumber(record[10]), tonumber(record[2]), tonumber(record[13] or 1)
  local row_tokens = math.ceil(tokens / n)
  if (n > slots or row_tokens > most_row_tokens) and another_fits(worker, n, row_tokens, now, OPTIONS.alive_ms) then
    return 'larger'
  end
  local likely, high = predict(record[11], record[12], n)
  local size = #body + (record[15] or 0)
  local need = math.min(high and prompt + n * high or tokens, capacity)
  if need > budget or (rows > 0 and (rows + n > count or bytes + size > BYTES_A_CALL)) then
    return 'full'
  end
  budget, rows, bytes = budget - need, rows + n, bytes + size
  fence = fence + 1
  local attempt = tonumber(record[4]) + 1
  local expected = likely and prompt + n * likely or tokens
  redis.call('HSET', job, 'status', 'running', 'worker', worker, 'fence', int(fence),
    'attempts', attempt, 'claimed', int(now), 'charge', int(expected))
  if line then
    charge_first(line, expected)
  else
    charge(record[6], record[9], expected)
  end
  tell(id, 'started', attempt, record[7], '')
  taken[record[6]] = taken[record[6]] + 1
  leases[#leases + 1] = int(now + lease_ms)
  leases[#leases + 1] = id
  claimed[#claimed + 1] = { id, fence, attempt, record[5], body, high or false, record[14],
    read_kept(id, record[13], record[15]) }
  return 'claimed'
end

-- Claim the first group of suspects that has a job left; what does not fit stays a group of its own.
local function claim_suspects()
  while #claimed == 0 do
    local group = redis.call('LPOP', K.suspects)
    if not group then
      return
    end
    local word, rest = string.gmatch(group, '%S+'), {}
    local since = word()
    for id in word do
      local outcome = rows >= count and 'full' or claim(id)
      if outcome == 'full' or outcome == 'larger' then
        rest[#rest + 1] = id
      end
    end
    if #rest > 0 then
      redis.call('LPUSH', K.suspects, since .. ' ' .. table.concat(rest, ' '))
      return
    end
  end
end

local exhausted = false -- there is nothing left in the lanes
local function claim_lanes()
  local ended, for_larger = 0, {}
  while rows < count and ended < ENDED_A_CALL and copied < METADATA_A_CALL do
    local id, order, line = pop()
    if not id then
      exhausted = true
      break
    end
    local outcome = claim(id, line)
    if outcome == 'full' then
      redis.call('ZADD', lane_of(line[1].priority, line[1].name), order, id)
      break
    elseif outcome == 'claimed' then
      turn = turn + 1
    elseif outcome == 'larger' then
      for_larger[#for_larger + 1] = { lane_of(line[1].priority, line[1].name), order, id }
      if #for_larger >= LARGER_A_CALL then
        exhausted = true
        break
      end
    else
      ended = ended + 1
    end
  end
  for _, left in ipairs(for_larger) do
    redis.call('ZADD', left[1], left[2], left[3])
  end
  settle_lines()
end

local function try_suspects()
  claim_suspects()
  return #claimed > 0
end

local alone, draining = false, false
local waiting = count > 0 and redis.call('LLEN', K.suspects) > 0
local empty, running, others_drain = budget >= capacity, 0, false
if waiting then
  running, others_drain = trials_elsewhere(worker, now)
  if empty then
    alone = running == 0 and try_suspects()
  elseif running == 0 and not others_drain then
    draining = suspects_overdue(now, OPTIONS.suspect_wait_ms)
  end
end
if not alone and not draining then
  claim_lanes()
  if waiting and empty and #claimed == 0 and running < trials_at_most(worker, now, OPTIONS.alive_ms) then
    alone = try_suspects()
  end
end
if draining then
  note_trial(worker, 'drains ' .. int(now + lease_ms))
elseif alone then
  note_running(worker, claimed)
elseif count > 0 then
  redis.call('HDEL', K.trials, worker)
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
local missing = settle_missing()
local left = (draining or (exhausted and not alone)) and 0 or jobs_left()
if left > 0 or draining then
  wake_worker()
end
return { now, left, claimed, alone and 'alone' or draining and 'draining' or '', missing }
