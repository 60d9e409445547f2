-- Takes tokens for many requests and reads tenants' flags and tokens' revocations, in one step on Redis' own clock.
-- The arithmetic is that of core/limits.py; both are held to the same results by the tests.
--
-- KEYS  four per tenant: changed_at, read_only, demo, its limit for a time;
--       then one per bucket in the order of the requests;
--       then one per token: its revocation
-- ARGV  the number of tenants; the number of rules;
--       for each rule its cost and capacity in microseconds and whether it is a shadow (1);
--       then for each request the number of its buckets, or -1 less that number to look and take nothing,
--       and for each of those its rule, counted from 1; -n: what the limit for a time of the n-th tenant says
-- reply for each bucket: microseconds until full, microseconds until it has a token (0: it had one);
--       and with a limit for a time its requests (0: there is none), window in seconds, shadow (1), end in Unix seconds;
--       then for each tenant: changed_at, read_only (nil: absent), demo (1: present), the limit for a time (nil: none),
--       and the milliseconds until the first of these expires (-1: none does);
--       then for each token the milliseconds until its revocation expires (-1: it does not; -2: not revoked)

local CHANGED_AT_BYTES, READ_ONLY_BYTES, LIMIT_BYTES = 64, 2048, 1024
local MAX_REQUESTS, MAX_WINDOW_S, LATEST_S = 1000000, 86400, 253402300800

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local tenants, rules, at = tonumber(ARGV[1]), {}, 3
for i = 1, tonumber(ARGV[2]) do
  rules[i] = {tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'}
  at = at + 3
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

-- A tenant's limit for a time in the form that core/flags.py reads; nil for anything else, and if it has ended.
local function limit_for_a_time(value)
  if not value or #value > LIMIT_BYTES then
    return nil
  end
  local requests, window, shadow, ends, rest = string.match(value, '^(%d+) (%d+) ([01]) (%d+)(.*)$')
  if not requests or #requests > 7 or #window > 5 or #ends > 12 or (rest ~= '' and string.sub(rest, 1, 1) ~= ' ') then
    return nil
  end
  requests, window, ends = tonumber(requests), tonumber(window), tonumber(ends)
  if requests < 1 or requests > MAX_REQUESTS or window < 1 or window > MAX_WINDOW_S then
    return nil
  end
  if ends * 1000000 <= now or ends >= LATEST_S then
    return nil
  end
  local cost = math.ceil(window * 1000000 / requests)
  return {cost, requests * cost, shadow == '1', requests, window, ends, value}
end

local limits = {}
for i = 1, tenants do
  limits[i] = limit_for_a_time(bounded(KEYS[4 * i], LIMIT_BYTES, false)) or false
end

-- When the bucket is full again; what is no moment (another type, other text) counts as a full bucket.
local function stored_full_at(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'string' and #value <= 16 and string.find(value, '^%d+$') then
    return tonumber(value)
  end
  return 0
end

local reply, key, last = {}, 4 * tenants + 1, #ARGV
while at <= last do
  local count = tonumber(ARGV[at])
  local takes = count >= 0
  if not takes then
    count = -1 - count
  end
  local passes, asked = true, {}
  for i = 1, count do
    local number = tonumber(ARGV[at + i])
    local rule
    if number > 0 then
      rule = rules[number]
    else
      rule = limits[-number]
    end
    if rule then
      local stored = stored_full_at(KEYS[key + i - 1])
      local ahead = math.min(math.max(stored - now, 0), rule[2])
      local lack = math.max(ahead + rule[1] - rule[2], 0)
      if lack > 0 and not rule[3] then
        passes = false
      end
      asked[i] = {stored, ahead, lack, rule[1], rule}
    else
      asked[i] = {0, 0, 0, 0, false}
    end
  end
  for i = 1, count do
    local stored, ahead, lack, left = asked[i][1], asked[i][2], asked[i][3], asked[i][2]
    if takes and passes and lack == 0 then
      left = ahead + asked[i][4]
    end
    -- A refused request writes nothing, unless the clock was set back and the old moment would lock the bucket.
    if takes and asked[i][5] and (left ~= ahead or now + left < stored) then
      redis.call('SET', KEYS[key + i - 1], string.format('%.0f', now + left), 'PX',
                 string.format('%.0f', math.ceil(left / 1000)))
    end
    reply[#reply + 1] = left
    reply[#reply + 1] = lack
    if tonumber(ARGV[at + i]) < 0 then
      local rule = asked[i][5]
      reply[#reply + 1] = rule and rule[4] or 0
      reply[#reply + 1] = rule and rule[5] or 0
      reply[#reply + 1] = rule and rule[3] and 1 or 0
      reply[#reply + 1] = rule and rule[6] or 0
    end
  end
  key = key + count
  at = at + count + 1
end

-- The sooner of `left` milliseconds and the expiry of a key; below zero there is none.
local function sooner(left, name)
  local its = redis.call('PTTL', name)
  if its >= 0 and (left < 0 or its < left) then
    return its
  end
  return left
end

for i = 1, tenants do
  local first, limit = 4 * i - 3, limits[i]
  local changed_at = bounded(KEYS[first], CHANGED_AT_BYTES, '?')
  local read_only = bounded(KEYS[first + 1], READ_ONLY_BYTES, '')
  local demo = redis.call('EXISTS', KEYS[first + 2])
  local left = -1
  if changed_at then
    left = sooner(left, KEYS[first])
  end
  if read_only then
    left = sooner(left, KEYS[first + 1])
  end
  if demo == 1 then
    left = sooner(left, KEYS[first + 2])
  end
  if limit then
    local ends = math.ceil((limit[6] * 1000000 - now) / 1000)
    left = sooner(left, KEYS[first + 3])
    if left < 0 or ends < left then
      left = ends
    end
  end
  reply[#reply + 1] = changed_at
  reply[#reply + 1] = read_only
  reply[#reply + 1] = demo
  reply[#reply + 1] = limit and limit[7]
  reply[#reply + 1] = left
end

for i = key, #KEYS do
  reply[#reply + 1] = redis.call('PTTL', KEYS[i])
end

return reply
