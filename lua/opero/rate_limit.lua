--- Rate limit: so many calls a second, exactly, first come first served.
--
-- A token bucket holds `burst` permits, starts full and gains `rate` of them a second. It is kept
-- here in the equivalent form of the generic cell rate algorithm (ITU-T I.371, annex A: the virtual
-- scheduling algorithm and the leaky bucket let the same cells pass), which needs no ticking. Since
-- the anchor, the time at which the bucket was last full, `count` permits were taken. So
--
--   the next one is there at   anchor + max(0, count - burst + 1) / rate
--   the bucket is full again at   anchor + count / rate
--
-- and once it is full, that moment, or any later one, may be the anchor. Both times are computed
-- from the anchor and never from the previous permit, so no error of rounding adds up: n calls in
-- a row take (n - burst) / rate.
--
-- Those who find no permit stand in line before a turnstile. The first of them sleeps until the
-- next permit is there and takes it only then; if cancelled it takes nothing and lets the next one
-- come.

local check = require "opero.check"
local core = require "opero.core"
local report = require "opero.report"

---@class opero.RateLimitConfig
---@field rate number calls a second; required, > 0
---@field burst integer? how many may come at once after a pause; default 1

local rate_limit = {}

local now, epoch = core.now, core.epoch

-- The clock's resolution: no difference below it means anything.
local NANOSECOND <const> = 1e-9

-- How late the machine may wake a sleeper before permits are lost by it.
local LATENESS <const> = 1e-3

---@type opero.check.Spec
rate_limit.options = {
  fields = {
    rate = { type = "number", above = 0, required = true },
    burst = { type = "integer", min = 1, default = 1 },
  },
}

--- The option `rate_limit_config`.
---@type opero.check.Field
rate_limit.field = { type = "options", options = rate_limit.options }

--- Checks and completes a table of options. Raises ConfigError.
---@type fun(given: opero.RateLimitConfig): opero.RateLimitConfig
rate_limit.config = check.constructor("RateLimitConfig", rate_limit.options)

local limiter_methods = {}
local limiter_mt = { __name = "opero.RateLimiter", __index = limiter_methods }

-- What belongs to one clock. Under another one, a simulation's, the limiter starts afresh: its
-- times mean nothing there, nor do those who wait.
local function bucket_of(limiter)
  local bucket = limiter.bucket
  if not bucket or bucket.epoch ~= epoch() then
    bucket = { epoch = epoch(), anchor = now(), count = 0, waiting = 0, turnstile = nil }
    -- Closing these gives the place in line back, whatever ends the wait.
    bucket.place = setmetatable({}, {
      __close = function()
        bucket.waiting = bucket.waiting - 1
      end,
    })
    bucket.pass = setmetatable({}, {
      __close = function()
        bucket.turnstile:release()
      end,
    })
    limiter.bucket = bucket
  end
  return bucket
end

-- Seconds until the next permit is there; zero or less when it is. A bucket that has been full for
-- longer than `slack` gets a new anchor.
local function wait_of(limiter, bucket, slack)
  local time, rate, anchor, count = now(), limiter.rate, bucket.anchor, bucket.count
  if time - (anchor + count / rate) > slack then
    bucket.anchor, bucket.count = time, 0
    return 0
  end
  local owed = count - limiter.burst + 1
  return owed > 0 and anchor + owed / rate - time or 0
end

--- Takes a permit if one is there and nobody waits for it.
---@return boolean taken
function limiter_methods:try_acquire()
  local bucket = bucket_of(self)
  if bucket.waiting > 0 or wait_of(self, bucket, NANOSECOND) >= NANOSECOND then
    return false
  end
  bucket.count = bucket.count + 1
  return true
end

--- Waits in line for a permit and takes it; for those to whom try_acquire gave none.
function limiter_methods:wait()
  local bucket = bucket_of(self)
  bucket.turnstile = bucket.turnstile or core.semaphore(1)
  bucket.waiting = bucket.waiting + 1
  local _ <close> = bucket.place
  bucket.turnstile:acquire()
  local _ <close> = bucket.pass
  -- While there is a line the bucket is never full, but a sleeper is woken a little late by the
  -- machine. Its permit counts from when it was due all the same, or the lateness of each would
  -- add up and a high rate never be reached. After a longer stop the bucket is just full: what was
  -- missed must not come all at once.
  local slack = math.max(LATENESS, 1 / self.rate)
  local wait = wait_of(self, bucket, slack)
  while wait >= NANOSECOND do
    core.sleep(wait)
    wait = wait_of(self, bucket, slack)
  end
  bucket.count = bucket.count + 1
end

--- Makes a limiter of its own state.
---@param config opero.RateLimitConfig completed
---@return table limiter
function rate_limit.limiter(config)
  return setmetatable({ rate = config.rate, burst = config.burst, bucket = nil }, limiter_mt)
end

--- Wraps a layer.
---@param config opero.RateLimitConfig completed
---@param next_layer opero.Layer
---@param told opero.Report? default: the logger "opero" is told
---@return opero.Layer
function rate_limit.layer(config, next_layer, told)
  told = told or report.default
  local limiter = rate_limit.limiter(config)
  return function(fn, ...)
    if not limiter:try_acquire() then
      if told.enabled("debug") then
        told.tell("debug", "rate limit reached, will wait", { rate = config.rate })
      end
      local ok, err = pcall(limiter.wait, limiter)
      if not ok then
        return false, err
      end
    end
    return next_layer(fn, ...)
  end
end

return rate_limit
