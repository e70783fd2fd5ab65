local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, refused, simulated = support.raised, support.refused, support.simulated

local function is_open(err)
  return errors.is(err, errors.CircuitOpenError)
end

-- A breaker, and an orchestrator that has it.
local function guarded(options, config)
  config = config or {}
  config.circuit_breaker_config = opero.CircuitBreaker(options)
  return config.circuit_breaker_config, opero.Orchestrator(config)
end

local function succeed(...) return ... end
local function fail() error("no", 0) end

-- Calls that fail ("x") and succeed ("."), one after the other; those let through.
local function play(orch, pattern)
  local through = 0
  for letter in pattern:gmatch "." do
    orch:try(function()
      through = through + 1
      if letter == "x" then
        error("no", 0)
      end
    end)
  end
  return through
end

describe("a breaker of failures in a row", function()
  it("opens after so many, five by default, and lets nothing through then", simulated(function()
    local breaker, orch = guarded { failures = 3 }
    assert.equal("closed", breaker:state())
    assert.equal(10, play(orch, "xx.xx.xx.x"))
    assert.equal("closed", breaker:state())
    assert.equal(2, play(orch, "xxxxx"))
    assert.equal("open", breaker:state())
    breaker, orch = guarded()
    play(orch, "xxxx")
    assert.equal("closed", breaker:state())
    play(orch, "x")
    assert.equal("open", breaker:state())
  end))

  it("says by its error how long that will be", simulated(function()
    local _, orch = guarded { failures = 1, open_for = 30 }
    assert.equal("no", raised(orch.execute, orch, fail))
    opero.sleep(10)
    local err = raised(orch.execute, orch, succeed)
    assert.is_true(is_open(err))
    assert.equal(20, err.retry_after)
    assert.equal("the circuit breaker is open", err.message)
  end))

  it("lets a trial call through when it has been open for so long, and closes if it succeeds",
    simulated(function()
      local breaker, orch = guarded { failures = 2, open_for = 30 }
      play(orch, "xx")
      opero.sleep(29.999)
      assert.equal(0, play(orch, "."))
      opero.sleep(0.001)
      assert.equal("half_open", breaker:state())
      assert.equal("yes", orch:execute(succeed, "yes"))
      assert.equal("closed", breaker:state())
      assert.equal(1, play(orch, "x")) -- the count begins anew
      assert.equal("closed", breaker:state())
    end))

  it("opens again for as long when the trial call fails", simulated(function()
    local breaker, orch = guarded { failures = 2, open_for = 30 }
    play(orch, "xx")
    opero.sleep(30)
    assert.equal(1, play(orch, "xx"))
    assert.equal("open", breaker:state())
    opero.sleep(29)
    assert.equal(0, play(orch, "x"))
    opero.sleep(1)
    assert.equal(1, play(orch, "."))
    assert.equal("closed", breaker:state())
  end))
end)

describe("open_for", function()
  it("may be a function of how often in a row it has opened", simulated(function()
    local asked = {}
    local breaker, orch = guarded {
      failures = 1,
      open_for = function(times)
        asked[#asked + 1] = times
        return 10 * 2 ^ (times - 1)
      end,
    }
    local waits = {}
    for i = 1, 4 do
      play(orch, "x")
      waits[i] = breaker:metrics().retry_after
      opero.sleep(waits[i])
    end
    assert.same({ 10, 20, 40, 80 }, waits)
    play(orch, ".") -- closed by success: from the beginning
    play(orch, "x")
    assert.equal(10, breaker:metrics().retry_after)
    assert.same({ 1, 2, 3, 4, 1 }, asked)
  end))

  it("... whose error is that of the call; the breaker is open for the default time then",
    simulated(function()
      for _, wrong in ipairs { -1, 0 / 0, math.huge, "10", false } do
        local breaker, orch = guarded { failures = 1, open_for = function() return wrong end }
        local err = refused(orch.execute, orch, fail)
        assert.equal("circuit_breaker_config.open_for", err.path)
        assert.equal(60, breaker:metrics().retry_after)
      end
      local calls = 0
      local breaker, orch = guarded {
        failures = 1, open_for = function()
          calls = calls + 1
          error("broken function", 0)
        end,
      }
      assert.equal("broken function", raised(orch.execute, orch, fail))
      assert.equal("open", breaker:state())
      opero.sleep(60)
      assert.equal("broken function", raised(orch.execute, orch, fail)) -- the trial call
      assert.equal("open", breaker:state())
      opero.sleep(60)
      assert.equal(1, orch:execute(succeed, 1))
      assert.equal("closed", breaker:state())
      assert.equal(2, calls)
    end))

  it("... that may suspend", simulated(function()
    local breaker, orch = guarded {
      failures = 1, open_for = function()
        opero.sleep(5)
        return 20
      end,
    }
    local first = opero.spawn(orch.try, orch, fail)
    opero.sleep(1)
    assert.is_true(is_open(raised(orch.execute, orch, fail))) -- open already
    first:await()
    assert.equal(15, breaker:metrics().retry_after) -- since it opened
  end))
end)

describe("a breaker of a failure rate", function()
  it("looks at the last calls", simulated(function()
    local breaker, orch = guarded { failure_rate = 0.5, window = { calls = 10 }, min_calls = 10 }
    assert.equal(10, play(orch, "xxxx......"))
    assert.same({ state = "closed", calls = 10, failures = 4, failure_rate = 0.4, opened = 0,
      rejected = 0 }, breaker:metrics())
    play(orch, "....") -- the four failures are out of the window
    assert.equal(0, breaker:metrics().failures)
    assert.equal(10, breaker:metrics().calls)
    play(orch, "xxxx")
    assert.equal("closed", breaker:state())
    play(orch, "x")
    assert.equal("open", breaker:state())
  end))

  it("... when there are enough of them", simulated(function()
    local breaker, orch = guarded { failure_rate = 0.5, window = { calls = 10 }, min_calls = 5 }
    play(orch, "xxxx")
    assert.equal("closed", breaker:state())
    play(orch, ".") -- by which there are
    assert.equal("open", breaker:state())
    assert.equal(10, opero.CircuitBreakerConfig { failure_rate = 0.5 }.min_calls)
    assert.same({ calls = 100 }, opero.CircuitBreakerConfig { failure_rate = 0.5 }.window)
    assert.equal(4,
      opero.CircuitBreakerConfig { failure_rate = 0.5, window = { calls = 4 } }.min_calls)
  end))

  it("... with a rate that is met exactly, whatever its digits", simulated(function()
    local breaker, orch = guarded { failure_rate = 0.07, window = { calls = 100 },
      min_calls = 100 }
    play(orch, ("."):rep(93) .. "xxxxxx")
    assert.equal("closed", breaker:state())
    play(orch, "x")
    assert.equal("open", breaker:state())
  end))

  it("looks at the last seconds, in ten steps", simulated(function()
    local breaker, orch = guarded { failure_rate = 0.6, window = { seconds = 10 }, min_calls = 4 }
    opero.sleep(0.5)
    play(orch, "xx")
    opero.sleep(5)
    play(orch, "..")
    assert.equal(4, breaker:metrics().calls)
    opero.sleep(4.25) -- 9.75
    assert.equal(2, breaker:metrics().failures)
    opero.sleep(0.25) -- the first second is out of the window
    assert.equal(0, breaker:metrics().failures)
    assert.equal(2, breaker:metrics().calls)
    play(orch, "xx")
    assert.equal("closed", breaker:state()) -- half of four
    play(orch, "x")
    assert.equal("open", breaker:state())
    assert.equal(0.6, breaker:metrics().failure_rate)
  end))

  it("... also after a pause, and of moments", simulated(function()
    local breaker, orch = guarded { failure_rate = 1, window = { seconds = 1e-12 }, min_calls = 2 }
    for _ = 1, 100 do
      play(orch, "x")
      opero.sleep(1000)
    end
    assert.equal("closed", breaker:state())
    play(orch, "xx")
    assert.equal("open", breaker:state())
    assert.equal(2, breaker:metrics().failures)
  end))

  it("begins with an empty window when it closes", simulated(function()
    local breaker, orch = guarded {
      failure_rate = 0.5, window = { calls = 4 }, min_calls = 2, open_for = 1,
    }
    play(orch, "xx")
    opero.sleep(1)
    play(orch, ".")
    assert.equal(0, breaker:metrics().calls)
    play(orch, "x")
    assert.equal("closed", breaker:state())
  end))
end)

describe("what counts as a failure", function()
  it("is what failure_on matches; all else counts as a success", simulated(function()
    local Refused = errors.class "Refused"
    local breaker, orch = guarded { failures = 2, failure_on = { Refused, "timeout" } }
    for _, err in ipairs { Refused "a", "no", Refused "b", 404, "timeout", {} } do
      assert.equal(err, raised(orch.execute, orch, error, err, 0))
    end
    assert.equal("closed", breaker:state())
    raised(orch.execute, orch, error, Refused "c")
    raised(orch.execute, orch, error, "a timeout")
    assert.equal("open", breaker:state())
  end))

  it("is never a cancellation", simulated(function()
    local breaker, orch = guarded { failures = 1 }
    local task = opero.spawn(orch.execute, orch, opero.sleep, 10)
    opero.sleep(1)
    task:cancel()
    raised(task.await, task)
    raised(orch.execute, orch, error, errors.CancelledError "of another task")
    assert.equal("closed", breaker:state())
    assert.equal(0, breaker:metrics().failures)
  end))

  it("is an attempt that is too long: one that is cut off, and one longer than slow_call",
    simulated(function()
      local breaker, orch = guarded({ failures = 2 }, { timeout_config = { attempt = 1 } })
      orch:try(opero.sleep, 5)
      orch:try(opero.sleep, 5)
      assert.equal("open", breaker:state())

      breaker, orch = guarded { failures = 2, slow_call = 1 }
      orch:execute(opero.sleep, 1)
      orch:execute(opero.sleep, 1.1)
      orch:execute(opero.sleep, 0.5)
      orch:execute(opero.sleep, 1.1)
      assert.equal("closed", breaker:state())
      assert.equal("late", orch:execute(function()
        opero.sleep(2)
        return "late" -- it is a result all the same
      end))
      assert.equal("open", breaker:state())
    end))

  it("is told by a function whose error is that of the call", simulated(function()
    local breaker, orch = guarded {
      failures = 1, open_for = 1, failure_on = function(err)
        if err == "odd" then
          error("broken matcher", 0)
        end
        return true
      end,
    }
    assert.equal("broken matcher", raised(orch.execute, orch, error, "odd", 0))
    assert.equal("closed", breaker:state())
    play(orch, "x")
    opero.sleep(1)
    assert.equal("broken matcher", raised(orch.execute, orch, error, "odd", 0))
    assert.equal(1, orch:execute(succeed, 1)) -- the trial is for the next one
    assert.equal("closed", breaker:state())
  end))
end)

describe("half-open", function()
  it("lets as many trial calls through as half_open_calls says, and closes when all succeed",
    simulated(function()
      local breaker, orch = guarded { failures = 1, open_for = 10, half_open_calls = 3 }
      play(orch, "x")
      opero.sleep(10)
      local results = {}
      opero.scope(function(scope)
        for i = 1, 5 do
          scope:spawn(function()
            local ok, err = pcall(orch.execute, orch, opero.sleep, i)
            results[i] = ok or err
          end)
        end
        opero.sleep(2.5) -- two of three have succeeded
        assert.equal("half_open", breaker:state())
      end)
      assert.same({ true, true, true }, { results[1], results[2], results[3] })
      for i = 4, 5 do
        assert.is_true(is_open(results[i]))
        assert.is_nil(results[i].retry_after)
        assert.matches("half%-open, and its trial calls are under way", results[i].message)
      end
      assert.equal("closed", breaker:state())
    end))

  it("opens with the first that fails; what the others come to says nothing then",
    simulated(function()
      local breaker, orch = guarded { failures = 1, open_for = 10, half_open_calls = 3 }
      play(orch, "x")
      opero.sleep(10)
      local slow = opero.spawn(orch.execute, orch, opero.sleep, 50)
      opero.yield()
      play(orch, "x")
      assert.equal("open", breaker:state())
      opero.sleep(10)
      assert.equal("half_open", breaker:state())
      slow:await()
      assert.equal("half_open", breaker:state())
      assert.equal(3, play(orch, "..."))
      assert.equal("closed", breaker:state())
    end))

  it("does not count what began before it opened", simulated(function()
    local breaker, orch = guarded { failures = 1, open_for = 10 }
    local tasks = {}
    for i = 1, 2 do
      tasks[i] = opero.spawn(orch.try, orch, function()
        opero.sleep(5 * i)
        error("late", 0)
      end)
    end
    opero.yield()
    play(orch, "x")
    tasks[1]:await()
    tasks[2]:await()
    assert.equal("half_open", breaker:state()) -- at 10, as if those had not been
    assert.equal(1, breaker:metrics().opened)
  end))

  it("gives a trial to the next one when it is cancelled", simulated(function()
    local breaker, orch = guarded { failures = 1, open_for = 10 }
    play(orch, "x")
    opero.sleep(10)
    local task = opero.spawn(orch.execute, orch, opero.sleep, 10)
    opero.yield()
    assert.is_true(is_open(raised(orch.execute, orch, succeed)))
    task:cancel()
    raised(task.await, task)
    assert.equal(1, play(orch, "."))
    assert.equal("closed", breaker:state())
  end))

  it("... or its coroutine is closed", simulated(function()
    local breaker, orch = guarded { failures = 1, open_for = 10 }
    play(orch, "x")
    opero.sleep(10)
    local co = coroutine.create(function()
      orch:execute(coroutine.yield)
    end)
    assert(coroutine.resume(co))
    assert.is_true(is_open(raised(orch.execute, orch, succeed)))
    assert(coroutine.close(co))
    assert.equal(1, play(orch, "."))
    assert.equal("closed", breaker:state())
  end))

  it("... exactly once, in any order of ends", function()
    for seed = 1, 50 do
      opero.simulate(function()
        local random = require "opero.core".random
        local breaker, orch = guarded { failures = 1, open_for = 1, half_open_calls = 2 }
        play(orch, "x")
        opero.scope(function(scope)
          for _ = 1, 30 do
            scope:spawn(function()
              opero.sleep(random() * 20)
              pcall(opero.timeout, random(), orch.execute, orch, function()
                opero.sleep(random())
                return random() < 0.5 and 1 or error("no", 0)
              end)
            end)
          end
        end)
        opero.sleep(100)
        if breaker:state() == "half_open" then
          assert.equal(2, play(orch, ".."))
        end
        assert.equal("closed", breaker:state())
      end, { seed = seed })
    end
  end)
end)

describe("an open breaker and other policies:", function()
  it("it is not retried, and the fallbacks run", simulated(function()
    local breaker, orch = guarded({ failures = 3 }, {
      retry_config = { max_attempts = 10, wait_min = 1, wait_max = 1 },
      fallbacks = opero.value "instead",
    })
    local fn, times = support.broken "no"
    assert.equal("instead", orch:execute(fn))
    assert.same({ 0, 1, 2 }, times) -- each attempt counts; the fourth is refused, the last one
    assert.equal(3, opero.now())
    assert.equal("instead", orch:execute(fn))
    assert.equal(3, opero.now())
    assert.equal(2, breaker:metrics().rejected)
  end))

  it("retries wait for it if they are asked to", simulated(function()
    local _, orch = guarded({ failures = 1, open_for = 30 }, {
      retry_config = { max_attempts = 3, wait_min = 0, wait_multiplier = 0,
        retry_on = { "no", errors.CircuitOpenError } },
    })
    assert.equal("done", orch:execute(support.failing "no", "done"))
    assert.equal(30, opero.now())
  end))

  it("it takes no permit of the rate limit", simulated(function()
    local _, orch = guarded({ failures = 1 }, { rate_limit_config = { rate = 0.1, burst = 2 } })
    play(orch, "x")
    for _ = 1, 10 do
      play(orch, ".")
    end
    assert.equal(0, opero.now())
  end))
end)

describe("a breaker with keys", function()
  local function by_host(host) return host end

  it("has a state for each", simulated(function()
    local breaker, orch = guarded { failures = 2, key = by_host }
    for _ = 1, 2 do
      orch:try(fail, "a.example")
      orch:try(succeed, "b.example")
    end
    assert.equal("open", breaker:state "a.example")
    assert.equal("closed", breaker:state "b.example")
    local err = raised(orch.execute, orch, succeed, "a.example")
    assert.equal("a.example", err.key)
    assert.equal("the circuit breaker of a.example is open", err.message)
    assert.equal("b.example", orch:execute(succeed, "b.example"))
    assert.equal(1, breaker:metrics("a.example").rejected)
    assert.equal(0, breaker:metrics("b.example").rejected)
  end))

  it("has one for the calls whose key is nil, or NaN", simulated(function()
    local breaker, orch = guarded { failures = 1, key = by_host }
    orch:try(fail, 0 / 0)
    assert.equal("open", breaker:state())
    assert.equal("open", breaker:state(0 / 0))
    assert.is_true(is_open(raised(orch.execute, orch, succeed, nil)))
    assert.equal(false, orch:execute(succeed, false))
  end))

  it("fails a call whose key function raises", simulated(function()
    local breaker, orch = guarded { failures = 1, key = function(x) return x.host end }
    assert.matches("attempt to index a number value", raised(orch.execute, orch, succeed, 5))
    assert.equal("closed", breaker:state())
    assert.same({ host = "h" }, orch:execute(succeed, { host = "h" }))
  end))

  it("keeps the state of max_keys at most: closed ones go first, those not used for longest",
    simulated(function()
      local breaker, orch = guarded { failures = 2, key = by_host, max_keys = 8 }
      orch:try(fail, "open") orch:try(fail, "open")
      for i = 1, 7 do
        orch:try(fail, i)
      end
      assert.equal(1, breaker:metrics(1).failures)
      orch:try(fail, "one more")
      assert.same({ 0, 0, 0, 1, 1 }, { breaker:metrics(1).failures, breaker:metrics(2).failures,
        breaker:metrics(3).failures, breaker:metrics(4).failures, breaker:metrics(7).failures })
      assert.equal("open", breaker:state "open")
      for i = 1, 1000 do
        orch:try(succeed, "key " .. i)
      end
      assert.equal("open", breaker:state "open")
      local _, small = guarded { failures = 2, key = by_host, max_keys = 1 }
      for i = 1, 100 do
        small:try(fail, i)
      end
    end))

  it("keeps nothing by being looked at", simulated(function()
    local breaker, orch = guarded { failures = 2, key = by_host, max_keys = 1 }
    orch:try(fail, "a")
    for i = 1, 10 do
      assert.equal("closed", breaker:state(i))
      assert.equal(0, breaker:metrics(i).failures)
    end
    assert.equal(1, breaker:metrics("a").failures)
  end))
end)

describe("CircuitBreaker", function()
  it("may be given to several orchestrators", simulated(function()
    local breaker = opero.CircuitBreaker { failures = 2 }
    local one = opero.Orchestrator { circuit_breaker_config = breaker }
    local other = opero.Orchestrator { circuit_breaker_config = breaker }
    play(one, "x")
    play(other, "x")
    assert.equal("open", breaker:state())
    assert.is_true(is_open(raised(one.execute, one, succeed)))
    assert.equal("open", other:stats().circuit_breaker.state)
    -- while options make a breaker for each
    local config = { circuit_breaker_config = { failures = 1 } }
    one, other = opero.Orchestrator(config), opero.Orchestrator(config)
    play(one, "x")
    assert.equal(1, play(other, "x"))
  end))

  it("is opened and closed by hand", simulated(function()
    local breaker, orch = guarded { failures = 2, open_for = 10 }
    breaker:open()
    assert.equal("open", breaker:state())
    opero.sleep(1000) -- until it is closed by hand
    local err = raised(orch.execute, orch, succeed)
    assert.is_true(is_open(err))
    assert.is_nil(err.retry_after)
    assert.is_nil(breaker:metrics().retry_after)
    breaker:close()
    assert.equal(1, play(orch, "x"))
    assert.equal("closed", breaker:state())
    play(orch, "x")
    assert.equal("open", breaker:state())
    breaker:close() -- before its time
    assert.equal(1, play(orch, "."))

    breaker = guarded { failures = 2, key = succeed }
    breaker:open "a"
    assert.same({ "open", "closed", "closed" },
      { breaker:state "a", breaker:state "b", breaker:state() })
    breaker:close "a"
    assert.equal("closed", breaker:state "a")
  end))

  it("forgets all by reset", simulated(function()
    local breaker, orch = guarded { failures = 2, key = succeed }
    for _, key in ipairs { "a", "b" } do
      orch:try(fail, key) orch:try(fail, key)
    end
    breaker:open()
    breaker:reset()
    for _, key in ipairs { "a", "b" } do
      assert.same({ state = "closed", failures = 0, opened = 0, rejected = 0 },
        breaker:metrics(key))
    end
    assert.equal("closed", breaker:state())
  end))

  it("tells its state by metrics", simulated(function()
    local breaker, orch = guarded { failures = 2, open_for = 60 }
    play(orch, "x")
    assert.same({ state = "closed", failures = 1, opened = 0, rejected = 0 }, breaker:metrics())
    play(orch, "xxx")
    opero.sleep(10)
    assert.same({ state = "open", failures = 2, opened = 1, rejected = 2, retry_after = 50 },
      breaker:metrics())
    opero.sleep(60)
    assert.same({ state = "half_open", failures = 2, opened = 1, rejected = 2, retry_after = 0 },
      breaker:metrics())
  end))

  it("starts afresh under another clock", function()
    local breaker, orch = guarded { failures = 1 }
    for _ = 1, 2 do
      opero.simulate(function()
        assert.equal("closed", breaker:state())
        assert.equal(1, play(orch, "xx"))
        assert.equal("open", breaker:state())
      end)
    end
    assert.equal("closed", breaker:state()) -- the real clock
    assert.equal(1, play(orch, "xx")) -- in the main chunk
    assert.equal("open", breaker:state())
    opero.simulate(function()
      assert.equal("closed", breaker:state())
    end)
  end)

  it("survives a simulation that ends with a trial under way", function()
    local breaker, orch = guarded { failures = 1, open_for = 1 }
    assert.equal("end", raised(opero.simulate, function()
      play(orch, "x")
      opero.sleep(1)
      opero.spawn(orch.execute, orch, opero.sleep, 100)
      opero.sleep(1)
      error("end", 0)
    end))
    opero.simulate(function()
      play(orch, "x")
      opero.sleep(1)
      assert.equal(1, play(orch, "."))
      assert.equal("closed", breaker:state())
    end)
  end)

  it("hands arguments, results and errors through as they are", simulated(function()
    for _, options in ipairs {
      { failures = 100 }, { failures = 100, key = succeed, slow_call = 10 }, { failure_rate = 1 },
    } do
      local _, orch = guarded(options)
      assert.same({ n = 4, 1, nil, false }, table.pack(orch:execute(succeed, 1, nil, false, nil)))
      assert.same({ n = 0 }, table.pack(orch:execute(succeed)))
      assert.equal(200, select("#", orch:execute(succeed, table.unpack({}, 1, 200))))
      for _, err in ipairs { "text", 5, false, {} } do
        assert.equal(err, raised(orch.execute, orch, error, err, 0))
      end
      assert.is_nil(raised(orch.execute, orch, error, nil))
    end
    local breaker, orch = guarded { failures = 1, open_for = 1 } -- trial calls as well
    assert.is_nil(raised(orch.execute, orch, error, nil))
    opero.sleep(1)
    assert.is_nil(raised(orch.execute, orch, error, nil))
    opero.sleep(1)
    assert.same({ n = 3, nil, nil, 1 }, table.pack(orch:execute(succeed, nil, nil, 1)))
    assert.equal("closed", breaker:state())
  end))
end)

describe("the events of a breaker", function()
  it("tell of every change, and of every call that is refused", simulated(function()
    local told = {}
    local function note(e)
      e.at = opero.now()
      told[#told + 1] = e
    end
    local _, orch = guarded({ failures = 2, open_for = 10 }, {
      on = { breaker_open = note, breaker_half_open = note, breaker_close = note,
        breaker_rejected = note },
    })
    play(orch, "xx.")
    opero.sleep(10)
    play(orch, "x")
    opero.sleep(10)
    play(orch, ".")
    assert.same({
      { event = "breaker_open", at = 0, open_for = 10, error = "no" },
      { event = "breaker_rejected", at = 0, retry_after = 10 },
      { event = "breaker_half_open", at = 10 },
      { event = "breaker_open", at = 10, open_for = 10, error = "no" },
      { event = "breaker_half_open", at = 20 },
      { event = "breaker_close", at = 20 },
    }, told)
    assert.equal(2, orch:stats().events.breaker_open)
  end))

  it("... with the key, to the one whose call it was", simulated(function()
    local breaker = opero.CircuitBreaker { failures = 1, key = succeed }
    local told = {}
    local one = opero.Orchestrator {
      circuit_breaker_config = breaker,
      on = { breaker_open = function(e) told[#told + 1] = e.key end },
    }
    local other = opero.Orchestrator {
      circuit_breaker_config = breaker,
      on = { breaker_rejected = function(e) told[#told + 1] = "rejected " .. e.key end },
    }
    one:try(fail, "a")
    one:try(fail, "a")
    other:try(fail, "a")
    assert.same({ "a", "rejected a" }, told)
  end))

  it("may be listened to by functions that suspend, and be cancelled there", simulated(function()
    local breaker, orch = guarded({ failures = 1, open_for = 10 }, {
      on = { breaker_half_open = function() opero.sleep(5) end,
        breaker_close = function() opero.sleep(5) end },
    })
    play(orch, "x")
    opero.sleep(10)
    local task = opero.spawn(orch.execute, orch, succeed)
    opero.sleep(1)
    assert.is_true(is_open(raised(orch.execute, orch, succeed))) -- one trial, taken
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal("half_open", breaker:state())
    task = opero.spawn(orch.execute, orch, succeed)
    opero.sleep(1)
    assert.equal("closed", breaker:state())
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal(1, orch:execute(succeed, 1))
  end))
end)

describe("the options of a breaker", function()
  it("have defaults", function()
    local config = opero.CircuitBreakerConfig()
    assert.same({ 5, 60, 1, 10000 },
      { config.failures, config.open_for, config.half_open_calls, config.max_keys })
    for _, given in ipairs { {}, { failure_rate = 0.2 }, { failure_on = "x", key = succeed } } do
      config = opero.CircuitBreakerConfig(given)
      assert.same(config, opero.CircuitBreakerConfig(config))
    end
  end)

  for _, case in ipairs {
    { { failures = 0 }, "failures", "an integer >= 1" },
    { { failures = 1.5 }, "failures", "an integer >= 1" },
    { { failure_rate = 0 }, "failure_rate", "a finite number > 0" },
    { { failure_rate = 1.1 }, "failure_rate", "a number > 0 and <= 1" },
    { { failures = 3, failure_rate = 0.5 }, "failures",
      "nothing beside failure_rate: it counts failures in a row, or a rate" },
    { { window = { calls = 5 } }, "window", "nothing without failure_rate" },
    { { failures = 2, min_calls = 5 }, "min_calls", "nothing without failure_rate" },
    { { failure_rate = 0.5, window = {} }, "window", "either calls or seconds" },
    { { failure_rate = 0.5, window = { calls = 5, seconds = 5 } }, "window",
      "either calls or seconds" },
    { { failure_rate = 0.5, window = { calls = 0 } }, "window.calls", "an integer >= 1" },
    { { failure_rate = 0.5, window = { seconds = 0 } }, "window.seconds",
      "a finite number > 0" },
    { { failure_rate = 0.5, window = 10 }, "window", "a table of options" },
    { { failure_rate = 0.5, window = { calls = 5 }, min_calls = 6 }, "min_calls",
      "an integer <= window.calls, which is 5" },
    { { open_for = 0 }, "open_for", "a finite number > 0, or a function" },
    { { open_for = "60" }, "open_for", "a finite number > 0, or a function" },
    { { open_for = math.huge }, "open_for", "a finite number > 0, or a function" },
    { { half_open_calls = 0 }, "half_open_calls", "an integer >= 1" },
    { { slow_call = 0 }, "slow_call", "a finite number > 0" },
    { { failure_on = 5 }, "failure_on",
      "an error class, a Lua pattern, a predicate, or a list of these that is not empty" },
    { { key = "host" }, "key", "a function" },
    { { max_keys = 0 }, "max_keys", "an integer >= 1" },
  } do
    local given, name, allowed = table.unpack(case)
    it(("are checked: %s, %s"):format(name, allowed), function()
      local err = refused(opero.CircuitBreakerConfig, given)
      assert.equal("CircuitBreakerConfig." .. name, err.path)
      assert.equal(allowed, err.allowed)
      assert.equal("CircuitBreaker." .. name, refused(opero.CircuitBreaker, given).path)
      assert.equal("config.circuit_breaker_config." .. name,
        refused(opero.Orchestrator, { circuit_breaker_config = given }).path)
    end)
  end

  it("are options or a breaker", function()
    assert.equal("config.circuit_breaker_config",
      refused(opero.Orchestrator, { circuit_breaker_config = 5 }).path)
    assert.matches('did you mean "failures"',
      refused(opero.CircuitBreaker, { failure = 5 }).message)
  end)
end)

describe("fallbacks of a circuit breaker's function", function()
  it("run when it is open, and do not pass it", simulated(function()
    local calls = 0
    local breaker, orch = guarded({ failures = 1 }, { fallbacks = function()
      calls = calls + 1
      if calls == 3 then
        error("nor here", 0)
      end
      return "instead"
    end })
    assert.equal("instead", orch:execute(fail))
    assert.equal("open", breaker:state())
    assert.equal("instead", orch:execute(fail))
    local err = raised(orch.execute, orch, fail)
    assert.is_true(errors.is(err, errors.AllFailedError))
    assert.is_true(is_open(err.errors[1]))
    assert.equal("nor here", err.errors[2])
    assert.equal(1, breaker:metrics().opened)
  end))

  it("share its limits all the same", simulated(function()
    local _, orch = guarded({ failures = 1 }, {
      fallbacks = function() return opero.now() end,
      rate_limit_config = { rate = 1 },
    })
    assert.equal(1, orch:execute(fail)) -- the first permit was the function's
    assert.equal(2, orch:execute(fail)) -- which is not called any more
  end))
end)
