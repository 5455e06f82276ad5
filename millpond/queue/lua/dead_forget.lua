-- keys: dead
-- flags: allow-oom
-- ARGV: id
-- -> 1, whether or not it was a dead letter
-- Its record, result and body stay until their time to live ends.

redis.call('ZREM', K.dead, ARGV[1])
return 1
