local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local broken, raised, refused = support.broken, support.raised, support.refused
local simulated = support.simulated

local function echo(...) return ... end
local function suspending(...)
  opero.sleep(1)
  return ...
end

describe("FallbackChain", function()
  it("returns what the primary returns when it succeeds", simulated(function()
    local fallback, calls = broken "never"
    local chain = opero.FallbackChain(echo, fallback)
    assert.same({ n = 3, 1, nil, nil }, table.pack(chain:execute(1, nil, nil)))
    assert.same({ n = 0 }, table.pack(chain:execute()))
    assert.equal(0, #calls)
  end))

  it("calls the fallbacks in turn, with the same arguments, until one succeeds",
    simulated(function()
      local seen = {}
      local function failing(name)
        return function(...)
          seen[#seen + 1] = { name, ... }
          error(name, 0)
        end
      end
      local never, calls = broken "never"
      local chain = opero.FallbackChain(failing "a", { failing "b", echo, never })
      assert.same({ n = 3, 1, nil, 3 }, table.pack(chain(1, nil, 3)))
      assert.same({ { "a", 1, nil, 3 }, { "b", 1, nil, 3 } }, seen)
      assert.equal(0, #calls)
    end))

  it("takes nil and an error for a failure", simulated(function()
    local function refusing() return nil, "no" end
    assert.equal("x", opero.FallbackChain(refusing, echo)("x"))
    assert.equal("no", raised(opero.FallbackChain(refusing)))
    assert.same({ "no", "no", n = 2 }, raised(opero.FallbackChain(refusing, refusing)).errors)
    assert.same({ n = 2 }, table.pack(opero.FallbackChain(function() return nil, nil end, echo)()))
  end))

  it("mixes functions that suspend and functions that do not", simulated(function()
    local function slow_failure()
      opero.sleep(2)
      error("slow", 0)
    end
    local chain = opero.FallbackChain(slow_failure, { (broken "quick"), slow_failure, suspending })
    assert.equal("x", chain("x"))
    assert.equal(5, opero.now())
  end))

  it("works in the main chunk, and in a coroutine outside any task", function()
    local chain = opero.FallbackChain((broken "x"), echo)
    assert.equal(5, chain(5))
    assert.equal(5, coroutine.wrap(function() return chain(5) end)())
  end)

  it("takes objects that can be called for functions", simulated(function()
    local object = setmetatable({}, { __call = function(_, x) return x * 2 end })
    assert.equal(8, opero.FallbackChain(object)(4))
    assert.equal(8, opero.FallbackChain((broken "x"), object)(4))
    local inner = opero.FallbackChain((broken "y"), object)
    assert.equal(8, opero.FallbackChain((broken "x"), inner)(4))
  end))

  it("knows whether it has fallbacks", function()
    assert.is_false(opero.FallbackChain(echo):has_fallbacks())
    assert.is_false(opero.FallbackChain(echo, {}):has_fallbacks())
    assert.is_true(opero.FallbackChain(echo, echo):has_fallbacks())
    assert.is_true(opero.FallbackChain(echo, { echo, echo }):has_fallbacks())
  end)

  it("is not changed by what becomes of the list later", simulated(function()
    local list = { echo }
    local chain = opero.FallbackChain((broken "x"), list)
    list[1] = nil
    assert.equal(1, chain(1))
  end))

  it("refuses what is no function", function()
    assert.equal("FallbackChain.primary: expected a function, got nil",
      refused(opero.FallbackChain).message)
    assert.equal("FallbackChain.fallbacks[2]: expected a function, got 7",
      refused(opero.FallbackChain, echo, { echo, 7 }).message)
    assert.equal("FallbackChain.fallbacks",
      refused(opero.FallbackChain, echo, "fallback").path)
    assert.equal("FallbackChain.fallbacks",
      refused(opero.FallbackChain, echo, false).path)
  end)
end)

describe("when a chain is exhausted", function()
  it("without fallbacks the primary's error is raised unchanged", simulated(function()
    for _, err in ipairs { "x", 5, { "table" }, false } do
      assert.equal(err, raised(opero.FallbackChain((broken(err)))))
    end
    assert.is_nil(raised(opero.FallbackChain((broken(nil)))))
  end))

  it("AllFailedError lists every function's error in order", simulated(function()
    local last = errors.TimeoutError "too slow"
    local fallbacks = { (broken(nil)), (broken(last)) }
    local chain = opero.FallbackChain((broken "first\nwith more"), fallbacks)
    local err = raised(chain)
    assert.is_true(errors.is(err, errors.AllFailedError))
    assert.same({ n = 3, "first\nwith more", nil, last }, err.errors)
    assert.equal(last, err.cause)
    assert.equal("all 3 functions failed: [1] first; [2] nil; [3] too slow", err.message)
  end))
end)

describe("a cancellation", function()
  it("of the primary runs no fallback", simulated(function()
    local never, calls = broken "never"
    local task = opero.spawn(opero.FallbackChain(opero.sleep, { never }), 100)
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal("cancelled", task:status())
    assert.equal(0, #calls)
    assert.equal(1, opero.now())
  end))

  it("of a fallback runs no further one, nor is it listed as a failure", simulated(function()
    local never, calls = broken "never"
    for _, list in ipairs { { opero.sleep }, { opero.sleep, never } } do
      local started = opero.now()
      local task = opero.spawn(opero.FallbackChain((broken "x"), list), 100)
      opero.sleep(1)
      task:cancel()
      assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
      assert.equal(started + 1, opero.now())
    end
    assert.equal(0, #calls)
  end))

  it("by a timeout is one as well", simulated(function()
    local never, calls = broken "never"
    local err = raised(opero.timeout, 3, opero.FallbackChain(opero.sleep, never), 100)
    assert.is_true(errors.is(err, errors.TimeoutError))
    assert.equal(0, #calls)
  end))

  it("of another task, that was awaited, runs no fallback either", simulated(function()
    local never, calls = broken "never"
    local other = opero.spawn(opero.sleep, 100)
    other:cancel()
    local err = raised(opero.FallbackChain(function() return other:await() end, never))
    assert.is_true(errors.is(err, errors.CancelledError))
    assert.equal(0, #calls)
  end))
end)

describe("fallbacks in an orchestrator", function()
  it("each get attempts of their own", simulated(function()
    local primary, primary_calls = broken "a"
    local fallback, fallback_calls = support.failing("b", "c")
    local orch = opero.Orchestrator {
      retry_config = { max_attempts = 3 },
      fallbacks = { fallback },
    }
    assert.equal("item", orch:execute(primary, "item"))
    assert.same({ 0, 1, 3 }, primary_calls)
    assert.same({ 3, 4, 6 }, fallback_calls)
  end))

  it("may be a single function", simulated(function()
    assert.equal(1, opero.Orchestrator { fallbacks = echo }:execute((broken "x"), 1))
  end))

  it("may be none", simulated(function()
    assert.equal("x", raised(function()
      opero.Orchestrator { fallbacks = {} }:execute((broken "x"))
    end))
  end))

  it("follow a RetryError, which is then the first of the errors", simulated(function()
    local orch = opero.Orchestrator {
      retry_config = { max_attempts = 2, reraise = false },
      fallbacks = { (broken "b") },
    }
    local err = raised(orch.execute, orch, (broken "a"))
    assert.equal("a", err.errors[1].cause)
    assert.equal("b", err.errors[2].cause)
  end))
end)
