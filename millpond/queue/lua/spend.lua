-- keys: spent paid
-- flags: allow-oom
-- uses: clock
-- ARGV: key id, nonce, then for each bucket: its name, its units a minute, the units to spend
-- -> {number of the first bucket that refuses or 0, {{units left, ms until it is full, ms to wait if it refuses}, ...}}
-- Token buckets that hold a minute's worth. Either all buckets pay or none does. Spending more than a
-- whole bucket passes when it is full, and leaves a debt: nothing is for ever too large, and the pace
-- over time holds. Spending 0 only looks; a negative number gives back.
--
-- A payment with the nonce of one that was made looks only: its answer was lost, and it was sent again.

-- Longer than a client goes on sending the same call.
local NONCE_MS = 60000

local key = K.spent .. ARGV[1]
local now = clock_us() / 1000
local paid = K.paid .. ARGV[2]
local again = redis.call('EXISTS', paid) == 1
local refused, buckets, longest, pays = 0, {}, 0, false
for i = 3, #ARGV, 3 do
  local name, size = ARGV[i], tonumber(ARGV[i + 1])
  local amount = again and 0 or tonumber(ARGV[i + 2])
  pays = pays or amount ~= 0
  local level, pace = size, size / 60000
  local stored = redis.call('HGET', key, name)
  if stored then
    local was, at = string.match(stored, '^(%S+) (%S+)$')
    -- A clock that was set back must not drain it.
    level = math.min(size, tonumber(was) + math.max(0, now - tonumber(at)) * pace)
  end
  local wait = math.ceil(math.max(0, math.min(amount, size) - level) / pace)
  if wait > 0 and amount > 0 and refused == 0 then
    refused = #buckets + 1
  end
  buckets[#buckets + 1] = { name = name, size = size, amount = amount, level = level, pace = pace, wait = wait }
end

local answers = {}
for _, bucket in ipairs(buckets) do
  if refused == 0 and bucket.amount ~= 0 then
    bucket.level = math.min(bucket.size, bucket.level - bucket.amount)
    redis.call('HSET', key, bucket.name, string.format('%.6f %.3f', bucket.level, now))
  end
  local full = math.ceil((bucket.size - bucket.level) / bucket.pace)
  longest = math.max(longest, full)
  answers[#answers + 1] = { math.max(0, math.floor(bucket.level)), full, refused > 0 and bucket.wait or 0 }
end
if refused == 0 and pays then
  redis.call('SET', paid, '', 'PX', NONCE_MS)
end
if refused == 0 and longest > 0 then
  redis.call('PEXPIRE', key, int(longest + 60000))
end
return { refused, answers }
