-- keys: batch
-- flags: allow-oom
-- uses: clock
-- ARGV: id, tenant
-- -> false if there is no such batch, else its status afterwards

local batch = K.batch .. ARGV[1]
local record = redis.call('HMGET', batch, 'tenant', 'status')
if record[1] ~= ARGV[2] then
  return false
end
if record[2] == 'validating' or record[2] == 'in_progress' then
  redis.call('HSET', batch, 'status', 'cancelling', 'at:cancelling', int(clock_ms()))
  return 'cancelling'
end
return record[2]
