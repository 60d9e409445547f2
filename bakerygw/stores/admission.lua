-- Takes tokens for many requests and reads tenants' flags and tokens' revocations, in one step on Redis' own clock.
-- The arithmetic is that of core/limits.py; both are held to the same results by the tests.
--
-- KEYS  one per bucket in the order of the requests; then three per tenant: changed_at, read_only, demo;
--       then one per token: its revocation
-- ARGV  the number of tenants; the number of rules;
--       for each rule its cost and capacity in microseconds and whether it is a shadow (1);
--       then for each request the number of its buckets and for each of those its rule, counted from 1
-- reply for each bucket: microseconds until full, microseconds until it has a token (0: it had one);
--       then for each tenant: changed_at, read_only (nil: absent), demo (1: present), and the milliseconds
--       until the first of these expires (-1: none does);
--       then for each token the milliseconds until its revocation expires (-1: it does not; -2: not revoked)

local CHANGED_AT_BYTES, READ_ONLY_BYTES = 64, 2048

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local tenants, rules, at = tonumber(ARGV[1]), {}, 3
for i = 1, tonumber(ARGV[2]) do
  rules[i] = {tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'}
  at = at + 3
end

-- When the bucket is full again; what is no moment (another type, other text) counts as a full bucket.
local function stored_full_at(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'string' and #value <= 16 and string.find(value, '^%d+$') then
    return tonumber(value)
  end
  return 0
end

local reply, key, last = {}, 1, #ARGV
while at <= last do
  local count = tonumber(ARGV[at])
  local passes, asked = true, {}
  for i = 1, count do
    local rule = rules[tonumber(ARGV[at + i])]
    local stored = stored_full_at(KEYS[key + i - 1])
    local ahead = math.min(math.max(stored - now, 0), rule[2])
    local lack = math.max(ahead + rule[1] - rule[2], 0)
    if lack > 0 and not rule[3] then
      passes = false
    end
    asked[i] = {stored, ahead, lack, rule[1]}
  end
  for i = 1, count do
    local stored, ahead, lack, left = asked[i][1], asked[i][2], asked[i][3], asked[i][2]
    if passes and lack == 0 then
      left = ahead + asked[i][4]
    end
    -- A refused request writes nothing, unless the clock was set back and the old moment would lock the bucket.
    if left ~= ahead or now + left < stored then
      redis.call('SET', KEYS[key + i - 1], string.format('%.0f', now + left), 'PX',
                 string.format('%.0f', math.ceil(left / 1000)))
    end
    reply[#reply + 1] = left
    reply[#reply + 1] = lack
  end
  key = key + count
  at = at + count + 1
end

-- The value's first bytes, one more than `limit` so that the reader can tell; false if there is none.
local function bounded(name, limit, wrong_type)
  local value = redis.pcall('GETRANGE', name, 0, limit)
  if type(value) ~= 'string' then
    return wrong_type
  end
  if value == '' and redis.call('EXISTS', name) == 0 then
    return false
  end
  return value
end

-- The sooner of `left` milliseconds and the expiry of a key; below zero there is none.
local function sooner(left, name)
  local its = redis.call('PTTL', name)
  if its >= 0 and (left < 0 or its < left) then
    return its
  end
  return left
end

for _ = 1, tenants do
  local changed_at = bounded(KEYS[key], CHANGED_AT_BYTES, '?')
  local read_only = bounded(KEYS[key + 1], READ_ONLY_BYTES, '')
  local demo = redis.call('EXISTS', KEYS[key + 2])
  local left = -1
  if changed_at then
    left = sooner(left, KEYS[key])
  end
  if read_only then
    left = sooner(left, KEYS[key + 1])
  end
  if demo == 1 then
    left = sooner(left, KEYS[key + 2])
  end
  reply[#reply + 1] = changed_at
  reply[#reply + 1] = read_only
  reply[#reply + 1] = demo
  reply[#reply + 1] = left
  key = key + 3
end

for i = key, #KEYS do
  reply[#reply + 1] = redis.call('PTTL', KEYS[i])
end

return reply
