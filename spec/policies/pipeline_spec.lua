local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local broken, failing, raised = support.broken, support.failing, support.raised
local refused, simulated = support.refused, support.simulated

local function echo(...) return ... end

-- A policy that notes when it is entered and left.
local function noting(log, name)
  return function(next)
    return function(...)
      log[#log + 1] = name .. "+"
      local results = table.pack(next(...))
      log[#log + 1] = name .. "-"
      return table.unpack(results, 1, results.n)
    end
  end
end

local function every(wait, max_attempts)
  return { retry_config = { max_attempts = max_attempts, wait_min = wait, wait_max = wait } }
end

describe("a pipeline", function()
  it("composes from left to right, outermost first", simulated(function()
    local log = {}
    local pipeline = opero.pipeline { noting(log, "a"), noting(log, "b"), noting(log, "c") }
    assert.equal("x", pipeline:execute(function(x)
      log[#log + 1] = "fn"
      return x
    end, "x"))
    assert.same({ "a+", "b+", "c+", "fn", "c-", "b-", "a-" }, log)
  end))

  it("has its policies in any order", simulated(function()
    -- Within the retries the timeout is for each attempt; around them it is for all.
    local calls = 0
    local function slow()
      calls = calls + 1
      opero.sleep(2)
    end
    local inside = opero.pipeline { every(1, 3), { timeout_config = { total = 1 } } }
    assert.is_true(errors.is(raised(inside.execute, inside, slow), errors.TimeoutError))
    assert.same({ 3, 5 }, { calls, opero.now() })
    local outside = opero.pipeline { { timeout_config = { total = 1 } }, every(1, 3) }
    assert.is_true(errors.is(raised(outside.execute, outside, slow), errors.TimeoutError))
    assert.same({ 4, 6 }, { calls, opero.now() })
  end))

  it("may have the same policy more than once", simulated(function()
    local fn, times = broken "x"
    local pipeline = opero.pipeline { every(10, 2), every(1, 3) }
    assert.equal("x", raised(pipeline.execute, pipeline, fn))
    assert.same({ 0, 1, 2, 12, 13, 14 }, times)
  end))

  it("hands arguments and results through, and errors of any type", simulated(function()
    local log = {}
    for _, pipeline in ipairs {
      opero.pipeline {},
      opero.pipeline { opero.pipeline {} },
      opero.pipeline { noting(log, "a"), { fallbacks = {} }, every(0, 1), noting(log, "b") },
    } do
      assert.same({ n = 4, nil, nil, 3, nil },
        table.pack(pipeline:execute(echo, nil, nil, 3, nil)))
      assert.same({ n = 0 }, table.pack(pipeline:execute(echo)))
      assert.same({ n = 200, table.unpack({}, 1, 200) },
        table.pack(pipeline:execute(echo, table.unpack({}, 1, 200))))
      for _, err in ipairs { "text", 5, false, { "table" }, errors.OperoError "x" } do
        assert.equal(err, raised(pipeline.execute, pipeline, (broken(err))))
      end
      assert.is_nil(raised(pipeline.execute, pipeline, (broken(nil))))
      assert.equal("why", raised(pipeline.execute, pipeline, function() return nil, "why" end))
    end
  end))

  it("works in the main chunk, and runs in the calling task", function()
    local pipeline = opero.pipeline { every(0, 3), { timeout_config = { total = 5 } } }
    assert.equal(5, pipeline:execute((failing("a", "b")), 5))
    opero.simulate(function()
      local me = opero.current()
      pipeline:execute(function() assert.equal(me, opero.current()) end)
    end)
  end)

  it("is not changed by what becomes of the list later", simulated(function()
    local list = { every(1, 2) }
    local pipeline = opero.pipeline(list)
    list[1].retry_config.max_attempts = 9
    list[1] = nil
    local fn, times = broken "x"
    raised(pipeline.execute, pipeline, fn)
    assert.equal(2, #times)
  end))

  it("wraps functions, and whatever can be called", simulated(function()
    local pipeline = opero.pipeline { every(1, 3) }
    local wrapped = pipeline:wrap((failing("a", "b")))
    assert.same({ n = 3, 7, nil, nil }, table.pack(wrapped(7, nil, nil)))
    local object = setmetatable({}, { __call = function(_, x) return x * 2 end })
    assert.equal(8, pipeline:wrap(object)(4))
    assert.equal(8, pipeline:execute(object, 4))
  end))

  it("refuses to call what cannot be called", function()
    local pipeline = opero.pipeline {}
    for _, bad in ipairs { 5, "x", {}, true } do
      assert.equal("execute.fn", refused(pipeline.execute, pipeline, bad).path)
      assert.equal("wrap.fn", refused(pipeline.wrap, pipeline, bad).path)
    end
    assert.equal("wrap.fn", refused(pipeline.wrap, pipeline).path)
  end)
end)

describe("a pipeline in another", function()
  it("stands there with all its policies", simulated(function()
    local log = {}
    local inner = opero.pipeline { noting(log, "b"), noting(log, "c") }
    local outer = opero.pipeline { noting(log, "a"), inner, noting(log, "d") }
    outer:execute(echo)
    assert.same({ "a+", "b+", "c+", "d+", "d-", "c-", "b-", "a-" }, log)
    local fn, times = broken "x"
    local nested = opero.pipeline { opero.pipeline { opero.pipeline { every(1, 2) } } }
    raised(nested.execute, nested, fn)
    assert.equal(2, #times)
  end))

  it("has one limit, wherever it stands", simulated(function()
    local limits = opero.pipeline {
      { rate_limit_config = { rate = 1 } }, { concurrency_config = { limit = 1 } },
    }
    local a = opero.pipeline { every(1, 2), limits }
    local b = opero.pipeline { limits, every(1, 2) }
    local times = {}
    local function note(pipeline)
      return function()
        pipeline:execute(function()
          times[#times + 1] = opero.now()
          opero.sleep(3)
        end)
      end
    end
    opero.all { note(a), note(b), note(limits) }
    assert.same({ 0, 3, 6 }, times)
  end))

  it("has one budget, breaker, and stream of chaos", simulated(function()
    local inner = opero.pipeline {
      { retry_config = { max_attempts = 9, wait_min = 0, wait_multiplier = 0,
        budget = { ratio = 0, min_per_second = 1, window = 3 } } },
      { circuit_breaker_config = { failures = 6 } },
    }
    local a, b = opero.pipeline { inner }, opero.pipeline { inner }
    local fn, times = broken "x"
    raised(a.execute, a, fn)
    assert.equal(4, #times)
    raised(b.execute, b, fn)
    assert.equal(5, #times)
    raised(a.execute, a, fn)
    assert.is_true(errors.is(raised(b.execute, b, fn), errors.CircuitOpenError))
    assert.equal(6, #times)
  end))
end)

describe("a policy of one's own", function()
  it("may change arguments and results, and not call at all", simulated(function()
    local function doubling(next)
      return function(x)
        if x == 0 then
          return "nothing"
        end
        return next(x * 2) + 1
      end
    end
    local pipeline = opero.pipeline { doubling, doubling }
    assert.equal(10 * 4 + 2, pipeline:execute(echo, 10))
    assert.equal("nothing", pipeline:execute(echo, 0))
  end))

  it("may mend errors, call more than once, and suspend", simulated(function()
    local function twice(next)
      return function(...)
        local ok, result = pcall(next, ...)
        if ok then
          return result
        end
        opero.sleep(1)
        return next(...)
      end
    end
    local pipeline = opero.pipeline { twice, { rate_limit_config = { rate = 0.5 } } }
    local fn, times = failing "x"
    assert.equal(5, pipeline:execute(fn, 5))
    assert.same({ 0, 2 }, times)
  end))

  it("that fails makes its error that of the call, for the policies around it", simulated(function()
    for _, err in ipairs { "mine", false, { "mine" } } do
      local function raising()
        return function() error(err, 0) end
      end
      local function refusing()
        return function() return nil, err end
      end
      local function unmade() error(err, 0) end
      for _, policy in ipairs { raising, refusing, unmade } do
        local pipeline = opero.pipeline { policy }
        assert.equal(err, raised(pipeline.execute, pipeline, echo))
        pipeline = opero.pipeline { { fallbacks = opero.value "copy" }, policy }
        assert.equal("copy", pipeline:execute(echo))
      end
    end
  end))

  it("keeps where the error was raised", simulated(function()
    local function deep_trouble() error("trouble", 0) end
    local pipeline = opero.pipeline { noting({}, "a"), every(0, 2), noting({}, "b") }
    local err = raised(pipeline.execute, pipeline, function()
      deep_trouble()
      return 1
    end)
    assert.matches("deep_trouble", opero.traceback(err))
  end))

  it("that makes no function is refused when it is called", simulated(function()
    local pipeline = opero.pipeline { every(0, 1), function() return 5 end }
    assert.equal("pipeline[2]: expected a policy that returns a function when it is given one, "
      .. "got 5", refused(pipeline.execute, pipeline, echo).message)
  end))

  it("is given the next function once for each function, which it may keep a state for",
    simulated(function()
      local made = 0
      local function once(next)
        made = made + 1
        local result
        return function(...)
          result = result or table.pack(next(...))
          return table.unpack(result, 1, result.n)
        end
      end
      local pipeline = opero.pipeline { once }
      local calls = 0
      local fn = pipeline:wrap(function(x)
        calls = calls + 1
        return x
      end)
      assert.same({ 1, 1, 1 }, { fn(1), fn(2), fn(3) })
      assert.equal(1, calls)
      assert.equal(7, pipeline:execute(function() return 7 end))
      assert.equal(2, made)
    end))

  it("does not keep the functions it was given alive", simulated(function()
    local seen = setmetatable({}, { __mode = "k" })
    local pipeline = opero.pipeline { function(next)
      return function(...) return next(...) end
    end }
    for i = 1, 10 do
      local function fn() return i end
      seen[fn] = true
      pipeline:execute(fn)
    end
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(seen))
  end))

  it("may be an object that can be called", simulated(function()
    local policy = setmetatable({}, { __call = function(_, next)
      return setmetatable({}, { __call = function(_, ...) return "called", next(...) end })
    end })
    assert.same({ "called", 5 }, { opero.pipeline { policy }:execute(echo, 5) })
  end))
end)

describe("cancellation and Ctrl-C", function()
  it("pass through a pipeline", simulated(function()
    local pipeline = opero.pipeline {
      { fallbacks = echo }, every(1, 5), noting({}, "a"), { retry_config = {} },
    }
    local calls = 0
    local task = opero.spawn(pipeline.execute, pipeline, function()
      calls = calls + 1
      opero.sleep(9)
    end)
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal("cancelled", task:status())
    assert.same({ 1, 1 }, { calls, opero.now() })
    local fn, times = broken "x.lua:1: interrupted!"
    assert.equal("x.lua:1: interrupted!", raised(pipeline.execute, pipeline, fn))
    assert.equal(1, #times)
  end))
end)

describe("a pipeline's policies", function()
  it("are options, objects, pipelines and functions", simulated(function()
    local breaker, limiter = opero.CircuitBreaker { failures = 1 }, opero.RateLimiter { rate = 1 }
    local bulkhead, chaos = opero.Bulkhead { limit = 1 }, opero.Chaos { error_rate = 1 }
    local pipeline = opero.pipeline { bulkhead, breaker, limiter, chaos }
    raised(pipeline.execute, pipeline, echo)
    assert.equal("open", breaker:state())
    assert.equal(0, limiter:stats().available)
    assert.equal(0, bulkhead:stats().in_flight)
    for name, options in pairs {
      cache_config = { ttl = 1 }, timeout_config = { attempt = 1, total = 2 },
      concurrency_config = { limit = 1 }, fallbacks = echo, retry_config = {}, hedge_config = {},
      circuit_breaker_config = {}, rate_limit_config = { rate = 1 }, chaos_config = {},
    } do
      assert.equal(5, opero.pipeline { { [name] = options } }:execute(echo, 5))
    end
    assert.equal(5, opero.pipeline {
      { fallbacks = (broken "x"), fallback_on = "a", arg_fallback = { values = { 5 } } },
    }:execute(function(x)
      return x == 5 and x or error("a", 0)
    end, 1))
  end))

  it("start afresh under another clock", function()
    local pipeline = opero.pipeline {
      { rate_limit_config = { rate = 1 } }, { circuit_breaker_config = { failures = 1 } },
    }
    raised(pipeline.execute, pipeline, (broken "x"))
    for _ = 1, 2 do
      opero.simulate(function()
        assert.equal(5, pipeline:execute(echo, 5))
        assert.equal(0, opero.now())
        assert.equal("x", raised(pipeline.execute, pipeline, (broken "x")))
      end)
    end
  end)

  it("are refused with the reason and the path when they are none", function()
    local allowed = "a policy: options such as { retry_config = {...} }, an object such as "
      .. "CircuitBreaker, a pipeline, or a function"
    for _, bad in ipairs { 5, "retry", true, {} } do
      local err = refused(opero.pipeline, { every(1, 1), bad })
      assert.equal("pipeline[2]", err.path)
      assert.equal(allowed, err.allowed)
    end
    assert.equal("pipeline[1]", refused(opero.pipeline, { nil, every(1, 1) }).path)
    assert.equal("pipeline.retry_config", refused(opero.pipeline, every(1, 1)).path)
    assert.equal("pipeline: expected a list of policies, got nil", refused(opero.pipeline).message)
    assert.equal("pipeline[1].retry_config.max_attempts",
      refused(opero.pipeline, { every(1, 0) }).path)
    assert.equal('pipeline[1].retry_confg: unknown option; did you mean "retry_config"?',
      refused(opero.pipeline, { { retry_confg = {} } }).message)
    assert.equal("pipeline[1].name", refused(opero.pipeline, { { name = "x" } }).path)
    assert.equal("pipeline[1].fallback_on", refused(opero.pipeline, { { fallback_on = "x" } }).path)
  end)

  it("are one for each element", function()
    for _, element in ipairs {
      { retry_config = {}, hedge_config = {} },
      { retry_config = {}, fallbacks = echo },
      { retry_config = {}, arg_fallback = { values = { 1 } } },
    } do
      local err = refused(opero.pipeline, { element })
      assert.equal("pipeline[1]: expected one policy: the order of several is that of the "
        .. "pipeline, got a table", err.message)
    end
  end)
end)

describe("the events of a pipeline", function()
  it("are told to its listeners", simulated(function()
    local told = {}
    local pipeline = opero.pipeline { { fallbacks = opero.value(1) }, every(1, 2) }
    for _, name in ipairs { "retry", "fallback" } do
      pipeline:on(name, function(e) told[#told + 1] = e.event end)
    end
    pipeline:execute((broken "x"))
    assert.same({ "retry", "fallback" }, told)
  end))

  it("are told to those of the pipeline around it as well", simulated(function()
    local told = {}
    local function tell(name)
      return function(e) told[#told + 1] = name .. " " .. e.error end
    end
    local inner = opero.pipeline { every(1, 2) }
    local outer = opero.pipeline { { fallbacks = opero.value(1) }, inner }
    inner:on("retry", tell "inner")
    inner:on("fallback", tell "inner: never")
    outer:on("retry", tell "outer")
    outer:on("fallback", tell "outer")
    outer:execute((broken "x"))
    assert.same({ "outer x", "inner x", "outer x" }, told)
    inner:on("retry", tell "inner again") -- whether it stands in another already or not
    raised(inner.execute, inner, (broken "y"))
    assert.same({ "inner y", "inner again y" }, { table.unpack(told, 4) })
    outer:execute((broken "z"))
    assert.same({ "outer z", "inner z", "inner again z", "outer z" }, { table.unpack(told, 6) })
  end))

  it("are those of policies", function()
    local pipeline = opero.pipeline {}
    assert.equal("on.name: expected an event of a policy: of executions an orchestrator tells, "
      .. 'got "success" (a string)', refused(pipeline.on, pipeline, "success", echo).message)
    assert.equal("on.name", refused(pipeline.on, pipeline, "failure", echo).path)
    assert.equal("on.name", refused(pipeline.on, pipeline, "retries", echo).path)
    assert.equal("on.listener", refused(pipeline.on, pipeline, "retry", 5).path)
  end)
end)
