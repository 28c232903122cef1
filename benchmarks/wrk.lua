-- For wrk: so many requests in one piece on each connection, and the figures as one line of
-- JSON. `wrk ... -s wrk.lua URL -- 16` pipelines 16.

local pipelined

function init(arguments)
   local requests = {}
   for i = 1, tonumber(arguments[1]) do
      requests[i] = wrk.format("GET", "/plaintext")
   end
   pipelined = table.concat(requests)
end

function request()
   return pipelined
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\nREPORT {"requests": %d, "elapsed_us": %d, "p50_us": %d, "p99_us": %d, "errors": %d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
