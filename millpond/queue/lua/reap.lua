-- keys: job body kept result events channel counts open leases delayed deadlines dead ended suspects workers wake lane active idle weights stored delivery deliveries endpoints
-- flags: allow-oom
-- uses: clock lanes waking stored kept webhooks records missing sweep
-- ARGV: limit, options
-- -> {leases reaped, retries promoted, deadlines expired, jobs found missing}
local swept = sweep(clock_ms(), tonumber(ARGV[1]))
swept[4] = settle_missing()
return swept
