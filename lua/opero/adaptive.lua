--- Limits of concurrency that adapt to what the other side can take.
--
-- `aimd`, additive increase, multiplicative decrease, as TCP has it (Chiu and Jain, 1989), goes by
-- failures. `gradient` goes by how long calls take, after Netflix's concurrency-limits (Gradient2)
-- and BBR (Cardwell et al., 2016).
--
-- The numbers below were found in simulation (spec/policies/adaptive_spec.lua has some of it) of
-- servers for 3 to 100 calls at once. Where the times of calls differ by up to a half from their
-- mean, the limit is on average within a tenth of what the server takes; where they are
-- exponentially distributed, within a fifth, most of the time.

local core = require "opero.core"

local adaptive = {}

--- The names of the algorithms.
adaptive.algorithms = { "aimd", "gradient" }

---@class opero.adaptive.Limit
---@field limit number in force; whole permits are its floor
---@field phase table? what is being found out
---@field sample fun(self, call: opero.adaptive.Call) a call has ended

---@class opero.adaptive.Call
---@field seconds number it took
---@field failed boolean
---@field in_flight integer calls under way when it ended, itself included
---@field limit number in force when it began
---@field phase table? the limit's when it began

-- ---- aimd ---------------------------------------------------------------------------------------

-- A failure takes a tenth: the limit is then between 0.9 and 1 of what the other side takes. TCP's
-- half would leave a quarter of it unused.
local DECREASE <const> = 0.9

-- Each success while the limit is used up raises it by its inverse, so all of a round by 1; before
-- the first failure by 1, so that it doubles in each round. A failure lowers it, but one of a call
-- that began before it was lowered says nothing about the new one.
local function aimd(min, max)
  local limit = { limit = min }
  local lowered_at, is_starting = -math.huge, true

  function limit:sample(call)
    local time = core.now()
    if call.failed then
      is_starting = false
      if time - call.seconds >= lowered_at then
        self.limit = math.max(min, self.limit * DECREASE)
        lowered_at = time
      end
    elseif call.in_flight >= self.limit // 1 then
      self.limit = math.min(max, self.limit + (is_starting and 1 or 1 / self.limit))
    end
  end
  return limit
end

-- ---- gradient -----------------------------------------------------------------------------------

-- With a limit L that is used up, and a side that works at C calls at once, they take
-- S * max(1, L / C), where S is what they take without a queue. So C follows from S, L and what
-- they take now, as long as there is a queue. The limit is kept a little above C: the small queue
-- of that shows where C is, and its absence that C has grown.

-- That queue, as a part of the limit. Where it is less than one call the limit is C, in whole
-- permits, for most of the time, and C + 1 for the rest.
local QUEUE <const> = 0.04
-- The least one; or limits of one or two would take very long to grow.
local LEAST_QUEUE <const> = 0.2

-- What calls take now is the average of as many as the limit lets through at once, but of so many
-- at least: with fewer it would be more noise than queue.
local WINDOW <const> = 20

-- S is measured with half the limit, where there can be no queue: for two rounds of calls (of one
-- alone the first to end would be the shorter ones), but so many at least ...
local ROUND <const> = 10
-- ... and so many where nothing is known of it, or what was known has to be forgotten.
local THOROUGH <const> = 100
-- For each call of a probe so many others: it costs a fortieth of the calls.
local PROBE_EVERY <const> = 40

-- Between S and what calls take now there is no more than QUEUE. An S that seems less than it is by
-- more than that would pull the limit far below C. Hence the mean of so many calls ...
local MEMORY <const> = 500
-- ... and so many of its standard errors are added to it.
local DOUBT <const> = 1

-- At first the limit doubles in each round, until calls take so much longer than before.
local START_TOLERANCE <const> = 1.5

-- A probe whose mean is further from it than so many standard errors shows that it is another S.
local SURPRISE <const> = 3

-- What seems to be C is taken to be within these parts of the limit: no outlier moves it further.
local LEAST_QUOTIENT <const>, GREATEST_QUOTIENT <const> = 0.5, 1.5

local function gradient(min, max)
  local limit = { limit = min, phase = { is_start = true, calls = 0, seconds = 0 } }
  local base, variance, base_calls = nil, 0, 0 -- S, and by how many calls it was found
  local seconds_now, limit_now                 -- of the last calls, and the limit they began with
  local measured, since_probe, probed_at = 0, 0, min

  local function set(value)
    limit.limit = math.max(min, math.min(max, value))
  end

  local function half()
    return math.max(min, limit.limit // 2)
  end

  local function learn(seconds)
    base_calls = math.min(base_calls + 1, MEMORY)
    if base_calls == 1 then
      base, variance = seconds, 0
    else
      local difference = seconds - base
      base = base + difference / base_calls
      variance = variance + (difference * (seconds - base) - variance) / base_calls
    end
  end

  local function probe(calls)
    limit.phase = { left = calls, calls = 0, seconds = 0, resumed = limit.limit }
    since_probe, probed_at = 0, limit.limit
    limit.limit = half()
  end

  local function probe_afresh()
    base_calls = 0
    probe(math.max(THOROUGH, 2 * half()))
  end

  local function start(phase, call)
    if phase ~= limit.phase then
      return -- it began with a lower limit
    end
    phase.calls, phase.seconds = phase.calls + 1, phase.seconds + call.seconds
    phase.is_used = phase.is_used or call.in_flight >= limit.limit // 1
    if phase.calls < math.max(ROUND, limit.limit) then
      return
    end
    local mean = phase.seconds / phase.calls
    if base and mean > START_TOLERANCE * base or limit.limit >= max then
      set(limit.limit * math.min(1, (base or mean) / mean))
      probe_afresh()
      return
    end
    learn(mean)
    limit.phase = { is_start = true, calls = 0, seconds = 0 }
    if phase.is_used then
      set(limit.limit * 2)
    end
  end

  -- Those that end after the probe in which they began count as well: they are the longer ones.
  local function probed(phase, call)
    phase.calls, phase.seconds = phase.calls + 1, phase.seconds + call.seconds
    if phase.calls == phase.left then
      local mean = phase.seconds / phase.calls
      if math.abs(mean - base) > SURPRISE * math.sqrt(variance / phase.calls) then
        base, base_calls = mean, phase.calls - 1
      end
      limit.limit, limit.phase = phase.resumed, nil
    end
    learn(call.seconds)
  end

  local function adapt(call)
    local quotient = (base + DOUBT * math.sqrt(variance / base_calls)) / seconds_now
    quotient = math.max(LEAST_QUOTIENT, math.min(GREATEST_QUOTIENT, quotient))
    local wanted = limit_now * quotient + math.max(LEAST_QUEUE, QUEUE * limit.limit)
    if wanted < limit.limit or call.in_flight >= limit.limit // 1 then -- it is used up
      set(limit.limit + (wanted - limit.limit) / math.max(WINDOW, limit.limit))
    end
  end

  function limit:sample(call)
    local phase, seconds = call.phase, call.seconds
    if call.failed and seconds < (seconds_now or math.huge) then
      return -- it says nothing; but one that was cut off would have taken longer still
    elseif phase and phase.is_start then
      start(phase, call)
      return
    elseif phase then
      probed(phase, call)
      return
    end
    measured = measured + 1
    local weight = 1 / math.min(measured, math.max(WINDOW, self.limit))
    seconds_now = seconds_now and seconds_now + (seconds - seconds_now) * weight or seconds
    limit_now = limit_now and limit_now + (call.limit - limit_now) * weight or call.limit
    if self.phase then
      return -- a probe: it began before
    end
    local is_least = half() == self.limit // 1
    if is_least then
      learn(seconds) -- there is no less to probe with
    end
    adapt(call)
    since_probe = since_probe + 1
    if is_least then
      return
    elseif self.limit < probed_at / 2 then
      -- Where calls take longer for another reason than a queue, the limit would go down and down.
      probe_afresh()
    elseif since_probe >= PROBE_EVERY * math.max(ROUND, 2 * half()) then
      probe(math.max(ROUND, 2 * half()))
    end
  end
  return limit
end

--- Makes a limit.
---@param algorithm "aimd"|"gradient"
---@param min integer with which it begins, too
---@param max integer
---@return opero.adaptive.Limit
function adaptive.new(algorithm, min, max)
  return (algorithm == "aimd" and aimd or gradient)(min, max)
end

return adaptive
