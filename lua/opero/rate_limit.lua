--- Rate limit: so many calls a second, exactly, first come first served.
--
-- A token bucket holds `burst` permits, starts full and gains `rate` of them a second. It is kept
-- here in the equivalent form of the generic cell rate algorithm (ITU-T I.371, annex A: the virtual
-- scheduling algorithm and the leaky bucket let the same cells pass), which needs no ticking. Since
-- the anchor, the time at which the bucket was last full, `count` permits were taken. So
--
--   `cost` more are there at   anchor + max(0, count - burst + cost) / rate
--   the bucket is full again at   anchor + count / rate
--
-- and once it is full, that moment, or any later one, may be the anchor. Both times are computed
-- from the anchor and never from the previous permit, so no error of rounding adds up: n calls in
-- a row take (n - burst) / rate.
--
-- Those who find no permit stand in line before a turnstile. The first of them sleeps until the
-- permits it needs are there and takes them only then; if cancelled it takes nothing and lets the
-- next one come.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local events = require "opero.events"
local outcome = require "opero.outcome"

---@class opero.RateLimitConfig
---@field rate number calls a second; required, > 0
---@field burst integer? how many may come at once after a pause; default 1
---@field mode "wait"|"reject"? what becomes of a call when there is no permit: it waits (default),
---  or fails at once with a RateLimitError
---@field max_wait number? seconds; a call that would wait longer fails at once; default: no limit
---@field key (fun(...): any)? of the arguments of a call: a bucket for each key; default: one for
---  all
---@field max_keys integer? of so many keys at most the state is kept, unless more are in use;
---  default 10000
---@field cost (fun(...): number)? how many permits a call takes, > 0 and at most `burst`; default 1

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
    mode = { type = "enum", values = { "wait", "reject" }, default = "wait" },
    max_wait = { type = "number", min = 0 },
    key = { check = check.callable },
    max_keys = { type = "integer", min = 1, default = 10000 },
    cost = { check = check.callable },
  },
  verify = function(options, path)
    if options.mode == "reject" and options.max_wait then
      check.fail(check.join(path, "max_wait"), options.max_wait,
        'nothing beside mode = "reject", which never waits')
    end
  end,
}

--- Checks and completes a table of options. Raises ConfigError.
---@type fun(given: opero.RateLimitConfig): opero.RateLimitConfig
rate_limit.config = check.constructor("RateLimitConfig", rate_limit.options)

---@class opero.RateLimiter
---@field config opero.RateLimitConfig completed
local methods = {}
local limiter_mt = { __name = "opero.RateLimiter", __index = methods }

-- ---- one bucket ---------------------------------------------------------------------------------

local function new_bucket()
  local bucket = {
    anchor = now(), count = 0, waiting = 0, waiting_cost = 0, turnstile = nil, last_used = 0,
  }
  -- Closing these gives the place in line back, whatever ends the wait.
  bucket.pass = setmetatable({}, {
    __close = function()
      bucket.turnstile:release()
    end,
  })
  return bucket
end

local place_mt = {
  __close = function(place)
    local bucket = place.bucket
    bucket.waiting = bucket.waiting - 1
    -- Of an empty line exactly nothing: no error of rounding stays.
    bucket.waiting_cost = bucket.waiting > 0 and bucket.waiting_cost - place.cost or 0
  end,
}

-- Seconds until `cost` permits are there; zero or less when they are.
local function time_until(config, bucket, cost)
  local owed = bucket.count - config.burst + cost
  return owed > 0 and bucket.anchor + owed / config.rate - now() or 0
end

-- The same for one who takes them then. A bucket that has been full for longer than `slack` gets a
-- new anchor.
local function wait_of(config, bucket, cost, slack)
  local time = now()
  if time - (bucket.anchor + bucket.count / config.rate) > slack then
    bucket.anchor, bucket.count = time, 0
    return 0
  end
  return time_until(config, bucket, cost)
end

local function is_idle(config, bucket)
  return bucket.waiting == 0
    and bucket.anchor + bucket.count / config.rate - now() < NANOSECOND
end

-- ---- all of a limiter ---------------------------------------------------------------------------

-- What belongs to one clock. Under another one, a simulation's, the limiter starts afresh: its
-- times mean nothing there, nor do those who wait.
local function refresh(limiter)
  limiter.epoch = epoch()
  limiter.single = new_bucket()
  limiter.buckets, limiter.count, limiter.room_at = {}, 0, 0
end

-- Full buckets that nobody waits at are as good as new ones. They go until half of all there may be
-- is left, the ones first that were not used for longest.
local function make_room(limiter)
  local idle = {}
  for key, bucket in pairs(limiter.buckets) do
    if is_idle(limiter.config, bucket) then
      idle[#idle + 1] = { key, bucket.last_used }
    end
  end
  table.sort(idle, function(a, b)
    return a[2] < b[2]
  end)
  for i = 1, math.min(#idle, limiter.count - limiter.config.max_keys // 2) do
    limiter.buckets[idle[i][1]] = nil
    limiter.count = limiter.count - 1
  end
  limiter.room_at = limiter.uses + limiter.count -- where most are in use: not again at once
end

-- To be looked at: nothing is kept of a key by that.
local function peek(limiter, key)
  if limiter.epoch ~= epoch() then
    refresh(limiter)
  end
  if key == nil or key ~= key then -- NaN is no key
    return limiter.single
  end
  return limiter.buckets[key] or new_bucket()
end

local function bucket_of(limiter, key)
  local bucket = peek(limiter, key)
  if bucket == limiter.single then
    return bucket
  end
  limiter.uses = limiter.uses + 1
  bucket.last_used = limiter.uses
  if limiter.buckets[key] ~= bucket then
    if limiter.count >= limiter.config.max_keys and limiter.uses >= limiter.room_at then
      make_room(limiter)
    end
    limiter.buckets[key] = bucket
    limiter.count = limiter.count + 1
  end
  return bucket
end

local function check_cost(limiter, cost)
  if cost == nil then
    return 1
  elseif type(cost) ~= "number" or cost ~= cost or cost <= 0 or cost > limiter.config.burst then
    check.fail("rate_limit_config.cost", cost,
      ("a number > 0 and at most burst, which is %d"):format(limiter.config.burst))
  end
  return cost
end

local function try(limiter, bucket, cost)
  if bucket.waiting > 0 or wait_of(limiter.config, bucket, cost, NANOSECOND) >= NANOSECOND then
    return false
  end
  bucket.count = bucket.count + cost
  return true
end

-- How long a call that comes now would wait.
local function estimate(limiter, bucket, cost)
  return math.max(0, time_until(limiter.config, bucket, bucket.waiting_cost + cost))
end

local function wait_in_line(limiter, bucket, cost, key, told)
  local wait = estimate(limiter, bucket, cost)
  bucket.turnstile = bucket.turnstile or core.semaphore(1)
  bucket.waiting, bucket.waiting_cost = bucket.waiting + 1, bucket.waiting_cost + cost
  local _ <close> = setmetatable({ bucket = bucket, cost = cost }, place_mt)
  if told:note("rate_limited") then
    told:tell("rate_limited", { rate = limiter.config.rate, wait = wait, key = key })
  end
  bucket.turnstile:acquire()
  local _ <close> = bucket.pass
  -- While there is a line the bucket is never full, but a sleeper is woken a little late by the
  -- machine. Its permit counts from when it was due all the same, or the lateness of each would
  -- add up and a high rate never be reached. After a longer stop the bucket is just full: what was
  -- missed must not come all at once.
  local config = limiter.config
  local slack = math.max(LATENESS, 1 / config.rate)
  wait = wait_of(config, bucket, cost, slack)
  while wait >= NANOSECOND do
    core.sleep(wait)
    wait = wait_of(config, bucket, cost, slack)
  end
  bucket.count = bucket.count + cost
end

local function refusal(limiter, wait, key)
  return errors.RateLimitError(
    ("the rate limit of %s a second is reached: a permit would be there in %.3f s"):format(
      limiter.config.rate, wait),
    { retry_after = wait, key = key })
end

-- Takes permits, or returns the error.
local function acquire(limiter, bucket, cost, key, told)
  if try(limiter, bucket, cost) then
    return nil
  end
  local config = limiter.config
  if config.mode == "reject" or config.max_wait then
    local wait = estimate(limiter, bucket, cost)
    if config.mode == "reject" or wait > config.max_wait + NANOSECOND then
      if told:note("rate_rejected") then
        told:tell("rate_rejected", { rate = config.rate, retry_after = wait, key = key })
      end
      return refusal(limiter, wait, key)
    end
  end
  wait_in_line(limiter, bucket, cost, key, told)
  return nil
end

-- ---- what users see of it -----------------------------------------------------------------------

--- Takes permits, waiting for them as the mode says. Raises RateLimitError (retry_after, key).
---@param cost number? default 1
---@param key any?
function methods:acquire(cost, key)
  cost = check_cost(self, cost)
  local err = acquire(self, bucket_of(self, key), cost, key, events.default)
  if err then
    error(err)
  end
end

--- Takes permits if they are there and nobody waits for them.
---@param cost number? default 1
---@param key any?
---@return boolean taken
function methods:try_acquire(cost, key)
  cost = check_cost(self, cost)
  return try(self, bucket_of(self, key), cost)
end

---@class opero.RateLimiterStats
---@field available number permits that are there now
---@field waiting integer those in line
---@field keys integer of which there is a state

---@param key any?
---@return opero.RateLimiterStats
function methods:stats(key)
  local bucket, config = peek(self, key), self.config
  local missing = math.max(0, bucket.count - (now() - bucket.anchor) * config.rate)
  return {
    available = math.max(0, config.burst - missing),
    waiting = bucket.waiting,
    keys = self.count,
  }
end

--- Makes a limiter of completed options.
---@param config opero.RateLimitConfig
---@return opero.RateLimiter
function rate_limit.from(config)
  return setmetatable({ config = config, uses = 0 }, limiter_mt)
end

--- Makes a limiter; it may be given to several orchestrators in place of options. Raises
--- ConfigError.
---@param given opero.RateLimitConfig
---@return opero.RateLimiter
function rate_limit.new(given)
  return rate_limit.from(check.options(rate_limit.options, given, "RateLimiter"))
end

--- The option `rate_limit_config`: options, or a limiter.
---@type opero.check.Field
rate_limit.field = {
  check = function(value, path)
    return getmetatable(value) == limiter_mt and value
      or check.options(rate_limit.options, value, path)
  end,
}

--- Wraps a layer.
---@param config opero.RateLimitConfig|opero.RateLimiter completed, or a limiter
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function rate_limit.layer(config, next_layer, told)
  local limiter = getmetatable(config) == limiter_mt and config or rate_limit.from(config)
  told = told or events.default
  config = limiter.config
  local key_of, cost_of = config.key, config.cost

  if not key_of and not cost_of then
    return function(fn, ...)
      local bucket = limiter.single
      if limiter.epoch ~= epoch() then
        bucket = bucket_of(limiter)
      end
      if not try(limiter, bucket, 1) then
        local ok, err = pcall(acquire, limiter, bucket, 1, nil, told)
        if not ok or err then
          return false, err
        end
      end
      return next_layer(fn, ...)
    end
  end
  return outcome.protected(function(fn, ...)
    local key = key_of and key_of(...)
    local cost = check_cost(limiter, cost_of and cost_of(...))
    local err = acquire(limiter, bucket_of(limiter, key), cost, key, told)
    if err then
      return false, err
    end
    return next_layer(fn, ...)
  end)
end

return rate_limit
