-- The pool: functions that are called in worker processes.

local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.pool.support"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"

local raised, raised_class, task = support.raised, support.raised_class, support.task

local function square(x) return x * x end

-- Runs fn in a process forked without Opero's doing; whether it returned true.
local function holds_in_child(fn)
  local pid = assert(unistd.fork())
  if pid == 0 then
    local ok, result = pcall(fn)
    unistd._exit(ok and result and 0 or 1)
  end
  local _, how, status = wait.wait(pid)
  return how == "exited" and status == 0
end

support.each_backend(function(backend)
  local function new_pool(options)
    return support.pool(backend, options)
  end

  describe("calling in a pool of backend " .. backend, function()
    after_each(support.clean_up)

    it("runs the function in another process and returns all its results", function()
      local pool <close> = new_pool()
      local results = table.pack(pool:call(function(...)
        return unistd.getpid(), select("#", ...), ...
      end, 1, nil, "x", nil))
      assert.not_equal(unistd.getpid(), results[1])
      assert.equal(support.only_pid(pool), results[1])
      results[1] = "pid"
      assert.same({ n = 6, "pid", 4, 1, nil, "x", nil }, results)
      assert.same({ n = 0 }, table.pack(pool:call(function() end)))
      assert.same({ n = 3, nil, 2, nil }, table.pack(pool:call(function() return nil, 2, nil end)))
      assert.same({ n = 2, nil, "no" }, table.pack(pool:call(function() return nil, "no" end)))
      local many = table.pack(pool:call(function(...) return ... end, table.unpack({}, 1, 240)))
      assert.same({ n = 240 }, many)
    end)

    it("raises what the function raises, whatever that is", function()
      local pool <close> = new_pool()
      for _, value in ipairs { "text", 7, 1.5, true, false, { code = 5, list = { 1, 2 } } } do
        assert.same(value, raised(pool.call, pool, error, value, 0))
      end
      assert.is_nil(raised(pool.call, pool, error, nil))
      assert.equal(1, pool:stats().started)
    end)

    it("raises errors of a class with their fields, their cause and their traceback", function()
      local Refused = errors.class("PoolRefused", errors.TimeoutError)
      function Refused:shout()
        return self.message:upper()
      end
      local pool <close> = new_pool()
      local err = raised(pool.call, pool, function(why)
        error(Refused(why, { retry_after = 2, cause = errors.ConfigError("inner") }))
      end, "not now")
      assert.equal(Refused, getmetatable(err))
      assert.is_true(errors.is(err, errors.TimeoutError))
      assert.same({ "not now", 2, "NOT NOW" }, { err.message, err.retry_after, err:shout() })
      assert.is_true(errors.is(err.cause, errors.ConfigError))
      assert.equal("inner", err.cause.message)
      assert.matches("pool_spec.lua", err.traceback, 1, true)
    end)

    it("keeps where an error was raised", function()
      local pool <close> = new_pool()
      local function fail_deep_down()
        error("bad digit", 0)
      end
      local err = raised(pool.call, pool, function()
        fail_deep_down()
        return 1
      end)
      assert.equal("bad digit", err)
      assert.matches("fail_deep_down", opero.traceback(err), 1, true)
    end)

    it("works in tasks, many at once", task(function()
      local pool <close> = new_pool()
      local done = 0
      opero.scope(function(scope)
        for i = 1, 200 do
          scope:spawn(function()
            assert.equal(i * i, pool:call(square, i))
            done = done + 1
          end)
        end
      end)
      assert.equal(200, done)
    end))

    it("works in a simulation, which waits for workers in no time of its own", function()
      local pool <close> = new_pool()
      assert.equal(4, pool:call(square, 2))
      opero.simulate(function()
        assert.equal(9, pool:call(square, 3))
        local inner <close> = new_pool()
        assert.equal(25, inner:call(square, 5))
        inner:call(opero.sleep, 0.01)
        assert.is_true(opero.now() < 1)
        opero.sleep(1000)
        assert.equal(36, inner:submit(square, 6):await())
        assert.is_true(opero.now() >= 1000 and opero.now() < 1001)
      end)
      assert.equal(16, pool:call(square, 4))
    end)
  end)

  describe("submitting to a pool of backend " .. backend, function()
    after_each(support.clean_up)

    it("gives a task, which can be awaited any number of times", task(function()
      local pool <close> = new_pool()
      local squared, failing = pool:submit(square, 3), pool:submit(error, "x", 0)
      for _ = 1, 2 do
        assert.equal(9, squared:await())
        assert.equal("x", raised(failing.await, failing))
      end
      assert.same({ "done", "failed" }, { squared:status(), failing:status() })
      assert.same({ n = 2, 4, 9 }, opero.all { pool:submit(square, 2), squared })
    end))

    it("gives a child of the task that submits", function()
      local pool <close> = new_pool()
      assert.equal("lost", raised(opero.run, function()
        pool:submit(error, "lost", 0)
      end))
      local path = support.file()
      opero.run(function()
        pool:submit(support.note, path, "done")
      end)
      assert.same({ "done" }, support.lines(path))
    end)

    it("works in the main chunk", function()
      local pool <close> = new_pool()
      local first, second = pool:submit(square, 2), pool:submit(square, 3)
      assert.same({ 9, 4 }, { second:await(), (first:await()) })
    end)

    it("gives each of many tasks its own result", task(function()
      local pool <close> = new_pool()
      local tasks = {}
      for i = 1, 2000 do
        tasks[i] = pool:submit(square, i)
      end
      for i = 1, 2000 do
        assert.equal(i * i, tasks[i]:await())
      end
      assert.equal(2000, pool:stats().completed)
    end))

    it("runs as many tasks at once as there are workers", task(function()
      local pool <close> = new_pool()
      local path = support.file()
      local first, second = pool:submit(support.meet, path, 2), pool:submit(support.meet, path, 2)
      assert.not_equal(first:await(), (second:await()))
    end))
  end)

  describe("the workers of a pool of backend " .. backend, function()
    after_each(support.clean_up)

    it("start when a task finds none that is idle, and are no more than max_workers",
      task(function()
        local pool <close> = new_pool { max_workers = 2 }
        assert.same({ workers = 0, idle = 0, busy = 0, queued = 0, running = 0, completed = 0,
          failed = 0, crashed = 0, started = 0 }, support.counts(pool))
        assert.same({}, pool:stats().pids)
        for i = 1, 5 do
          assert.equal(i * i, pool:call(square, i))
        end
        assert.equal("x", raised(pool.call, pool, error, "x", 0))
        assert.same({ workers = 1, idle = 1, busy = 0, queued = 0, running = 0, completed = 6,
          failed = 1, crashed = 0, started = 1 }, support.counts(pool))

        local gate, tasks = support.file(), {}
        for i = 1, 5 do
          tasks[i] = pool:submit(support.wait_for, gate)
        end
        support.until_running(pool, 2)
        assert.same({ workers = 2, idle = 0, busy = 2, queued = 3, running = 2, completed = 6,
          failed = 1, crashed = 0, started = 2 }, support.counts(pool))
        local pids = pool:stats().pids
        assert.equal(2, #pids)
        assert.is_true(support.is_alive(pids[1]) and support.is_alive(pids[2]))
        assert.not_equal(pids[1], pids[2])

        support.open(gate)
        for i = 1, 5 do
          assert.equal("open", tasks[i]:await())
        end
        assert.same({ workers = 2, idle = 2, busy = 0, queued = 0, running = 0, completed = 11,
          failed = 1, crashed = 0, started = 2 }, support.counts(pool))
      end))

    it("call init once each, before their first task", task(function()
      local begun, met, tasks, pids = support.file(), support.file(), {}, {}
      local pool <close> = new_pool { init = function(...)
        opero.sleep(0.001) -- it may suspend
        support.note(begun, unistd.getpid(), select("#", ...))
        _G.pool_spec_state = "ready"
      end }
      for i = 1, 6 do
        tasks[i] = pool:submit(function()
          return support.meet(met, 2), _G.pool_spec_state
        end)
      end
      for i = 1, 6 do
        local pid, state = tasks[i]:await()
        pids[pid] = true
        assert.equal("ready", state)
      end
      local lines = support.lines(begun)
      assert.equal(2, #lines)
      for _, line in ipairs(lines) do
        local pid, count = line:match("^(%d+)\t(%d+)$")
        assert.is_true(pids[tonumber(pid)])
        assert.equal("0", count)
      end
      assert.is_nil(rawget(_G, "pool_spec_state"))
    end))
  end)

  describe("closing a pool of backend " .. backend, function()
    after_each(support.clean_up)

    it("lets what was submitted end, and ends the workers", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local tasks = {}
      for i = 1, 4 do
        tasks[i] = pool:submit(function()
          opero.sleep(0.01)
          return i, unistd.getpid()
        end)
      end
      pool:close()
      for i = 1, 4 do
        local result, pid = tasks[i]:await()
        assert.equal(i, result)
        assert.is_false(support.is_alive(pid))
      end
      assert.same({ workers = 0, idle = 0, busy = 0, queued = 0, running = 0, completed = 4,
        failed = 0, crashed = 0, started = 1 }, support.counts(pool))
    end))

    it("refuses new tasks, and may be done twice", function()
      local pool <close> = new_pool()
      pool:call(square, 1)
      pool:close()
      pool:close()
      pool:close(1)
      raised_class("ClosedError", pool.call, pool, square, 2)
      raised_class("ClosedError", pool.submit, pool, square, 2)
      raised_class("ClosedError", pool.map, pool, square, { 1, 2 })
      raised_class("ClosedError", function()
        for _ in pool:imap(square, { 1, 2 }) do
          error("there is no result")
        end
      end)
    end)

    it("refuses new tasks as soon as it begins", task(function()
      local pool <close> = new_pool()
      local gate = support.file()
      local waiting = pool:submit(support.wait_for, gate)
      support.until_running(pool, 1)
      local closing = opero.spawn(pool.close, pool)
      opero.sleep(0.01)
      assert.equal("suspended", closing:status())
      raised_class("ClosedError", pool.call, pool, square, 2)
      support.open(gate)
      closing:await()
      assert.equal("open", waiting:await())
    end))

    it("waits no longer than it is told to", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local gate = support.file()
      local running = pool:submit(support.wait_for, gate)
      local queued = pool:submit(support.note, gate, "it was run")
      support.until_running(pool, 1)
      local pid, begun = support.only_pid(pool), opero.now()
      pool:close(0.03)
      assert.is_true(opero.now() - begun >= 0.029)
      assert.is_true(opero.now() - begun < support.soon)
      assert.is_false(support.is_alive(pid))
      raised_class("ClosedError", running.await, running)
      raised_class("ClosedError", queued.await, queued)
      assert.same({}, support.lines(gate))
    end))

    it("is done at the end of the block of a <close> variable", task(function()
      local done
      do
        local pool <close> = new_pool()
        done = pool:submit(function()
          opero.sleep(0.01)
          return unistd.getpid()
        end)
      end
      assert.is_false(support.is_alive((done:await())))
    end))

    it("waits for nothing when an error leaves the block", task(function()
      local gate = support.file()
      local running, queued, pid, begun
      assert.equal("out", raised(function()
        local pool <close> = new_pool { max_workers = 1 }
        running = pool:submit(support.wait_for, gate)
        queued = pool:submit(support.note, gate, "it was run")
        support.until_running(pool, 1)
        pid, begun = support.only_pid(pool), opero.now()
        error("out", 0)
      end))
      assert.is_true(opero.now() - begun < support.soon)
      assert.is_false(support.is_alive(pid))
      raised_class("ClosedError", running.await, running)
      raised_class("ClosedError", queued.await, queued)
      assert.same({}, support.lines(gate))
    end))

    it("costs nothing when it was not used", function()
      local pool <close> = new_pool()
      assert.equal(0, pool:stats().workers)
    end)
  end)

  describe("a pool of backend " .. backend .. " in a process that others have forked", function()
    it("works beside that of the parent", function()
      local pool <close> = new_pool()
      assert.equal(4, pool:call(square, 2))
      assert.is_true(holds_in_child(function()
        local own <close> = new_pool()
        return own:call(square, 4) == 16
      end))
      assert.equal(9, pool:call(square, 3))
    end)
  end)
end)
