-- keys: delivery deliveries endpoints
-- flags: allow-oom
-- uses: clock webhooks
-- ARGV: subject, tenant, type, at (ms), url of a receiver of its own or '', data as JSON
-- -> how many deliveries of it are pending
-- For events that are no job's: those of a job are announced by the script that ends it. Made again, it
-- adds nothing that is pending; what was delivered is delivered again, under the same webhook-id.

local subject, tenant, kind, at, url = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
if url ~= '' and redis.call('EXISTS', K.delivery .. 'url/' .. subject) == 0 then
  name_receiver(subject, url)
end
local names = announce(subject, tenant, kind, url ~= '', at)
for _, name in ipairs(names) do
  redis.call('HSET', K.delivery .. name, 'data', ARGV[6])
end
return #names
