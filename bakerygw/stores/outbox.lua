-- Takes notifications that are due, in one step, and gives up what has waited too long or is too much.
--
-- KEYS  1 sorted set: when each is due (Unix ms)    2 hash: payloads
--       3 hash: whose they are, "<L leased, D doubtful, W waiting>:<failed attempts>:<lease>"
--       4 sorted set: since when those that were taken before are here (Unix ms); the others' due time says it
-- ARGV  how many; lease (ms); doubt (ms); name of the lease; most that may wait; most that one may be old (ms);
--       most bytes of a payload; most to give up at once; most that anything is put off (ms)
-- reply {how many wait, ms since the oldest came, ms until the next is due or -1,
--        {expired, overflow, unreadable: numbers}, name, payload, failed, name, payload, failed, ...}
--
-- A lease that has run out is first put in doubt: whoever holds it may have been accepted while Redis was away, and
-- gets a moment to say so before the notification is sent again.

-- What is due later than anything is ever put off was so by a clock that has been set back since: it is due now.

local due, bodies, holders, since = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local count, lease, doubt, token = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local most, max_age, max_bytes, at_once = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local longest = tonumber(ARGV[9])

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local expired, overflow, unreadable = 0, 0, 0

local function remove(name)
  redis.call('ZREM', due, name)
  redis.call('HDEL', bodies, name)
  redis.call('HDEL', holders, name)
  redis.call('ZREM', since, name)
end

local function sound(name)
  local tenant = string.match(name, '^([%w._-]+):%d+%-%d+$')
  return tenant and #tenant <= 64 and #name <= 100
end

local function oldest()
  local first, taken = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES'), redis.call('ZRANGE', since, 0, 0, 'WITHSCORES')
  if not first[1] or (taken[1] and tonumber(taken[2]) <= tonumber(first[2])) then
    first = taken
  end
  return first[1], tonumber(first[2])
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', due, now + longest, '+inf', 'LIMIT', 0, at_once)) do
  redis.call('ZADD', due, now, name)
end

local waiting = redis.call('ZCARD', due)
local name, came = oldest()
for _ = 1, at_once do
  if not name then
    break
  elseif not redis.call('ZSCORE', due, name) then
    remove(name)
  elseif waiting > most then
    remove(name)
    waiting, overflow = waiting - 1, overflow + 1
  elseif now - came > max_age then
    remove(name)
    waiting, expired = waiting - 1, expired + 1
  else
    break
  end
  name, came = oldest()
end

local found, taken = {}, 0
if count > 0 then
  local names = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'WITHSCORES', 'LIMIT', 0, count + 100)
  for at = 1, #names, 2 do
    if taken == count then
      break
    end
    local each = names[at]
    local bytes = redis.call('HSTRLEN', bodies, each)
    local state, failed, held = string.match(redis.call('HGET', holders, each) or '', '^([LDW]):(%d+):(.*)$')
    if bytes == 0 or bytes > max_bytes or not sound(each) then
      remove(each)
      waiting, unreadable = waiting - 1, unreadable + 1
    elseif state == 'L' then
      redis.call('HSET', holders, each, 'D:' .. failed .. ':' .. held)
      redis.call('ZADD', due, now + doubt, each)
    else
      redis.call('HSET', holders, each, 'L:' .. (failed or '0') .. ':' .. token)
      redis.call('ZADD', due, now + lease, each)
      redis.call('ZADD', since, 'NX', names[at + 1], each)
      found[#found + 1] = each
      found[#found + 1] = redis.call('HGET', bodies, each)
      found[#found + 1] = tonumber(failed or '0')
      taken = taken + 1
    end
  end
end

name, came = oldest()
local next = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
return {
  waiting, came and math.max(0, now - came) or 0, next[1] and math.max(0, tonumber(next[2]) - now) or -1,
  {expired, overflow, unreadable}, unpack(found),
}
