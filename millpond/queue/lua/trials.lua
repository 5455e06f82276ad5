-- Who tries suspects, and when. Prepended, after clock, to claim.
--
-- K.suspects is a list of "SINCE_MS ID ID ...", the oldest group foremost. A worker that runs nothing takes
-- a group and nothing beside it; for one that has waited too long, a busy worker makes way: it drains.
-- Meanwhile such a worker admits nothing, so of several that live one at least is left to the other jobs.
-- K.trials says of each worker "runs ID ID ...", or "drains UNTIL_MS", which ends by itself should it die.

-- What a worker that died has left here ends with its leases; this only cleans up when nobody claims.
local TRIALS_MS = 3600000

local function is_on(worker, trial, now)
  local word = string.gmatch(trial, '%S+')
  if word() == 'drains' then
    return tonumber(word()) > now
  end
  for id in word do
    local record = redis.call('HMGET', K.job .. id, 'status', 'worker')
    if record[1] == 'running' and record[2] == worker then
      return true
    end
  end
  return false
end

-- How many other workers run suspects, and whether one drains for them.
local function trials_elsewhere(worker, now)
  local running, draining = 0, false
  local all = redis.call('HGETALL', K.trials)
  for i = 1, #all, 2 do
    if all[i] ~= worker then
      if not is_on(all[i], all[i + 1], now) then
        redis.call('HDEL', K.trials, all[i])
      elseif string.find(all[i + 1], 'runs', 1, true) == 1 then
        running = running + 1
      else
        draining = true
      end
    end
  end
  return running, draining
end

-- How many workers may run suspects at once: all but one of those that take jobs.
local function trials_at_most(worker, now, alive_ms)
  local others = 0
  local all = redis.call('HGETALL', K.workers)
  for i = 1, #all, 2 do
    local beat = tonumber(string.match(all[i + 1], '^%d+') or 0)
    if all[i] ~= worker and beat + alive_ms >= now and string.find(all[i + 1], '"state":"ready"', 1, true) then
      others = others + 1
    end
  end
  return math.max(1, others)
end

local function note_trial(worker, words)
  redis.call('HSET', K.trials, worker, words)
  redis.call('PEXPIRE', K.trials, TRIALS_MS)
end

local function note_running(worker, claimed)
  local words = { 'runs' }
  for _, job in ipairs(claimed) do
    words[#words + 1] = job[1]
  end
  note_trial(worker, table.concat(words, ' '))
end

-- Whether the oldest group has waited for longer than it may.
local function suspects_overdue(now, patience_ms)
  local group = redis.call('LINDEX', K.suspects, 0)
  return group and tonumber(string.match(group, '^%d+')) + patience_ms <= now
end
