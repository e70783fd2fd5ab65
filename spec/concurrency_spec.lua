local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, simulated = support.raised, support.simulated

local function limited(limit)
  return opero.Orchestrator { concurrency_config = { limit = limit } }
end

-- Counts how many calls of it are under way; `most` is the highest count so far.
local function gauge(seconds)
  local state = { now = 0, most = 0, calls = 0 }
  function state.fn(...)
    state.now = state.now + 1
    state.calls = state.calls + 1
    state.most = math.max(state.most, state.now)
    opero.sleep(seconds)
    state.now = state.now - 1
    return ...
  end
  return state
end

-- How many executions can be begun at once: the permits that are free.
local function free_permits(orch)
  local begun = 0
  opero.scope(function(scope)
    for _ = 1, 50 do
      scope:spawn(function()
        orch:execute(function()
          begun = begun + 1
          opero.sleep(1e6)
        end)
      end)
    end
    opero.sleep(1)
    scope:cancel()
    opero.yield()
  end)
  return begun
end

describe("the concurrency limit", function()
  it("lets so many run at once and no more, and never fewer while others wait",
    simulated(function()
      local orch, state = limited(3), gauge(1)
      opero.scope(function(scope)
        for i = 1, 10 do
          scope:spawn(function()
            assert.equal(i, orch:execute(state.fn, i))
          end)
        end
        -- Until the last round three are always under way.
        for second = 0, 2 do
          opero.sleep(second + 0.5 - opero.now())
          assert.equal(3, state.now)
        end
      end)
      assert.equal(3, state.most)
      assert.equal(10, state.calls)
      assert.equal(4, opero.now())
    end))

  it("serves those who wait in the order in which they came", simulated(function()
    local orch, order = limited(1), {}
    opero.scope(function(scope)
      for i = 1, 6 do
        scope:spawn(function()
          opero.sleep(i % 3) -- 3, 6, 1, 4, 2, 5
          orch:execute(function()
            order[#order + 1] = i
            opero.sleep(10)
          end)
        end)
      end
    end)
    assert.same({ 3, 6, 1, 4, 2, 5 }, order)
  end))

  it("counts every execution of the orchestrator, and retries and fallbacks as one",
    simulated(function()
      local state = gauge(1)
      local function failing(...)
        state.fn(...)
        error("x", 0)
      end
      local orch = opero.Orchestrator {
        concurrency_config = { limit = 2 },
        retry_config = { max_attempts = 2, wait_min = 1, wait_max = 1 },
        fallbacks = { state.fn },
      }
      opero.scope(function(scope)
        for i = 1, 4 do
          scope:spawn(function()
            assert.equal(i, orch:execute(failing, i))
          end)
        end
      end)
      assert.equal(2, state.most)
      -- Two attempts, a wait between them, and the fallback: 4 s, twice.
      assert.equal(8, opero.now())
    end))

  it("does nothing to calls that do not suspend", function()
    local orch = limited(1)
    for i = 1, 5 do
      assert.same({ n = 3, i, nil, nil }, table.pack(orch:execute(function(...) return ... end, i,
        nil, nil)))
    end
    assert.equal(7, coroutine.wrap(function() return orch:execute(function() return 7 end) end)())
  end)

  it("may be greater than any number of calls", simulated(function()
    assert.equal(1, limited(math.maxinteger):execute(function() return 1 end))
  end))
end)

describe("the permit", function()
  it("is given back after a success and after an error of any kind", simulated(function()
    local orch = limited(2)
    for _, fn in ipairs {
      function() return 1 end,
      function() opero.sleep(1) end,
      function() return nil, "no" end,
      function() error({}) end,
      function() error(nil) end,
      function() opero.sleep(1) error("x") end,
    } do
      for _ = 1, 3 do
        pcall(orch.execute, orch, fn)
      end
    end
    assert.equal(2, free_permits(orch))
  end))

  it("is given back when the execution is cancelled, in the attempt or in the backoff",
    simulated(function()
      local orch = opero.Orchestrator {
        concurrency_config = { limit = 2 }, retry_config = { wait_min = 50 },
      }
      local tasks = {
        opero.spawn(orch.execute, orch, opero.sleep, 100),
        opero.spawn(orch.execute, orch, (support.broken "x")),
      }
      opero.sleep(1)
      for _, task in ipairs(tasks) do
        task:cancel()
        assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
      end
      assert.equal(2, free_permits(orch))
    end))

  it("is not given to one who is cancelled while waiting for it", simulated(function()
    local orch, ran = limited(1), {}
    local function run(name)
      return opero.spawn(orch.execute, orch, function()
        ran[#ran + 1] = name
        opero.sleep(10)
      end)
    end
    local first, second, third = run "first", run "second", run "third"
    opero.sleep(1)
    second:cancel()
    assert.is_true(errors.is(raised(second.await, second), errors.CancelledError))
    assert.equal(1, opero.now())
    first:await()
    third:await()
    assert.same({ "first", "third" }, ran)
    assert.equal(20, opero.now())
    assert.equal(1, free_permits(orch))
  end))

  it("goes to the next one when its owner-to-be is cancelled as it is handed over",
    simulated(function()
      local orch, ran = limited(1), {}
      local function run(name, fn)
        return opero.spawn(orch.execute, orch, function()
          ran[#ran + 1] = name
          fn()
        end)
      end
      local second
      run("first", function()
        opero.sleep(5)
      end)
      second = run("second", function() end)
      local third = run("third", function() end)
      opero.spawn(function()
        opero.sleep(5) -- wakes right after the first, which has just given its permit on
        second:cancel()
      end)
      third:await()
      assert.same({ "first", "third" }, ran)
      assert.equal(5, opero.now())
      assert.equal(1, free_permits(orch))
    end))

  it("is given back when the coroutine of the execution is closed", simulated(function()
    local orch = limited(1)
    local co = coroutine.create(function()
      orch:execute(function() coroutine.yield() end)
    end)
    assert(coroutine.resume(co))
    assert.equal(0, free_permits(orch))
    assert(coroutine.close(co))
    assert.equal(1, free_permits(orch))
  end))

  it("outlives a simulation that was ended with an error", function()
    local orch = limited(1)
    assert.equal("end", raised(opero.simulate, function()
      opero.spawn(orch.execute, orch, opero.sleep, 100)
      opero.spawn(orch.execute, orch, opero.sleep, 100)
      opero.sleep(1)
      error("end", 0)
    end))
    opero.simulate(function()
      assert.equal(1, free_permits(orch))
    end)
  end)
end)
