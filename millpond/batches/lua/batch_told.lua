-- keys: untold
-- flags: allow-oom
-- ARGV: id
-- -> 1. Harmless when repeated.

redis.call('SREM', K.untold, ARGV[1])
return 1
