-- keys: endpoint endpoint_ids endpoints
-- flags: allow-oom
-- ARGV: endpoint id
-- -> 1; 0 when there is no such endpoint. What is pending for it is dropped when it is due.

local tenant = redis.call('HGET', K.endpoint .. ARGV[1], 'tenant')
redis.call('SREM', K.endpoint_ids, ARGV[1])
redis.call('UNLINK', K.endpoint .. ARGV[1])
if not tenant then
  return 0
end
redis.call('HDEL', K.endpoints .. tenant, ARGV[1])
return 1
