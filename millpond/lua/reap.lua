-- keys: job body result events channel counts open leases delayed deadlines dead suspects workers wake lane active idle weights
-- flags: allow-oom
-- uses: clock lanes waking records sweep
-- ARGV: limit, options
-- -> {leases reaped, retries promoted, deadlines expired}
return sweep(clock_ms(), tonumber(ARGV[1]))
