-- What is to be sent to webhooks. Prepended, before records, to every script that can end a job.
--
-- A delivery is one event for one receiver, written by the script that makes the event true. Its name is
-- RECEIVER/SUBJECT: an endpoint's id, or url where the job itself named its receiver, and the job's id. It is
-- a hash: tenant, type, at (of the event, in ms), tries, held while one is under way; url of a receiver that is
-- no endpoint, from the submit on; data of an event that is no job's. A sorted set says when each one is due.

-- What nobody has delivered by then goes: its last try is long over, or nothing delivers here.
local DELIVERY_KEPT_MS = 259200000

local function owe(name, tenant, kind, at)
  local key = K.delivery .. name
  if redis.call('HGET', key, 'at') ~= int(at) then -- else it has been announced before
    redis.call('HSET', key, 'tenant', tenant, 'type', kind, 'at', int(at), 'tries', '0')
    redis.call('PEXPIRE', key, DELIVERY_KEPT_MS)
    redis.call('ZADD', K.deliveries, int(at), name)
  end
end

-- A job's own receiver, kept until there is something to tell it.
local function name_receiver(subject, url)
  local name = 'url/' .. subject
  redis.call('ZREM', K.deliveries, name) -- of a job that had the same id, long ago
  redis.call('UNLINK', K.delivery .. name)
  redis.call('HSET', K.delivery .. name, 'url', url)
end

-- What a delivery takes of the server beside the URL in it, about.
local RECEIVER_BYTES = 400

-- What the job's own receiver takes. It counts with the job's result and as long: a delivery is kept for 18
-- hours at most while somebody tries, most are gone at once. Endpoints are the operator's and count nowhere.
local function receiver_bytes(subject)
  return #(redis.call('HGET', K.delivery .. 'url/' .. subject, 'url') or '') + RECEIVER_BYTES
end

-- `own`: the subject has a receiver of its own, whose url is in the delivery. The names of the deliveries.
local function announce(subject, tenant, kind, own, at)
  local names = own and { 'url/' .. subject } or {}
  local endpoints = redis.call('HGETALL', K.endpoints .. tenant)
  for i = 1, #endpoints, 2 do
    local events = ' ' .. endpoints[i + 1] .. ' '
    if events == ' * ' or string.find(events, ' ' .. kind .. ' ', 1, true) then
      names[#names + 1] = endpoints[i] .. '/' .. subject
    end
  end
  for _, name in ipairs(names) do
    owe(name, tenant, kind, at)
  end
  if #names > 0 then
    redis.call('ZREMRANGEBYSCORE', K.deliveries, '-inf', int(at - DELIVERY_KEPT_MS))
  end
  return names
end
