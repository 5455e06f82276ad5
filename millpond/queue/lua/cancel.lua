-- keys: job body kept result events channel counts open leases delayed deadlines dead ended suspects wake lane active idle weights stored delivery deliveries endpoints
-- flags: allow-oom
-- uses: clock lanes waking stored kept webhooks records
-- ARGV: id, tenant or '' for any, options
-- -> the status now, or false when there is no such job. A running job is flagged: its worker ends it.

local id = ARGV[1]
local record = redis.call('HMGET', K.job .. id, 'status', 'tenant')
if not record[1] or (ARGV[2] ~= '' and record[2] ~= ARGV[2]) then
  return false
end
if record[1] == 'queued' then
  end_cancelled(id, 'queued', clock_ms())
  return 'cancelled'
end
if record[1] == 'running' then
  redis.call('HSET', K.job .. id, 'cancel', '1')
end
return record[1]
