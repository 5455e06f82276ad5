-- keys: counts
-- ARGV: none
-- -> 0 or 1, which means nothing; nothing is changed
-- A script without flags is refused by a server that would refuse a new job: a replica, a full one, one
-- that cannot save.
return redis.call('EXISTS', K.counts)
