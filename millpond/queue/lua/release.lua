-- keys: job body kept result events channel counts open leases delayed deadlines dead ended suspects wake lane active idle weights stored delivery deliveries endpoints
-- flags: allow-oom
-- uses: clock lanes waking stored kept webhooks records
-- ARGV: id, fence for each job, then options
-- -> number of jobs put back. The attempt is refunded: the worker, not the job, had to stop.

local released, now = 0, clock_ms()
for i = 1, #ARGV - 2, 2 do
  local record = redis.call('HMGET', K.job .. ARGV[i], 'status', 'fence')
  if record[1] == 'running' and record[2] == ARGV[i + 1] then
    if take_back(ARGV[i], now, true, 'released') then
      to_lane(ARGV[i])
      released = released + 1
    end
  end
end
return released
