-- wrk -s requests.lua: the requests in the file named by REQUESTS, in turn. The file holds each request's length in
-- bytes on a line of its own, then the request. At the end, one line "wrk-result {...}": counts, and latencies in ms.
local requests = {}
local file = assert(io.open(os.getenv("REQUESTS"), "rb"))
while true do
  local length = file:read("*n")
  if not length then break end
  file:read(1)
  requests[#requests + 1] = file:read(length)
end

local n = 0
request = function()
  n = n % #requests + 1
  return requests[n]
end

done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('wrk-result {"requests": %d, "seconds": %.6f, "not_2xx": %d, "broken": %d',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
  for _, p in ipairs({50, 75, 90, 95, 99, 99.5, 99.9}) do
    io.write(string.format(', "p%g": %.3f', p, latency:percentile(p) / 1000))
  end
  io.write("}\n")
end
