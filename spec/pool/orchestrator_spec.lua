-- Orchestrators whose attempts are tasks of a pool, while their policies stay in this process.

local errors = require "opero.errors"
local opero = require "opero"
local signal = require "posix.signal"
local support = require "spec.pool.support"
local unistd = require "posix.unistd"

local raised, raised_class, task = support.raised, support.raised_class, support.task

local function square(x) return x * x end

-- Kills the worker it is in when it is called for the first time with this file.
local function dies_once(path, x)
  support.note(path, unistd.getpid())
  if #support.lines(path) == 1 then
    signal.kill(unistd.getpid(), signal.SIGKILL)
  end
  return x
end

-- Checks that each line is the number of a process, and none this one's; returns them.
local function other_processes(path)
  local lines = support.lines(path)
  for _, line in ipairs(lines) do
    assert.matches("^%d+$", line)
    assert.not_equal(tostring(unistd.getpid()), line)
  end
  return lines
end

local function at_once(max_attempts, retry_on)
  return {
    max_attempts = max_attempts, wait_min = 0, wait_multiplier = 0, retry_on = retry_on,
  }
end

support.each_backend(function(backend)
  -- Of up to two workers, and with these options.
  local function orchestrator(options)
    local all = { multiprocess_config = { backend = backend, max_workers = 2 } }
    for name, value in pairs(options or {}) do
      all[name] = value
    end
    return opero.Orchestrator(all)
  end

  describe("an orchestrator over backend " .. backend, function()
    after_each(support.clean_up)

    it("calls functions in workers and returns all their results", task(function()
      local orch <close> = orchestrator()
      local results = table.pack(orch:execute(function(...) return unistd.getpid(), ... end,
        1, nil, nil))
      assert.not_equal(unistd.getpid(), results[1])
      results[1] = "pid"
      assert.same({ n = 4, "pid", 1, nil, nil }, results)
    end))

    it("works in the main chunk", function()
      local orch <close> = orchestrator()
      assert.equal(9, orch:execute(square, 3))
      assert.same({ n = 2, 1, 4 }, orch:process({ square }, 1, 2))
    end)

    it("raises the error of the function unchanged, class and fields included", task(function()
      local Refused = errors.class("PoolOrchestratorRefused")
      local orch <close> = orchestrator()
      local err = raised(orch.execute, orch, function(code)
        error(Refused("no", { code = code }))
      end, 7)
      assert.equal(Refused, getmetatable(err))
      assert.equal(7, err.code)
      assert.same({ "x" }, raised(orch.execute, orch, error, { "x" }))
      assert.same({ n = 2, nil, "x" }, table.pack(orch:try(error, "x", 0)))
    end))

    it("counts nil and an error as a failure", task(function()
      local orch <close> = orchestrator()
      assert.equal("no", raised(orch.execute, orch, function() return nil, "no" end))
      assert.equal(0, select("#", orch:execute(function() end)))
    end))

    it("refuses what cannot travel, and what is no function", task(function()
      local orch <close> = orchestrator()
      raised_class("SerializationError", orch.execute, orch, square, coroutine.create(print))
      assert.equal("execute.fn", support.refused(orch.execute, orch, 5).path)
      assert.equal(4, orch:execute(square, 2))
    end))

    it("calls every function with every item, in order, in several workers", task(function()
      local orch <close> = orchestrator()
      local function negate(x) return -x end
      assert.same({ n = 6, 1, 4, 9, -1, -2, -3 }, orch:process({ square, negate }, 1, 2, 3))
      local path = support.file()
      local pids = orch:process({ function(file) return support.meet(file, 2) end }, path, path)
      assert.not_equal(pids[1], pids[2])
      local err = raised_class("ItemError", orch.process, orch, { square, error }, 5)
      assert.same({ 2, 5, 5, 2, 1 },
        { err.index, err.item, err.cause, err.function_index, err.item_index })
    end))

    it("maps", task(function()
      local orch <close> = orchestrator { concurrency_config = { limit = 10 } }
      local items = {}
      for i = 1, 100 do
        items[i] = i
      end
      assert.same({ n = 100, table.unpack(support.squares(100)) }, (orch:map(square, items)))
      local results, failures = orch:map(function(x)
        return x ~= 2 and x or nil, "bad"
      end, { 1, 2, 3 }, { on_error = "collect" })
      assert.same({ n = 3, 1, nil, 3 }, results)
      assert.same({ n = 3, nil, "bad", nil }, failures)
      local seen = {}
      for result, err, index in orch:imap(square, items) do
        assert.is_nil(err)
        seen[index] = result
      end
      assert.same(support.squares(100), seen)
    end))

    it("decorates functions", task(function()
      local decorated = opero.orchestrate {
        multiprocess_config = { backend = backend, max_workers = 2 },
      }(function(x) return x * x, unistd.getpid() end)
      local _ <close> = support.closing(function()
        decorated.orchestrator:close()
      end)
      local result, pid = decorated(5)
      assert.equal(25, result)
      assert.not_equal(unistd.getpid(), pid)
      assert.same({ n = 3, 1, 4, 9 }, (decorated:process(1, 2, 3)))
    end))
  end)

  describe("the policies of an orchestrator over backend " .. backend, function()
    after_each(support.clean_up)

    it("retry in this process what workers attempt", task(function()
      local log, asked = support.file(), 0
      local logger, records = support.recorder()
      local orch <close> = orchestrator {
        retry_config = at_once(5, function(err)
          asked = asked + 1
          return err == "not yet"
        end),
        logger = logger,
      }
      assert.equal("done 5", orch:execute(function(x)
        support.note(log, unistd.getpid())
        if #support.lines(log) < 3 then
          error("not yet", 0)
        end
        return "done " .. x
      end, 5))
      assert.equal(2, asked)
      assert.equal(3, #other_processes(log))
      assert.equal(2, #records)
      assert.equal("info", records[1][1])
      assert.equal("not yet", records[1][3].error)
    end))

    it("give up after max_attempts with the last error", task(function()
      local log = support.file()
      local orch <close> = orchestrator { retry_config = at_once(3) }
      assert.equal("attempt 3", raised(orch.execute, orch, function()
        support.note(log, unistd.getpid())
        error("attempt " .. #support.lines(log), 0)
      end))
      assert.equal(3, #other_processes(log))
    end))

    it("wait in the virtual time of a simulation", function()
      local log = support.file()
      opero.simulate(function()
        local orch <close> = orchestrator {
          retry_config = { max_attempts = 3, wait_min = 100, wait_max = 1000 },
        }
        assert.equal("done", orch:execute(function()
          support.note(log, "attempt")
          if #support.lines(log) < 3 then
            error("not yet", 0)
          end
          return "done"
        end))
        assert.is_true(opero.now() >= 200 and opero.now() < 202)
      end)
    end)

    it("fall back to functions that are called in workers too", task(function()
      local log = support.file()
      local orch <close> = orchestrator {
        fallbacks = {
          function() return nil, "second" end,
          function(x)
            support.note(log, unistd.getpid())
            return "third " .. x
          end,
        },
      }
      assert.equal("third 5", orch:execute(function() error("first", 0) end, 5))
      assert.equal(1, #other_processes(log))
      local failing <close> = orchestrator { fallbacks = function() error("second", 0) end }
      local err = raised_class("AllFailedError", failing.execute, failing, function()
        error("first", 0)
      end)
      assert.same({ n = 2, "first", "second" }, err.errors)
    end))

    it("limit the rate of all workers together", task(function()
      local orch <close> = orchestrator { rate_limit_config = { rate = 50, burst = 2 } }
      orch:execute(square, 1) -- a worker is there, and a permit is left
      local begun = opero.now()
      orch:process({ square }, 1, 2, 3, 4, 5, 6, 7)
      assert.is_true(opero.now() - begun >= 5 / 50 - 0.001)
    end))

    it("limit the concurrency of all workers together", task(function()
      local log = support.file()
      local orch <close> = orchestrator { concurrency_config = { limit = 1 } }
      orch:process({ function(x)
        support.note(log, "begins")
        opero.sleep(0.002)
        support.note(log, "ends")
        return x
      end }, 1, 2, 3, 4, 5, 6)
      local lines = support.lines(log)
      assert.equal(12, #lines)
      for i, line in ipairs(lines) do
        assert.equal(i % 2 == 1 and "begins" or "ends", line)
      end
    end))

    it("retry elsewhere what a dead worker ran, if retry_on says so", task(function()
      for _, retry_on in ipairs { false, errors.WorkerCrashedError,
        { errors.TimeoutError, errors.WorkerCrashedError } } do
        local log = support.file()
        local orch <close> = orchestrator { retry_config = at_once(2, retry_on or nil) }
        assert.equal("done", orch:execute(dies_once, log, "done"))
        local pids = other_processes(log)
        assert.equal(2, #pids)
        assert.not_equal(pids[1], pids[2])
      end
      local log = support.file()
      local orch <close> = orchestrator { retry_config = at_once(2, errors.TimeoutError) }
      raised_class("WorkerCrashedError", orch.execute, orch, dies_once, log, "done")
      assert.equal(1, #support.lines(log))
    end))

    it("lose no item to a worker that dies", task(function()
      local log = support.file()
      local orch <close> = orchestrator { retry_config = at_once(3) }
      assert.same({ n = 8, 1, 2, 3, 4, 5, 6, 7, 8 }, orch:process({ function(x)
        return x == 3 and dies_once(log, x) or x
      end }, 1, 2, 3, 4, 5, 6, 7, 8))
      assert.equal(2, #support.lines(log))
    end))

    it("do not retry what is cancelled, which ends in the worker", task(function()
      local log = support.file()
      local pool <close> = support.pool(backend)
      local orch <close> = orchestrator {
        multiprocess_config = pool, retry_config = at_once(5), fallbacks = { square },
      }
      pool:call(square, 1) -- so that a worker is there
      raised_class("TimeoutError", opero.timeout, 0.1, orch.execute, orch, function()
        local _ <close> = support.noting_close(log)
        opero.sleep(3600)
      end)
      support.eventually(function() return support.lines(log)[1] == "cancelled" end)
      support.until_unemployed(pool)
      assert.equal(1, #support.lines(log))
    end))
  end)

  describe("the pool of an orchestrator over backend " .. backend, function()
    it("is closed with it, if it has made it", task(function()
      local before = #support.children()
      local orch <close> = orchestrator()
      local pid = orch:execute(unistd.getpid)
      assert.is_true(support.is_alive(pid))
      orch:close()
      orch:close(1)
      assert.is_false(support.is_alive(pid))
      assert.equal(before, #support.children())
      raised_class("ClosedError", orch.execute, orch, square, 2)
      do
        local inner <close> = orchestrator()
        pid = inner:execute(unistd.getpid)
      end
      assert.is_false(support.is_alive(pid))
      assert.equal(before, #support.children())
    end))

    it("may be given, and then stays open", task(function()
      local pool <close> = support.pool(backend)
      do
        local first <close> = orchestrator { multiprocess_config = pool }
        local second <close> = opero.Orchestrator {
          config = opero.OrchestratorConfig { multiprocess_config = pool },
        }
        assert.same({ 4, 9 }, { first:execute(square, 2), (second:execute(square, 3)) })
        assert.equal(2, pool:stats().completed)
      end
      assert.equal(16, pool:call(square, 4))
      assert.equal(1, pool:stats().started)
    end))
  end)
end)

describe("an orchestrator without processes", function()
  it("can be closed too, to no effect", function()
    local orch <close> = opero.Orchestrator()
    orch:close()
    orch:close(1)
    assert.equal(4, orch:execute(square, 2))
  end)
end)
