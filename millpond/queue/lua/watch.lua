-- keys: watched
-- flags: allow-oom
-- ARGV: for_ms
-- -> 1. The workers learn it with their next heartbeat and publish their rows for so long.

redis.call('SET', K.watched, 1, 'PX', ARGV[1])
return 1
