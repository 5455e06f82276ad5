-- Whose job is next. Prepended to every script that puts jobs into lanes, takes them out, or learns
-- what they cost.
--
-- A lane holds the queued jobs of one tenant at one priority. A tenant with such a lane is active at
-- that priority, and the active tenant with the least counter is served next. The counter says what it
-- has been served, in thousandths of a token, divided by its weight: a job is charged with the tokens
-- that it is expected to take when it is claimed, and put right when they are known.
--
-- The level is the least counter of the active tenants, or of the last one that was. A tenant that
-- becomes active is lifted to it, so nobody saves up while away; the counter of an idle tenant is kept
-- only while it is above the level, because below it says nothing.

local UNITS_A_TOKEN = 1000

local function lane_of(priority, tenant)
  return K.lane .. priority .. ':' .. tenant
end

local weights = {}
local function units(tokens, tenant)
  weights[tenant] = weights[tenant] or tonumber(redis.call('HGET', K.weights, tenant) or 1)
  return math.floor(tokens * UNITS_A_TOKEN / weights[tenant] + 0.5)
end

local function level(priority)
  local least = redis.call('ZRANGE', K.active .. priority, 0, 0, 'WITHSCORES')
  return tonumber(least[2] or redis.call('HGET', K.counts, 'level:' .. priority) or 0)
end

-- The tenant has jobs in its lane, now or still.
local function join(priority, tenant)
  local active, idle = K.active .. priority, K.idle .. priority
  if redis.call('ZSCORE', active, tenant) then
    return
  end
  local kept = redis.call('ZSCORE', idle, tenant)
  if kept then
    redis.call('ZREM', idle, tenant)
  end
  redis.call('ZADD', active, int(math.max(level(priority), tonumber(kept or 0))), tenant)
end

-- The tenant's lane is empty.
local function leave(priority, tenant, counter)
  local active, idle = K.active .. priority, K.idle .. priority
  redis.call('ZREM', active, tenant)
  local least = redis.call('ZRANGE', active, 0, 0, 'WITHSCORES')
  local floor = tonumber(least[2] or counter)
  if not least[2] then
    redis.call('HSET', K.counts, 'level:' .. priority, int(floor))
  end
  if tonumber(counter) > floor then
    redis.call('ZADD', idle, int(counter), tenant)
  end
  redis.call('ZREMRANGEBYSCORE', idle, '-inf', int(floor))
end

-- Charge a tenant for tokens, or give them back if they are fewer than none.
local function charge(priority, tenant, tokens)
  local active, idle = K.active .. priority, K.idle .. priority
  if redis.call('ZSCORE', active, tenant) then
    redis.call('ZINCRBY', active, int(units(tokens, tenant)), tenant)
    return
  end
  local floor = level(priority)
  local counter = tonumber(redis.call('ZSCORE', idle, tenant) or floor) + units(tokens, tenant)
  if counter > floor then
    redis.call('ZADD', idle, int(counter), tenant)
  else
    redis.call('ZREM', idle, tenant)
  end
end

-- Into the lane, by its place in the order of acceptance.
local function enter(id, priority, tenant, order)
  redis.call('ZADD', lane_of(priority, tenant), order, id)
  join(priority, tenant)
end

-- Out of the lane, if it is there: it has ended.
local function withdraw(id, priority, tenant)
  local lane = lane_of(priority, tenant)
  if redis.call('ZREM', lane, id) == 1 and redis.call('EXISTS', lane) == 0 then
    leave(priority, tenant, redis.call('ZSCORE', K.active .. priority, tenant))
  end
end
