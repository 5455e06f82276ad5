-- keys: job body kept result events channel counts open leases delayed deadlines dead ended suspects wake lane active idle weights stored delivery deliveries endpoints
-- flags: allow-oom
-- uses: clock lanes waking stored kept webhooks records
-- ARGV: id, fence, result if this was its last attempt, for each job that a broken engine ran; then options
-- -> number of jobs whose lease was still held

local held, results = {}, {}
for i = 1, #ARGV - 3, 3 do
  local record = redis.call('HMGET', K.job .. ARGV[i], 'status', 'fence')
  if record[1] == 'running' and record[2] == ARGV[i + 1] then
    held[#held + 1] = ARGV[i]
    results[ARGV[i]] = ARGV[i + 2]
  end
end
if #held > 0 then
  local now = clock_ms()
  isolate(held, now, 'failed', function(id)
    if tonumber(redis.call('HGET', K.job .. id, 'attempts')) >= OPTIONS.max_attempts then
      bury(id, 'running', results[id], now)
    elseif take_back(id, now, false, 'failed') then
      to_suspects({ id }, now)
    end
  end)
end
return #held
