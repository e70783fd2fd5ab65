local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, refused, simulated = support.raised, support.refused, support.simulated

local function cached(options, config)
  config = config or {}
  options.ttl = options.ttl or 10
  config.cache_config = options
  return opero.Orchestrator(config)
end

-- A function that takes a second, and returns its arguments and which call it was.
local function counting(seconds)
  local state = { calls = 0, ended = 0 }
  function state.fn(...)
    state.calls = state.calls + 1
    local call = state.calls
    local _ <close> = setmetatable({}, { __close = function() state.ended = state.ended + 1 end })
    opero.sleep(seconds or 1)
    if state.err then
      error(state.err[1], 0)
    end
    return call, ...
  end
  return state
end

local function is_cancelled(err)
  return errors.is(err, errors.CancelledError)
end

describe("a cached result", function()
  it("serves for as long as its ttl says", simulated(function()
    local orch, source = cached { ttl = 10 }, counting()
    assert.equal(1, orch:execute(source.fn, "a")) -- at 1
    opero.sleep(9.999)
    assert.equal(1, orch:execute(source.fn, "a"))
    assert.equal(10.999, opero.now())
    opero.sleep(0.001)
    assert.equal(2, orch:execute(source.fn, "a"))
    assert.equal(12, opero.now())
  end))

  it("... which may be for ever", simulated(function()
    local orch, source = cached { ttl = math.huge }, counting()
    orch:execute(source.fn)
    opero.sleep(1e9)
    assert.equal(1, orch:execute(source.fn))
  end))

  it("is handed out as it was, nil and many values included", simulated(function()
    local orch = cached {}
    local function echo(...) return ... end
    for _ = 1, 2 do
      assert.same({ n = 4, 1, nil, false }, table.pack(orch:execute(echo, 1, nil, false, nil)))
      assert.same({ n = 0 }, table.pack(orch:execute(echo)))
      assert.same({ n = 1 }, table.pack(orch:execute(echo, nil)))
      assert.equal(200, select("#", orch:execute(echo, table.unpack({}, 1, 200))))
    end
    local made = {}
    local function make() return made end
    orch:execute(make)
    assert.equal(made, orch:execute(make)) -- the very same one
  end))

  it("is that of one function", simulated(function()
    local orch, one, other = cached {}, counting(), counting()
    orch:execute(one.fn, 1)
    orch:execute(other.fn, 1)
    orch:execute(one.fn, 1)
    assert.same({ 1, 1 }, { one.calls, other.calls })
  end))

  it("passes by all other policies", simulated(function()
    local orch, source = cached({}, { rate_limit_config = { rate = 0.01 } }), counting(0)
    for _ = 1, 10 do
      orch:execute(source.fn)
      assert.equal(0, opero.now())
    end
  end))

  it("is had in the main chunk as well", function()
    local orch, calls = cached {}, 0
    local function count()
      calls = calls + 1
      return calls
    end
    assert.equal(1, orch:execute(count))
    assert.equal(1, orch:execute(count))
    assert.equal("no", raised(orch.execute, orch, error, "no", 0))
  end)
end)

describe("the key of a call", function()
  it("are its arguments, if they are scalars: the same type and value, and as many",
    simulated(function()
      local orch, source = cached {}, counting(0)
      local function call(...)
        return (orch:execute(source.fn, ...))
      end
      local different = {
        {}, { n = 1 }, { n = 2 }, { "" }, { "a" }, { "b" }, { 1 }, { 1.0 }, { "1" }, { 1.5 },
        { true }, { false }, { "true" }, { "nil" }, { 0.0 }, { -0.0 }, { 0 / 0 }, { math.huge },
        { "a", "b" }, { "ab", "" }, { "", "ab" }, { "a", nil, n = 2 }, { nil, "a", n = 2 },
        { 1, 2 }, { 12 }, { "1", "2" }, { math.mininteger }, { 2 ^ 53 }, { 2 ^ 53 | 0 },
        { "2:i1;i2;\0" }, { "0:\0" }, { "1:snil;\0" }, { "\0" }, { "\0\0" },
      }
      for i, arguments in ipairs(different) do
        assert.equal(i, call(table.unpack(arguments, 1, arguments.n or #arguments)))
      end
      for i, arguments in ipairs(different) do
        assert.equal(i, call(table.unpack(arguments, 1, arguments.n or #arguments)))
      end
    end))

  it("has to be made by a function, if they are not", simulated(function()
    local orch = cached {}
    local err = refused(orch.execute, orch, counting(0).fn, 1, {})
    assert.equal("cache_config.key", err.path)
    assert.equal("cache_config.key: expected scalar arguments where there is no function to make "
      .. "the key, at argument 2, got a table", err.message)

    local source = counting(0)
    orch = cached { key = function(request) return request.id end }
    assert.equal(1, orch:execute(source.fn, { id = 5 }))
    assert.equal(1, orch:execute(source.fn, { id = 5 }))
    assert.equal(2, orch:execute(source.fn, { id = 6 }))
    assert.equal(3, orch:execute(source.fn, { id = false }))
    assert.equal(3, orch:execute(source.fn, { id = false }))
    local id = {}
    assert.equal(4, orch:execute(source.fn, { id = id }))
    assert.equal(4, orch:execute(source.fn, { id = id }))
  end))

  it("may be nil: that call goes past the cache, and so does one of NaN", simulated(function()
    local orch, source = cached { key = function(key) return key end }, counting()
    opero.all {
      function() orch:execute(source.fn, nil) end, function() orch:execute(source.fn, nil) end,
      function() orch:execute(source.fn, 0 / 0) end, function() orch:execute(source.fn, 0 / 0) end,
    }
    assert.equal(4, source.calls)
  end))

  it("... whose function's error is that of the call", simulated(function()
    local orch, source = cached { key = function(x) return x.id end }, counting()
    assert.matches("attempt to index a nil value", raised(orch.execute, orch, source.fn, nil))
    assert.equal(0, source.calls)
    assert.equal(1, orch:execute(source.fn, { id = 1 }))
  end))
end)

describe("max_entries", function()
  it("is how much is kept: what was not used for longest goes first", simulated(function()
    local orch, source = cached { max_entries = 3 }, counting(0)
    for _, key in ipairs { "a", "b", "c", "a", "d" } do -- b goes
      orch:execute(source.fn, key)
    end
    assert.equal(4, source.calls)
    for _, key in ipairs { "a", "c", "d" } do
      orch:execute(source.fn, key)
    end
    assert.equal(4, source.calls)
    orch:execute(source.fn, "b") -- a goes
    orch:execute(source.fn, "c")
    assert.equal(5, source.calls)
    orch:execute(source.fn, "a")
    assert.equal(6, source.calls)
  end))

  it("... of all functions together, and lets go of them", simulated(function()
    local orch = cached { max_entries = 10 }
    local alive = setmetatable({}, { __mode = "k" })
    for i = 1, 100 do
      local function fn() return i end
      alive[fn] = true
      orch:execute(fn)
    end
    collectgarbage()
    local count = 0
    for _ in pairs(alive) do
      count = count + 1
    end
    assert.is_true(count <= 11)
  end))

  it("... and does not count what is under way", simulated(function()
    local orch, source = cached { max_entries = 1 }, counting()
    opero.scope(function(scope)
      for i = 1, 20 do
        scope:spawn(orch.execute, orch, source.fn, i % 10)
      end
    end)
    assert.equal(10, source.calls)
    assert.equal(1, opero.now())
  end))
end)

describe("concurrent calls for one key", function()
  it("share one execution", simulated(function()
    local orch, source, results = cached {}, counting(), {}
    opero.scope(function(scope)
      for i = 1, 10 do
        scope:spawn(function()
          opero.sleep(i * 0.09)
          results[i] = table.pack(orch:execute(source.fn, "x", nil))
        end)
      end
    end)
    assert.equal(1, source.calls)
    for i = 1, 10 do
      assert.same({ n = 3, 1, "x" }, results[i])
    end
    assert.near(1.09, opero.now(), 1e-9)
  end))

  it("... also when it fails, with one error", simulated(function()
    local orch, source = cached {}, counting()
    local problem = {}
    source.err = { problem }
    local function call()
      return raised(orch.execute, orch, source.fn)
    end
    assert.same({ problem, problem, n = 2 }, opero.all { call, call })
    assert.equal(1, source.calls)
    source.err = { nil }
    assert.same({ n = 2 }, opero.all { call, call })
    assert.equal(2, source.calls) -- a failure is not kept
  end))

  it("... retries, fallbacks and all", simulated(function()
    local source = counting()
    source.err = { "no" }
    local orch = cached({}, {
      retry_config = { max_attempts = 3, wait_min = 1, wait_max = 1 },
      fallbacks = function(x) return "instead of " .. x end,
    })
    local function call() return orch:execute(source.fn, "x") end
    assert.same({ "instead of x", "instead of x", n = 2 }, opero.all { call, call })
    assert.equal(3, source.calls)
    assert.equal("instead of x", orch:execute(source.fn, "x")) -- which is kept
    assert.equal(5, opero.now())
  end))

  it("... which is not cancelled by a caller who is, not even by the first",
    simulated(function()
      local orch, source = cached {}, counting()
      local tasks = {}
      for i = 1, 3 do
        tasks[i] = opero.spawn(orch.execute, orch, source.fn)
      end
      opero.sleep(0.5)
      tasks[1]:cancel()
      assert.is_true(is_cancelled(raised(tasks[1].await, tasks[1])))
      assert.equal(0.5, opero.now())
      assert.is_true(errors.is(raised(opero.timeout, 0.2, orch.execute, orch, source.fn),
        errors.TimeoutError))
      tasks[3]:cancel()
      assert.equal(1, tasks[2]:await())
      assert.equal(1, opero.now())
      assert.equal(1, source.calls)
    end))

  it("... but by the last one who leaves", simulated(function()
    local orch, source = cached {}, counting()
    local tasks = { opero.spawn(orch.execute, orch, source.fn),
      opero.spawn(orch.execute, orch, source.fn) }
    opero.sleep(0.5)
    tasks[1]:cancel()
    raised(tasks[1].await, tasks[1])
    assert.equal(0, source.ended)
    tasks[2]:cancel()
    assert.is_true(is_cancelled(raised(tasks[2].await, tasks[2])))
    assert.equal(1, source.ended)
    assert.equal(1, #opero.tasks())
    assert.equal(2, orch:execute(source.fn)) -- nothing of it is left
    assert.equal(1.5, opero.now())
  end))

  it("... who waits for its end, while others fly anew", simulated(function()
    local orch, calls = cached {}, 0
    local function stubborn()
      calls = calls + 1
      local call = calls
      if call == 1 then
        opero.shield(opero.sleep, 5)
      else
        opero.sleep(10)
      end
      return call
    end
    local first = opero.spawn(orch.execute, orch, stubborn)
    opero.sleep(1)
    first:cancel()
    opero.yield()
    local second = opero.spawn(orch.execute, orch, stubborn)
    raised(first.await, first)
    assert.equal(5, opero.now())
    local third = opero.spawn(orch.execute, orch, stubborn) -- shares the second one
    assert.equal(2, second:await())
    assert.equal(2, third:await())
    assert.equal(2, calls)
    assert.equal(11, opero.now())
  end))

  it("... and an error that says so does not cancel the callers", simulated(function()
    local orch = cached({}, { fallbacks = opero.value "instead" })
    local cancellation = errors.CancelledError "of something else"
    local function call()
      return raised(orch.execute, orch, function(_)
        opero.sleep(1)
        error(cancellation)
      end, 1)
    end
    assert.equal(cancellation, call())
    opero.sleep(1)
    assert.equal(2, opero.now())
  end))

  it("leave nothing behind, in any order of ends", function()
    for seed = 1, 60 do
      opero.simulate(function()
        local random = require "opero.core".random
        local orch, source = cached { ttl = 0.5, max_entries = 2, negative_ttl = 0.1 }, counting()
        opero.scope(function(scope)
          for i = 1, 40 do
            scope:spawn(function()
              opero.sleep(random() * 10)
              source.err = random() < 0.3 and { "no" } or nil
              local task = opero.spawn(orch.try, orch, source.fn, i % 4)
              opero.sleep(random() * 1.5)
              task:cancel()
              pcall(task.await, task)
            end)
          end
        end)
        assert.equal(source.calls, source.ended)
        assert.equal(1, #opero.tasks())
        source.err = nil
        opero.sleep(1)
        assert.equal(source.calls + 1, (orch:execute(source.fn, 1)))
      end, { seed = seed })
    end
  end)

  it("that are ended with their simulation are no trouble", function()
    local orch, source = cached {}, counting()
    for _ = 1, 3 do
      assert.equal("end", raised(opero.simulate, function()
        opero.spawn(orch.execute, orch, source.fn)
        opero.spawn(orch.execute, orch, source.fn)
        opero.sleep(0.5)
        error("end", 0)
      end))
    end
    assert.same({ 3, 3 }, { source.calls, source.ended })
    opero.simulate(function()
      assert.equal(4, orch:execute(source.fn))
    end)
  end)
end)

describe("a failure", function()
  it("is not kept, unless there is a negative_ttl", simulated(function()
    local source = counting(0)
    source.err = { "no" }
    local orch = cached {}
    for i = 1, 3 do
      assert.equal("no", raised(orch.execute, orch, source.fn))
      assert.equal(i, source.calls)
    end

    source = counting(0)
    orch = cached { negative_ttl = 5 }
    for _, err in ipairs { "no", false, {} } do
      source.err = { err }
      for _ = 1, 3 do
        assert.equal(err, raised(orch.execute, orch, source.fn))
      end
      opero.sleep(4.999)
      raised(orch.execute, orch, source.fn)
      opero.sleep(0.001)
    end
    assert.equal(3, source.calls)
    source.err = nil
    assert.equal(4, orch:execute(source.fn))
    assert.equal(4, orch:execute(source.fn))

    local calls = 0 -- nil is an error like any
    local function fail()
      calls = calls + 1
      error(nil)
    end
    assert.is_nil(raised(orch.execute, orch, fail))
    assert.is_nil(raised(orch.execute, orch, fail))
    assert.equal(1, calls)
  end))

  it("... and a cancellation never is", simulated(function()
    local orch, source = cached { negative_ttl = 100 }, counting()
    local task = opero.spawn(orch.execute, orch, source.fn)
    opero.sleep(0.5)
    task:cancel()
    raised(task.await, task)
    assert.equal(2, orch:execute(source.fn))
  end))

  it("lets the old result serve for as long as stale_while_error says", simulated(function()
    local orch, source = cached { ttl = 10, stale_while_error = 20 }, counting(0)
    assert.equal(1, orch:execute(source.fn))
    source.err = { "no" }
    opero.sleep(10)
    assert.equal(1, orch:execute(source.fn)) -- asked for again, and not had
    assert.equal(2, source.calls)
    opero.sleep(20)
    assert.equal(1, orch:execute(source.fn))
    assert.equal(3, source.calls)
    opero.sleep(0.001)
    assert.equal("no", raised(orch.execute, orch, source.fn))
    source.err = nil
    assert.equal(5, orch:execute(source.fn))
  end))

  it("... together with negative_ttl without asking each time", simulated(function()
    local orch = cached { ttl = 10, stale_while_error = 20, negative_ttl = 5 }
    local source = counting(0)
    assert.equal(1, orch:execute(source.fn))
    source.err = { "no" }
    opero.sleep(10)
    for _ = 1, 5 do
      assert.equal(1, orch:execute(source.fn))
      assert.equal(2, source.calls)
      opero.sleep(1)
    end
    source.err = nil
    assert.equal(3, orch:execute(source.fn))
  end))
end)

describe("the cache", function()
  it("starts afresh under another clock", function()
    local orch, source = cached { ttl = math.huge }, counting(0)
    for i = 1, 2 do
      opero.simulate(function()
        assert.equal(i, orch:execute(source.fn))
        assert.equal(i, orch:execute(source.fn))
      end)
    end
    assert.equal(3, orch:execute(source.fn))
  end)

  it("tells of what it does", simulated(function()
    local told = {}
    local function note(e) told[#told + 1] = e end
    local orch = cached({ ttl = 10, stale_while_error = 5 }, {
      on = { cache_hit = note, cache_miss = note, cache_shared = note, cache_stale = note },
    })
    local source = counting()
    opero.all {
      function() orch:execute(source.fn, "a") end, function() orch:execute(source.fn, "a") end,
    }
    orch:execute(source.fn, "a")
    source.err = { "no" }
    opero.sleep(10)
    orch:execute(source.fn, "a")
    assert.same({
      { event = "cache_miss", key = "a" },
      { event = "cache_shared", key = "a" },
      { event = "cache_hit", key = "a" },
      { event = "cache_miss", key = "a" },
      { event = "cache_stale", key = "a", error = "no", age = 11 },
    }, told)
    assert.equal(2, orch:stats().events.cache_miss)
  end))

  it("... to listeners that may suspend, and be cancelled there", simulated(function()
    local source = counting()
    local orch = cached({}, { on = {
      cache_miss = function() opero.sleep(5) end, cache_hit = function() opero.sleep(5) end,
    } })
    local first = opero.spawn(orch.execute, orch, source.fn)
    opero.sleep(0.5)
    local second = opero.spawn(orch.execute, orch, source.fn)
    opero.sleep(0.1)
    first:cancel()
    assert.is_true(is_cancelled(raised(first.await, first)))
    assert.equal(1, second:await())
    assert.equal(1, opero.now())
    local third = opero.spawn(orch.execute, orch, source.fn)
    opero.sleep(1)
    third:cancel()
    assert.is_true(is_cancelled(raised(third.await, third)))
  end))
end)

describe("the options of the cache", function()
  it("have defaults", function()
    local config = opero.CacheConfig { ttl = 5 }
    assert.same({ ttl = 5, max_entries = 1000, negative_ttl = 0, stale_while_error = 0 }, config)
    assert.same(config, opero.CacheConfig(config))
  end)

  for _, case in ipairs {
    { {}, "ttl", "a number > 0" },
    { { ttl = 0 }, "ttl", "a number > 0" },
    { { ttl = "5" }, "ttl", "a number > 0" },
    { { ttl = 0 / 0 }, "ttl", "a number > 0" },
    { { ttl = 5, max_entries = 0 }, "max_entries", "an integer >= 1" },
    { { ttl = 5, max_entries = 1.5 }, "max_entries", "an integer >= 1" },
    { { ttl = 5, key = "id" }, "key", "a function" },
    { { ttl = 5, negative_ttl = -1 }, "negative_ttl", "a finite number >= 0" },
    { { ttl = 5, stale_while_error = true }, "stale_while_error", "a finite number >= 0" },
  } do
    local given, name, allowed = table.unpack(case)
    it(("are checked: %s, %s"):format(name, tostring(given[name])), function()
      local err = refused(opero.CacheConfig, given)
      assert.equal("CacheConfig." .. name, err.path)
      assert.equal(allowed, err.allowed)
      assert.equal("config.cache_config." .. name,
        refused(opero.Orchestrator, { cache_config = given }).path)
    end)
  end
end)
