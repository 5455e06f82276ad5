-- What each tenant's jobs take of the server, in bytes. A hash for each tenant: 'bodies' is the size of
-- the requests of its unfinished jobs; a number is an hour of the server's clock, and the size of the
-- results and dead letters' requests that expire in it. They count until that hour is over.

local HOUR_MS = 3600000

local function hour_of(ms)
  return int(math.floor(ms / HOUR_MS))
end

local function stored_bytes(tenant, now)
  local key, bytes, hour = K.stored .. tenant, 0, tonumber(hour_of(now))
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    if fields[i] ~= 'bodies' and tonumber(fields[i]) < hour then
      redis.call('HDEL', key, fields[i])
    else
      bytes = bytes + tonumber(fields[i + 1])
    end
  end
  return bytes
end

local function store_bodies(tenant, bytes)
  redis.call('PERSIST', K.stored .. tenant)
  redis.call('HINCRBY', K.stored .. tenant, 'bodies', bytes)
end

-- A job has ended: its body is no longer an unfinished job's, and `bytes` are kept until they expire.
-- `idle`: its tenant has no other unfinished job, so all that it has expires by then.
local function store_result(tenant, body_bytes, bytes, now, ttl_ms, idle)
  local key = K.stored .. tenant
  redis.call('HINCRBY', key, 'bodies', 0 - body_bytes) -- Redis reads -0 as no integer
  redis.call('HINCRBY', key, hour_of(now + ttl_ms), bytes)
  if idle then
    redis.call('HDEL', key, 'bodies')
    redis.call('PEXPIRE', key, int(ttl_ms))
  end
end
