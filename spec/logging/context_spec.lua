-- The context of log records: it belongs to the task.

local errors = require "opero.errors"
local log_support = require "spec.logging.support"
local opero = require "opero"
local support = require "spec.support"

local refused, simulated = support.refused, support.simulated

describe("the context of log records", function()
  local records, log

  before_each(function()
    records = log_support.record { level = "debug" }
    log = opero.ContextAdapter(opero.get_logger("app"))
  end)

  after_each(log_support.restore)

  -- The fields of the next record.
  local function fields()
    log:info("?")
    return records[#records].fields
  end

  local function in_context(added)
    return opero.log_context(log, added)
  end

  it("is empty at first", function()
    assert.same({}, fields())
    assert.same({}, log:context())
  end)

  it("has what was added, until it is taken away or replaced", function()
    log:add_context { service = "api", version = "1.0" }
    assert.same({ service = "api", version = "1.0" }, fields())
    log:add_context { version = 2, more = { 1, 2 } }
    assert.same({ service = "api", version = 2, more = { 1, 2 } }, fields())
    assert.same({ service = "api", version = 2, more = { 1, 2 } }, log:context())
    log:remove_context("version", "never there")
    assert.same({ service = "api", more = { 1, 2 } }, fields())
    log:remove_context("service", "more")
    assert.same({}, fields())
    log:remove_context()
    log:add_context {}
    assert.same({}, fields())
  end)

  it("is in the records of every logger, and gives way to their own fields", function()
    log:add_context { a = 1, b = 2, c = 3 }
    local other = opero.get_logger("other")
    local adapter = opero.ContextAdapter(other, { b = "adapter", c = "adapter" })
    adapter:info("?", { c = "record" })
    assert.same({ a = 1, b = "adapter", c = "record" }, records[1].fields)
    assert.same({ a = 1, b = 2, c = 3 }, fields())
  end)

  it("takes values as they are when they are added", function()
    local list = { 1, 2 }
    log:add_context { list = list }
    list[1] = "changed"
    assert.same({ list = { 1, 2 } }, fields())
    local copy = log:context()
    copy.list[1] = "changed"
    assert.same({ list = { 1, 2 } }, fields())
  end)

  it("of an adapter is bound to it: adapters of adapters have both", function()
    local one = opero.ContextAdapter(log, { component = "db", table = "a" })
    local two = opero.ContextAdapter(one, { table = "b" })
    two:info("two")
    one:info("one")
    opero.ContextAdapter(two):info("three")
    assert.same({ component = "db", table = "b" }, records[1].fields)
    assert.same({ component = "db", table = "a" }, records[2].fields)
    assert.same({ component = "db", table = "b" }, records[3].fields)
    assert.same({}, fields())
  end)

  -- ---- for a while ---------------------------------------------------------------------------

  it("has fields as long as a function runs, which gets arguments and returns values", function()
    log:add_context { a = 1 }
    assert.same({ n = 4, "x", nil, 3, nil },
      table.pack(opero.log_context(log, { a = 2, b = 2 }, function(...)
        assert.same({ a = 2, b = 2 }, fields())
        return ...
      end, "x", nil, 3, nil)))
    assert.same({ a = 1 }, fields())
  end)

  it("has fields until the end of a block", function()
    do
      local _ <close> = in_context { a = 1 }
      do
        local _ <close> = in_context { a = 2, b = 2 }
        assert.same({ a = 2, b = 2 }, fields())
      end
      assert.same({ a = 1 }, fields())
    end
    assert.same({}, fields())
  end)

  it("is as it was after an error too, which comes through unchanged", function()
    local err = {}
    local ok, raised = pcall(opero.log_context, log, { a = 1 }, function()
      local _ <close> = in_context { a = 2 }
      error(err)
    end)
    assert.is_false(ok)
    assert.equal(err, raised)
    assert.same({}, fields())
  end)

  it("is as it was after a cancellation", simulated(function()
    local seen
    local task = opero.spawn(function()
      local ok, err = pcall(opero.log_context, log, { a = 1 }, opero.sleep, 10)
      seen = fields()
      assert.is_false(ok)
      error(err)
    end)
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(support.raised(task.await, task), errors.CancelledError))
    assert.same({}, seen)
  end))

  it("keeps what was changed besides", function()
    log:add_context { a = 1, b = 1 }
    opero.log_context(log, { a = 2, gone = true }, function()
      log:add_context { a = 3, b = 3, c = 3 }
      log:remove_context("gone")
    end)
    assert.same({ a = 1, b = 3, c = 3 }, fields())
  end)

  it("does not mind in which order scopes end", function()
    local one, two = in_context { a = 1, x = 1 }, in_context { b = 2, x = 2 }
    local close = debug.getmetatable(one).__close
    close(one)
    assert.same({ b = 2 }, fields()) -- x has the value it had before the first
    close(two)
    close(two) -- once more does nothing
    close(one)
    assert.same({ x = 1 }, fields()) -- and here that of before the second
  end)

  it("stays when a scope is forgotten, and the scope is closed in the task that opened it alone",
    simulated(function()
      local scope = in_context { a = 1 }
      opero.spawn(function()
        assert.same({ a = 1 }, fields())
        debug.getmetatable(scope).__close(scope)
        assert.same({ a = 1 }, fields())
      end):await()
      assert.same({ a = 1 }, fields())
      in_context { b = 1 }
      collectgarbage()
      assert.same({ a = 1, b = 1 }, fields())
    end))

  -- ---- tasks ---------------------------------------------------------------------------------

  it("is the parent's as it was when a task was spawned", simulated(function()
    log:add_context { a = 1 }
    local seen
    local child = opero.spawn(function() seen = fields() end)
    log:add_context { a = 2 }
    child:await()
    assert.same({ a = 1 }, seen)
    assert.same({ a = 2 }, fields())
  end))

  it("is not seen by siblings or parents", simulated(function()
    log:add_context { of = "parent" }
    local seen = {}
    opero.scope(function(scope)
      for i = 1, 20 do
        scope:spawn(function()
          log:add_context { n = i }
          opero.sleep(i % 3)
          opero.log_context(log, { step = i }, function()
            opero.sleep((i + 1) % 3)
            opero.spawn(function()
              opero.yield()
              seen[i] = fields()
            end):await()
          end)
          assert.same({ of = "parent", n = i }, fields())
        end)
      end
    end)
    for i = 1, 20 do
      assert.same({ of = "parent", n = i, step = i }, seen[i])
    end
    assert.same({ of = "parent" }, fields())
  end))

  it("of the main chunk is what a run begins with, and that of a run ends with it", function()
    log:add_context { main = true }
    opero.run(function()
      assert.same({ main = true }, fields())
      log:add_context { run = 1 }
    end)
    assert.same({ main = true }, fields())
    opero.simulate(function()
      assert.same({ main = true }, fields())
      log:add_context { simulated = true }
    end)
    assert.same({ main = true }, fields())
  end)

  it("goes with all that runs functions at once", simulated(function()
    log:add_context { request = 1 }
    local seen = 0
    local function check()
      opero.yield()
      assert.same({ request = 1 }, fields())
      seen = seen + 1
    end
    opero.all { check, check }
    opero.timeout(5, check)
    opero.shield(check)
    opero.race { check, check }
    opero.Orchestrator():map(function()
      opero.yield()
      assert.equal(1, fields().request)
      seen = seen + 1
    end, { 1, 2 })
    assert.is_true(seen >= 7)
  end))

  it("of a generator is its own", simulated(function()
    log:add_context { a = 1 }
    local generator = opero.wrap(function()
      assert.same({ a = 1 }, fields())
      opero.log_context(log, { within = true }, function()
        coroutine.yield("one")
        opero.sleep(1)
        assert.same({ a = 1, within = true }, fields())
        log:add_context { later = true }
        coroutine.yield("two")
        assert.same({ a = 1, within = true, later = true }, fields())
      end)
      return "three"
    end)
    log:add_context { a = 2 }
    assert.equal("one", generator())
    assert.same({ a = 2 }, fields())
    opero.spawn(function()
      log:add_context { other = "task" }
      assert.equal("two", generator())
      assert.same({ a = 2, other = "task" }, fields())
    end):await()
    assert.equal("three", generator())
    assert.same({ a = 2 }, fields())
  end))

  it("of a generator ends with it when it is closed within its caller", simulated(function()
    log:add_context { a = 1 }
    local generator = opero.wrap(function()
      local _ <close> = in_context { a = 2 }
      opero.scope(function()
        coroutine.yield() -- which is refused
      end)
    end)
    log:add_context { a = 5 }
    assert.is_false(pcall(generator))
    assert.same({ a = 5 }, fields())
  end))

  it("may change in finalizers", function()
    opero.simulate(function()
      for i = 1, 300 do
        log:add_context { text = ("x"):rep(100), i = i }
        for _ = 1, 20 do
          setmetatable({}, { __gc = function() log:add_context { text = "gc" } end })
        end
        opero.spawn(function() log:info("child") end)
        log:context()
        log:remove_context("i")
        opero.correlation_id()
        opero.yield()
      end
    end)
    collectgarbage()
    log:remove_context("text")
    assert.is_true(#records == 300)
  end)

  it("survives many tasks, and leaves nothing behind", function()
    local function round()
      opero.simulate(function()
        log:add_context { round = true }
        opero.scope(function(scope)
          for i = 1, 2000 do
            scope:spawn(function()
              log:add_context { i = i }
              opero.sleep(i % 7)
              assert.same({ round = true, i = i }, log:context())
            end)
          end
        end)
      end)
    end
    round()
    collectgarbage()
    collectgarbage()
    local before = collectgarbage("count")
    for _ = 1, 3 do
      round()
    end
    collectgarbage()
    collectgarbage()
    assert.is_true(collectgarbage("count") - before < 200)
    assert.same({}, log:context())
  end)

  it("refuses what is no fields, and stays as it is", function()
    log:add_context { a = 1 }
    assert.equal("add_context.fields: expected a table of fields, got 7",
      refused(log.add_context, log, 7).message)
    assert.equal("add_context.fields[1]", refused(log.add_context, log, { "x" }).path)
    assert.equal("remove_context[2]", refused(log.remove_context, log, "a", {}).path)
    assert.equal("log_context.logger", refused(opero.log_context, {}, {}).path)
    assert.equal("log_context.fields", refused(opero.log_context, log, "x").path)
    assert.equal("log_context.fn", refused(opero.log_context, log, {}, 3).path)
    assert.equal("ContextAdapter.logger", refused(opero.ContextAdapter, print).path)
    assert.equal("ContextAdapter.fields", refused(opero.ContextAdapter, log, 5).path)
    assert.same({ a = 1 }, fields())
  end)
end)

describe("a correlation id", function()
  local records, log

  before_each(function()
    records = log_support.record { level = "debug" }
    log = opero.get_logger("app")
  end)

  after_each(log_support.restore)

  it("is there as long as an orchestrator executes, and in all records", simulated(function()
    opero.get_logger("opero"):set_level("debug")
    assert.is_nil(opero.correlation_id())
    local seen = {}
    local orch = opero.Orchestrator {
      retry_config = { max_attempts = 2 },
      fallbacks = function()
        seen[3] = opero.correlation_id()
        log:info("fallback")
        return "done"
      end,
    }
    assert.equal("done", orch:execute(function()
      seen[#seen + 1] = opero.correlation_id()
      opero.sleep(1)
      log:info("attempt")
      error("no")
    end))
    assert.matches("^%x+$", seen[1])
    assert.equal(16, #seen[1])
    assert.same({ seen[1], seen[1], seen[1] }, seen)
    assert.same({
      "attempt", "attempt failed, will retry", "attempt", "all attempts failed",
      "function failed, will fall back", "fallback",
    }, log_support.messages(records))
    for _, record in ipairs(records) do
      assert.equal(seen[1], record.fields.correlation_id)
    end
    assert.is_nil(opero.correlation_id())
  end))

  it("is another one for each execution", simulated(function()
    local orch, ids, count = opero.Orchestrator { concurrency_config = { limit = 3 } }, {}, 0
    local function note()
      local id = opero.correlation_id()
      opero.yield()
      assert.equal(id, opero.correlation_id())
      assert.is_nil(ids[id])
      ids[id], count = true, count + 1
    end
    orch:execute(note)
    orch:try(note)
    orch:process({ note, note }, 1, 2)
    orch:map(note, { 1, 2, 3 })
    for _ in orch:imap(note, { 1, 2, 3 }) do
      assert.is_nil(opero.correlation_id())
    end
    opero.orchestrate(orch.config)(note)()
    assert.equal(13, count)
  end))

  it("is shared by executions within one, and by tasks", simulated(function()
    local outer, inner = opero.Orchestrator(), opero.Orchestrator()
    outer:execute(function()
      local id = opero.correlation_id()
      inner:execute(function()
        assert.equal(id, opero.correlation_id())
      end)
      opero.spawn(function()
        assert.equal(id, opero.correlation_id())
      end):await()
      assert.equal(id, opero.correlation_id())
    end)
  end))

  it("is the one that was given, of any type", simulated(function()
    local orch = opero.Orchestrator()
    opero.log_context(log, { correlation_id = "request 7" }, function()
      assert.equal("request 7", opero.correlation_id())
      orch:execute(function()
        assert.equal("request 7", opero.correlation_id())
      end)
      opero.log_context(log, { correlation_id = 8 }, function()
        assert.equal("8", opero.correlation_id())
      end)
      log:remove_context("correlation_id")
      assert.is_nil(opero.correlation_id())
    end)
    assert.is_nil(opero.correlation_id())
  end))

  it("ends with the execution, whatever becomes of that and of its context", simulated(function()
    local orch = opero.Orchestrator()
    log:add_context { a = 1 }
    pcall(orch.execute, orch, error, "x")
    assert.is_nil(opero.correlation_id())
    orch:execute(function()
      log:add_context { a = 2, b = 3 }
    end)
    assert.is_nil(opero.correlation_id())
    assert.same({ a = 2, b = 3 }, log:context())
    local task = opero.spawn(function()
      pcall(orch.execute, orch, opero.sleep, 10)
      assert.is_nil(opero.correlation_id())
      opero.sleep(1)
    end)
    opero.sleep(1)
    task:cancel()
    pcall(task.await, task)
    local generator = opero.wrap(function()
      orch:execute(coroutine.yield, 1)
    end)
    generator()
    assert.is_nil(opero.correlation_id())
    generator()
    assert.is_nil(opero.correlation_id())
  end))

  it("is the same for the same seed in a simulation, and unlike others", function()
    local function ids(seed)
      local list = {}
      opero.simulate(function()
        opero.Orchestrator():map(function()
          list[#list + 1] = opero.correlation_id()
        end, { 1, 2, 3 })
      end, { seed = seed })
      return list
    end
    assert.same(ids(1), ids(1))
    assert.not_same(ids(1), ids(2))
  end)

  it("is another one after simulations, too", function()
    local function id_after_simulation()
      opero.simulate(function() end)
      local id
      opero.Orchestrator():execute(function() id = opero.correlation_id() end)
      return id
    end
    assert.not_equal(id_after_simulation(), id_after_simulation())
  end)

  it("is there in the main chunk too", function()
    local id
    opero.Orchestrator():execute(function()
      opero.sleep(0)
      id = opero.correlation_id()
    end)
    assert.equal(16, #id)
    assert.is_nil(opero.correlation_id())
  end)
end)
