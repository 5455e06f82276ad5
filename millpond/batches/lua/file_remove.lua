-- keys: file files parts expiring doomed uploaded
-- flags: allow-oom
-- uses: clock doomed
-- ARGV: id, tenant
-- -> 'none', 'growing' for the output of a batch that runs, or 'removed'

local id = ARGV[1]
local record = redis.call('HMGET', K.file .. id, 'tenant', 'growing')
if record[1] ~= ARGV[2] then
  return 'none'
end
if record[2] then
  return 'growing'
end
remove_file(id, clock_ms())
return 'removed'
