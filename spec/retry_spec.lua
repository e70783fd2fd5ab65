local backoff = require "opero.backoff"
local core = require "opero.core"
local errors = require "opero.errors"
local opero = require "opero"
local outcome = require "opero.outcome"
local retry = require "opero.retry"
local support = require "spec.support"

local broken, failing, raised = support.broken, support.failing, support.raised
local simulated = support.simulated

local Refused = errors.class("Refused")

-- A caller of functions through this policy alone.
local function caller(config, told)
  local layer = retry.layer(retry.config(config), core.invoke, told)
  return function(fn, ...)
    return outcome.raise(layer(fn, ...))
  end
end

describe("retry", function()
  it("hands arguments and results through, nil and none included", simulated(function()
    local call = caller {}
    local function echo(...) return ... end
    assert.same({ n = 4, 1, nil, false }, table.pack(call(echo, 1, nil, false, nil)))
    assert.same({ n = 0 }, table.pack(call(echo)))
    assert.same({ n = 1 }, table.pack(call(echo, nil)))
    assert.same({ n = 200, table.unpack({}, 1, 200) },
      table.pack(call(echo, table.unpack({}, 1, 200))))
    assert.equal(0, opero.now())
  end))

  it("calls again with the same arguments, and returns all results of the success",
    simulated(function()
      local fn = failing("one", "two")
      assert.same({ n = 3, 7, nil, nil }, table.pack(caller {}(fn, 7, nil, nil)))
    end))

  it("waits as the formula says, by default 1, 2, 4 ... seconds", simulated(function()
    local fn, times = broken "always"
    assert.equal("always", raised(caller { max_attempts = 8 }, fn))
    assert.same({ 0, 1, 3, 7, 15, 31, 63, 123 }, times)
  end))

  it("makes three attempts by default", simulated(function()
    local fn, times = broken "always"
    raised(caller {}, fn)
    assert.equal(3, #times)
  end))

  it("keeps to wait_multiplier, wait_min and wait_max to the nanosecond", simulated(function()
    local fn, times = broken "always"
    raised(caller {
      max_attempts = 6, wait_multiplier = 0.1, wait_min = 0.15, wait_max = 0.7,
    }, fn)
    assert.same({ 0, 0.15, 0.35, 0.75, 1.45, 2.15 }, times)
  end))

  for _, mode in ipairs { "full", "equal", "decorrelated" } do
    it("with jitter " .. mode .. " waits what its generator says for the runtime's random numbers",
      function()
        local config = retry.config {
          max_attempts = 7, jitter = mode, wait_min = 0.5, wait_max = 20,
        }
        -- A simulation always starts with the same random numbers.
        local expected = { 0 }
        opero.simulate(function()
          local wait, previous = backoff.exponential(config), nil
          for attempt = 1, 6 do
            previous = wait(attempt, previous, core.random)
            expected[attempt + 1] = expected[attempt] + previous
          end
        end)
        local fn, times = broken "always"
        opero.simulate(function()
          raised(caller(config), fn)
        end)
        assert.equal(7, #times)
        for i, time in ipairs(times) do
          assert.near(expected[i], time, 6e-9) -- each sleep is rounded to a nanosecond
        end
      end)
  end

  it("never sleeps with one attempt", function()
    for _, reraise in ipairs { true, false } do
      -- In a coroutine, outside any task, a sleep would be refused.
      local call = caller { max_attempts = 1, reraise = reraise }
      local calls = 0
      local function fail()
        calls = calls + 1
        error("no", 0)
      end
      coroutine.wrap(function() raised(call, fail) end)()
      assert.equal(1, calls)
    end
  end)

  it("takes nil and an error for a failure, and nil alone for a result", simulated(function()
    local calls = 0
    local function refusing(err)
      calls = calls + 1
      return nil, err
    end
    assert.equal("refused", raised(caller {}, refusing, "refused"))
    assert.equal(3, calls)
    assert.equal(false, raised(caller {}, refusing, false))
    assert.equal(6, calls)
    assert.same({ n = 2 }, table.pack(caller {}(refusing, nil)))
    assert.equal(7, calls)
  end))

  it("works for attempts that suspend and those that do not", simulated(function()
    local calls = 0
    local function fn()
      calls = calls + 1
      if calls % 2 == 0 then
        opero.sleep(10)
      end
      if calls < 5 then
        error("again", 0)
      end
      return opero.now()
    end
    assert.equal(1 + 10 + 2 + 4 + 10 + 8, caller { max_attempts = 5 }(fn))
  end))

  it("works in the main chunk", function()
    local fn, times = failing("a", "b")
    assert.equal("done", caller { wait_min = 0, wait_max = 0 }(fn, "done"))
    assert.equal(3, #times)
  end)

  it("calls whatever can be called", simulated(function()
    local object = setmetatable({ calls = 0 }, {
      __call = function(self, x)
        self.calls = self.calls + 1
        if self.calls < 3 then
          error("no", 0)
        end
        return x
      end,
    })
    assert.equal("x", caller {}(object, "x"))
    assert.equal(3, object.calls)
  end))
end)

describe("an error with retry_after", function()
  local function first_wait(err, config)
    local fn, times = broken(err)
    raised(caller(config or { wait_min = 1, wait_max = 30, max_attempts = 2 }), fn)
    return times[2] - times[1]
  end

  it("says how long to wait, wait_min or not", simulated(function()
    assert.equal(7, first_wait(Refused("x", { retry_after = 7 })))
    assert.equal(0.25, first_wait({ retry_after = 0.25 }))
    assert.equal(0, first_wait({ retry_after = 0 }))
  end))

  it("is capped by wait_max", simulated(function()
    assert.equal(30, first_wait({ retry_after = 86400 }))
  end))

  it("may have it from its class", simulated(function()
    local Busy = errors.class("Busy")
    Busy.retry_after = 12
    assert.equal(12, first_wait(Busy "x"))
  end))

  it("is asked before every attempt", simulated(function()
    local fn, times = failing({ retry_after = 5 }, "plain", { retry_after = 9 })
    caller { max_attempts = 4 }(fn)
    assert.same({ 0, 5, 7, 16 }, times)
  end))

  it("that makes no sense, or cannot be read, waits as ever", simulated(function()
    local unreadable = setmetatable({}, { __index = function() error "private" end })
    for _, err in ipairs {
      { retry_after = -1 }, { retry_after = 0 / 0 }, { retry_after = math.huge },
      { retry_after = "5" }, { retry_after = {} }, unreadable, io.stdout, "retry_after", 5, false,
    } do
      assert.equal(1, first_wait(err))
    end
    assert.equal(1, first_wait(nil))
  end))
end)

describe("retry_on", function()
  it("raises what it does not match at once and unchanged", simulated(function()
    for _, reraise in ipairs { true, false } do
      local call = caller { retry_on = Refused, reraise = reraise }
      local other = errors.TimeoutError "x"
      local fn, times = broken(other)
      assert.equal(other, raised(call, fn))
      assert.same({ opero.now() }, times)
    end
  end))

  it("is asked again for every error", simulated(function()
    local fn, times = failing(Refused "x", "timeout", "closed", "never")
    assert.equal("closed", raised(caller { retry_on = { Refused, "time" }, max_attempts = 9 }, fn))
    assert.equal(3, #times)
  end))

  it("is given errors of any type", simulated(function()
    local seen = { n = 0 }
    local call = caller {
      max_attempts = 4,
      retry_on = function(err)
        seen.n = seen.n + 1
        seen[seen.n] = err
        return true
      end,
    }
    local object = {}
    call(failing(nil, false, object))
    assert.same({ n = 3, nil, false, object }, seen)
  end))

  it("that fails makes its own error the outcome", simulated(function()
    local call = caller { retry_on = function() error("bad matcher", 0) end }
    assert.equal("bad matcher", raised(call, (broken "x")))
  end))

  it("by default is for every error", simulated(function()
    for _, err in ipairs { "x", 5, false, Refused "x" } do
      local fn, times = broken(err)
      assert.equal(err, raised(caller {}, fn))
      assert.equal(3, #times)
    end
    local fn, times = broken(nil)
    assert.is_nil(raised(caller {}, fn))
    assert.equal(3, #times)
  end))
end)

describe("when all attempts have failed", function()
  it("the last error is raised unchanged", simulated(function()
    local last = { "last" }
    assert.equal(last, raised(caller {}, (failing("a", "b", last))))
    assert.is_nil(raised(caller {}, (failing("a", "b", nil))))
    assert.is_false(raised(caller {}, (failing("a", "b", false))))
  end))

  it("with reraise = false a RetryError is, which has it as its cause", simulated(function()
    local last = Refused "not now"
    local err = raised(caller { reraise = false }, (failing("a", "b", last)))
    assert.is_true(errors.is(err, errors.RetryError))
    assert.equal(3, err.attempts)
    assert.equal(last, err.cause)
    assert.equal("RetryError: 3 attempts failed: not now\ncaused by: Refused: not now",
      tostring(err))
  end))

  it("with reraise = false, one attempt and nil for an error, too", simulated(function()
    local err = raised(caller { reraise = false, max_attempts = 1 }, (broken(nil)))
    assert.equal("1 attempt failed: nil", err.message)
    assert.equal(1, err.attempts)
    assert.is_nil(err.cause)
  end))
end)

describe("a cancellation", function()
  local always = { retry_on = function() return true end, max_attempts = 5, reraise = false }

  it("in an attempt is not retried, and passed up unchanged", simulated(function()
    local calls, caught = 0, nil
    local task = opero.spawn(function()
      local ok
      ok, caught = pcall(caller(always), function()
        calls = calls + 1
        opero.sleep(100)
      end)
      assert.is_false(ok)
      error(caught, 0)
    end)
    opero.sleep(1)
    task:cancel()
    local err = raised(task.await, task)
    assert.equal(caught, err)
    assert.is_true(errors.is(caught, errors.CancelledError))
    assert.equal(1, calls)
    assert.equal("cancelled", task:status())
    assert.equal(1, opero.now())
  end))

  it("during the wait ends it at once", simulated(function()
    local fn, times = broken "x"
    local task = opero.spawn(function() caller(always)(fn) end)
    opero.sleep(0.5)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal(0.5, opero.now())
    assert.same({ 0 }, times)
  end))

  it("by a timeout is one as well", simulated(function()
    local times = {}
    local err = raised(opero.timeout, 2, caller(always), function()
      times[#times + 1] = opero.now()
      opero.sleep(0.75)
      error("x", 0)
    end)
    assert.is_true(errors.is(err, errors.TimeoutError))
    assert.equal(2, opero.now())
    assert.same({ 0, 1.75 }, times)
  end))

  it("raised by hand is not retried either", simulated(function()
    local err = errors.CancelledError "enough"
    local fn, times = broken(err)
    assert.equal(err, raised(caller(always), fn))
    assert.equal(1, #times)
    err = errors.class("Stopped", errors.CancelledError) "enough"
    fn, times = broken(err)
    assert.equal(err, raised(caller(always), fn))
    assert.equal(1, #times)
  end))
end)

describe("retry tells of its events", function()
  local function listener(tell)
    return {
      note = function() return true end,
      tell = function(_, name, fields) tell(name, fields) end,
    }
  end

  it("of every retry, and of giving up", simulated(function()
    local told = {}
    local call = caller({ max_attempts = 3, wait_min = 2 }, listener(function(...)
      told[#told + 1] = { ... }
    end))
    raised(call, (failing("a", "b", "c")))
    assert.same({
      { "retry", { attempt = 1, max_attempts = 3, wait = 2, error = "a" } },
      { "retry", { attempt = 2, max_attempts = 3, wait = 2, error = "b" } },
      { "retries_exhausted", { attempts = 3, error = "c" } },
    }, told)
  end))

  it("nothing when the first attempt succeeds or the error does not match", simulated(function()
    local call = caller({ retry_on = Refused }, listener(function() error "told" end))
    call(function() end)
    assert.equal("x", raised(call, (broken "x")))
  end))
end)
