-- What a pool and its methods refuse, and how they say so.

local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.pool.support"

local raised, refused = support.raised, support.refused

local function square(x) return x * x end

-- For every option: what it does not take; what the message says it takes, if that is as for the
-- options of policies; what it takes at its limits.
local NAN, INF = 0 / 0, math.huge
local options = {
  max_workers = {
    refused = { 0, -1, 1.5, "2", true, {}, INF, NAN, square },
    allowed = "an integer >= 1", taken = { 1, 2.0, 1000 },
  },
  backend = {
    refused = { "thread", "", "Fork", 1, true, {} },
    allowed = 'one of "fork", "spawn"', taken = { "fork", "spawn" },
  },
  init = {
    refused = { 1, "f", true, {} },
    allowed = "a function", taken = { square },
  },
  task_timeout = {
    refused = { 0, -1, "1", true, {}, INF, NAN },
    allowed = "a finite number > 0", taken = { 1e-9, 5, 1e6 },
  },
  max_tasks_per_worker = {
    refused = { 0, -1, 1.5, "1", true, {}, INF, NAN },
    allowed = "an integer >= 1", taken = { 1, 2.0 },
  },
  tasks_per_worker = {
    refused = { 0, -1, 257, 1.5, "1", true, {}, INF, NAN },
    taken = { 1, 256, 16.0 },
  },
  memory_limit = {
    refused = { 0, -1, 0.5, "1", "64M", true, {}, INF, NAN },
    taken = { 1, 64 << 20, 64 * 2.0 ^ 20 },
  },
  nice = {
    refused = { -21, 20, 0.5, "1", true, {}, INF, NAN },
    taken = { -20, 0, 19, 5.0 },
  },
  idle_timeout = {
    refused = { -1, "1", true, {}, INF, NAN },
    allowed = "a finite number >= 0", taken = { 0, 0.5 },
  },
  cancel = {
    refused = { "stop", "", 1, true, {} },
    allowed = 'one of "kill", "wait"', taken = { "kill", "wait" },
  },
  interpreter = {
    refused = { 1, true, {}, square },
    taken = { "lua5.4", "/usr/bin/lua5.4" },
  },
}

local NAMES <const> = "accept_functions, backend, cancel, idle_timeout, init, interpreter, "
  .. "max_tasks_per_worker, max_workers, memory_limit, nice, task_timeout, tasks_per_worker"

-- Everything that takes these options, and the path with which its messages begin.
local takers = {
  { path = "Pool", make = opero.Pool },
  { path = "MultiprocessConfig", make = opero.MultiprocessConfig },
  { path = "OrchestratorConfig.multiprocess_config", make = function(given)
    return opero.OrchestratorConfig { multiprocess_config = given }
  end },
  { path = "config.multiprocess_config", make = function(given)
    return opero.Orchestrator { multiprocess_config = given }
  end },
  { path = "config.multiprocess_config", make = function(given)
    return opero.Orchestrator { config = { multiprocess_config = given } }
  end },
}

-- The same value, and the same kind of number: NaN is none.
local function is_same(a, b)
  return a == b or a ~= a and b ~= b
end

for name, option in pairs(options) do
  describe("the option " .. name .. " of a pool", function()
    it("refuses what it does not take", function()
      for _, taker in ipairs(takers) do
        local path = taker.path .. "." .. name
        for _, bad in ipairs(option.refused) do
          local err = refused(taker.make, { [name] = bad })
          assert.equal(path, err.path)
          assert.is_true(is_same(bad, err.value))
          assert.equal("string", type(err.allowed))
          assert.equal(option.allowed or err.allowed, err.allowed)
          local said = ("%s: expected %s, got "):format(path, err.allowed)
          assert.equal(said, err.message:sub(1, #said))
        end
      end
    end)

    it("takes the rest", function()
      for _, good in ipairs(option.taken) do
        local pool <close> = opero.Pool { [name] = good }
        assert.equal(0, pool:stats().started)
        local config = opero.MultiprocessConfig { [name] = good }
        assert.equal(good, config[name])
      end
    end)
  end)
end

describe("the options of a pool", function()
  it("tell their range where it has two ends", function()
    local message = refused(opero.Pool, { tasks_per_worker = 257 }).message
    assert.matches("1", message, 1, true)
    assert.matches("256", message, 1, true)
    assert.matches("got 257", message, 1, true)
    message = refused(opero.Pool, { nice = 20 }).message
    assert.matches("-20", message, 1, true)
    assert.matches("19", message, 1, true)
    assert.matches("got 20", message, 1, true)
  end)

  it("must be known; one near is suggested", function()
    for _, taker in ipairs(takers) do
      for given, meant in pairs {
        max_worker = "max_workers", maxWorkers = "max_workers", workers = "max_workers",
        back_end = "backend", task_timeouts = "task_timeout", idle_time = "idle_timeout",
        max_task_per_worker = "max_tasks_per_worker", memory = "memory_limit", cancels = "cancel",
      } do
        local err = refused(taker.make, { [given] = 2 })
        assert.equal(("%s.%s"):format(taker.path, given), err.path)
        assert.equal(("%s: unknown option; did you mean %q?"):format(err.path, meant), err.message)
      end
    end
  end)

  it("are listed when none is near", function()
    assert.equal("Pool.verbosity: unknown option; the options are " .. NAMES,
      refused(opero.Pool, { verbosity = 2 }).message)
    assert.equal("Pool[1]: unknown option; the options are " .. NAMES,
      refused(opero.Pool, { square }).message)
  end)

  it("are a table", function()
    for _, taker in ipairs(takers) do
      for _, bad in ipairs { 5, "fork", true, square, io.stdout } do
        local err = refused(taker.make, bad)
        assert.equal(taker.path, err.path)
        assert.equal(bad, err.value)
      end
    end
  end)

  it("are completed in a copy", function()
    local given = { max_workers = 3 }
    local config = opero.MultiprocessConfig(given)
    assert.same({ max_workers = 3 }, given)
    assert.same({ 3, "fork", 1, "kill" },
      { config.max_workers, config.backend, config.tasks_per_worker, config.cancel })
    assert.same({}, { config.init, config.task_timeout, config.max_tasks_per_worker,
      config.memory_limit, config.nice, config.idle_timeout })
    assert.same(config, opero.MultiprocessConfig(config))
  end)

  it("may all be left out", function()
    local pool <close> = opero.Pool {}
    assert.equal(4, pool:call(square, 2))
    assert.same(opero.MultiprocessConfig {}, opero.MultiprocessConfig())
  end)

  it("do not change when their table does", function()
    local given = { max_workers = 1, backend = "fork" }
    local pool <close> = opero.Pool(given)
    given.max_workers, given.backend = 0, "none"
    assert.equal(4, pool:call(square, 2))
  end)

  it("may be a pool only where an orchestrator takes them", function()
    local pool <close> = opero.Pool { max_workers = 1 }
    local config = opero.OrchestratorConfig { multiprocess_config = pool }
    assert.equal(pool, config.multiprocess_config)
    refused(opero.Pool, pool)
  end)
end)

describe("the methods of a pool refuse", function()
  local pool

  setup(function()
    pool = support.pool("fork", { max_workers = 1 })
  end)
  teardown(function()
    pool:close()
  end)
  after_each(function()
    assert.equal(4, pool:call(square, 2)) -- it is none the worse for it
  end)

  it("to call what is no function", function()
    for _, bad in ipairs { 5, "square", true, {} } do
      assert.matches("function", tostring(raised(function() pool:submit(bad) end)), 1, true)
      assert.matches("function", tostring(raised(function() pool:call(bad) end)), 1, true)
    end
    raised(pool.submit, pool)
    raised(pool.call, pool)
    for _, method in ipairs { "map", "imap" } do
      for _, bad in ipairs { 5, "square", true, {} } do
        local err = refused(pool[method], pool, bad, { 1 })
        assert.equal(method .. ".fn", err.path)
        assert.equal(bad, err.value)
        assert.equal("a function", err.allowed)
      end
      assert.equal(method .. ".fn", refused(pool[method], pool).path)
    end
  end)

  it("items that are no list and no iterator", function()
    for _, method in ipairs { "map", "imap" } do
      for _, bad in ipairs { 5, "items", true } do
        local err = refused(pool[method], pool, square, bad)
        assert.equal(method .. ".items", err.path)
        assert.equal("a list or an iterator function", err.allowed)
      end
      assert.equal(method .. ".items", refused(pool[method], pool, square).path)
      for _, bad in ipairs { -1, 1.5, "2", true } do
        assert.equal(method .. ".items.n", refused(pool[method], pool, square, { n = bad }).path)
      end
    end
  end)

  it("options of map and imap that they do not take", function()
    for _, method in ipairs { "map", "imap" } do
      for _, bad in ipairs { 0, -1, 1.5, "1", true, {}, INF, NAN } do
        local err = refused(pool[method], pool, square, { 1 }, { chunk_size = bad })
        assert.equal(method .. ".chunk_size", err.path)
        assert.equal("an integer >= 1", err.allowed)
      end
      for _, bad in ipairs { "ignore", "", 1, true } do
        local err = refused(pool[method], pool, square, { 1 }, { on_error = bad })
        assert.equal(method .. ".on_error", err.path)
        assert.equal('one of "raise", "collect"', err.allowed)
      end
      assert.equal(method .. '.chunksize: unknown option; did you mean "chunk_size"?',
        refused(pool[method], pool, square, { 1 }, { chunksize = 1 }).message)
      for _, bad in ipairs { 5, "collect", true, square } do
        assert.equal(method, refused(pool[method], pool, square, { 1 }, bad).path)
      end
    end
    for _, bad in ipairs { 0, -1, 1.5, "1", true, {}, INF, NAN } do
      assert.equal("imap.max_in_flight",
        refused(pool.imap, pool, square, { 1 }, { max_in_flight = bad }).path)
    end
    for _, bad in ipairs { 1, "true", {} } do
      local err = refused(pool.imap, pool, square, { 1 }, { ordered = bad })
      assert.equal("imap.ordered", err.path)
      assert.equal("true or false", err.allowed)
    end
    assert.equal("map.ordered", refused(pool.map, pool, square, { 1 }, { ordered = true }).path)
  end)

  it("a time to close in that is none", function()
    for _, bad in ipairs { "soon", true, {}, NAN } do
      local err = raised(function() pool:close(bad) end)
      assert.is_false(errors.is(err, errors.ClosedError))
      assert.matches("close", tostring(err), 1, true)
    end
  end)
end)
