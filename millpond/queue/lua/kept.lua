-- The tokens of running jobs' texts, kept so that another worker goes on where one has stopped. Prepended, after
-- stored, to every script that writes, reads or drops them.
--
-- A string for each text, ID/CHOICE, which workers write and read; to the scripts it is bytes. The record's
-- `kept` is the number of them, of all texts, and absent without any. What is kept covers what has been
-- streamed: it is written first, or with it.

local MOST_TEXTS = 16

-- `n` is the record's, which is absent for one text.
local function kept_keys(id, n)
  local keys = {}
  for choice = 0, (n or 1) - 1 do
    keys[#keys + 1] = K.kept .. id .. '/' .. choice
  end
  return keys
end

-- The names by which the record counts the characters that were streamed of a text.
local function streamed_fields(choice, n)
  local suffix = n and ':' .. choice or ''
  return 'said' .. suffix, 'thought' .. suffix
end

-- `bytes` is the record's `kept`.
local function forget_kept(id, n, tenant, bytes)
  if bytes then
    redis.call('UNLINK', unpack(kept_keys(id, n)))
    redis.call('HDEL', K.job .. id, 'kept')
    redis.call('HINCRBY', K.stored .. tenant, 'bodies', 0 - bytes)
  end
end

-- Whether each text that was streamed is covered.
local function resumable(id, n, bytes)
  if not bytes then
    return false
  end
  for i, key in ipairs(kept_keys(id, n)) do
    local said, thought = unpack(redis.call('HMGET', K.job .. id, streamed_fields(i - 1, n)))
    if (said or thought or not n) and redis.call('EXISTS', key) == 0 then
      return false
    end
  end
  return true
end

-- For a claim: of each text the characters of text and reasoning that were streamed, and the tokens.
local function read_kept(id, n, bytes)
  if not bytes then
    return false
  end
  local texts = {}
  for i, key in ipairs(kept_keys(id, n)) do
    local said, thought = unpack(redis.call('HMGET', K.job .. id, streamed_fields(i - 1, n)))
    texts[i] = { tonumber(said or 0), tonumber(thought or 0), redis.call('GET', key) or '' }
  end
  return texts
end
