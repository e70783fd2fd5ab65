-- Workers as the options want them, and what functions find in them.

local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.pool.support"
local unistd = require "posix.unistd"

local eventually, raised, raised_class = support.eventually, support.raised, support.raised_class
local task = support.task

local function square(x) return x * x end

support.each_backend(function(backend)
  local function new_pool(options)
    return support.pool(backend, options)
  end

  describe("of backend " .. backend .. ", max_tasks_per_worker", function()
    it("replaces a worker that has begun so many", task(function()
      local pool <close> = new_pool { max_workers = 1, max_tasks_per_worker = 2 }
      local pids = {}
      for i = 1, 5 do
        pids[i] = pool:call(unistd.getpid)
      end
      assert.equal(pids[1], pids[2])
      assert.equal(pids[3], pids[4])
      assert.not_equal(pids[1], pids[3])
      assert.not_equal(pids[3], pids[5])
      support.until_gone(pids[1])
      support.until_gone(pids[3])
      assert.same({ 3, 0 }, { pool:stats().started, pool:stats().crashed })
    end))

    it("holds when tasks wait, and stops no map", task(function()
      local pool <close> = new_pool { max_tasks_per_worker = 3 }
      local tasks, counts = {}, {}
      for i = 1, 20 do
        tasks[i] = pool:submit(unistd.getpid)
      end
      for i = 1, 20 do
        local pid = tasks[i]:await()
        counts[pid] = (counts[pid] or 0) + 1
        assert.is_true(counts[pid] <= 3)
      end
      local results = pool:map(square, { 1, 2, 3, 4, 5, 6, 7, 8 })
      assert.same({ n = 8, 1, 4, 9, 16, 25, 36, 49, 64 }, results)
      assert.equal(0, pool:stats().crashed)
    end))
  end)

  describe("of backend " .. backend .. ", tasks_per_worker", function()
    after_each(support.clean_up)

    it("lets so many tasks be suspended in one worker at once", task(function()
      local pool <close> = new_pool { max_workers = 1, tasks_per_worker = 2 }
      local log, gate, tasks = support.file(), support.file(), {}
      for i = 1, 3 do
        tasks[i] = pool:submit(function()
          support.note(log, i)
          support.wait_for(gate)
          return unistd.getpid()
        end)
      end
      support.until_running(pool, 2)
      eventually(function() return #support.lines(log) == 2 end)
      opero.sleep(0.02)
      assert.same({ "1", "2" }, support.lines(log))
      assert.same({ workers = 1, idle = 0, busy = 1, queued = 1, running = 2, completed = 0,
        failed = 0, crashed = 0, started = 1 }, support.counts(pool))
      support.open(gate)
      local pid = support.only_pid(pool)
      for i = 1, 3 do
        assert.equal(pid, tasks[i]:await())
      end
    end))

    it("counts for each worker", task(function()
      local pool <close> = new_pool { tasks_per_worker = 4 }
      local path, tasks = support.file(), {}
      for i = 1, 8 do
        tasks[i] = pool:submit(support.meet, path, 8)
      end
      local pids = {}
      for i = 1, 8 do
        pids[tasks[i]:await()] = true
      end
      local first = next(pids)
      local second = next(pids, first)
      assert.is_truthy(second)
      assert.is_nil(next(pids, second))
    end))
  end)

  describe("of backend " .. backend .. ", memory, niceness and idle time:", function()
    if not support.is_sanitized then
      it("memory_limit makes a task fail that takes more, and no other", task(function()
        local pool <close> = new_pool { max_workers = 1, memory_limit = 64 << 20 }
        local function allocate(bytes)
          return #("x"):rep(bytes)
        end
        for _ = 1, 2 do
          assert.equal("not enough memory", raised(pool.call, pool, allocate, 200 << 20))
          assert.equal(1 << 20, pool:call(allocate, 1 << 20))
        end
        assert.equal(0, pool:stats().crashed)
      end))
    end

    it("nice is the niceness of each worker, and of no one else", task(function()
      local before = support.niceness()
      local pool <close> = new_pool { nice = 19 }
      assert.equal(19, pool:call(support.niceness))
      assert.equal(before, support.niceness())
      local other <close> = new_pool()
      assert.equal(before, other:call(support.niceness))
    end))

    it("idle_timeout lets a worker go that has nothing to do for so long", task(function()
      for _, seconds in ipairs { 0.02, 0 } do
        local pool <close> = new_pool { idle_timeout = seconds }
        local pid = pool:call(unistd.getpid)
        eventually(function() return pool:stats().workers == 0 end)
        support.until_gone(pid)
        assert.not_equal(pid, (pool:call(unistd.getpid)))
        assert.same({ 2, 0, 2 },
          { pool:stats().started, pool:stats().crashed, pool:stats().completed })
      end
    end))

    it("idle_timeout is no limit to a task", task(function()
      local pool <close> = new_pool { idle_timeout = 0.01 }
      assert.equal(7, pool:call(function()
        opero.sleep(0.06)
        return 7
      end))
      assert.equal(0, pool:stats().crashed)
    end))
  end)

  describe("a function in a worker of backend " .. backend, function()
    after_each(support.clean_up)

    it("runs in a task, and may suspend", task(function()
      local pool <close> = new_pool()
      local is_task, slept, count = pool:call(function()
        local begun = opero.now()
        opero.sleep(0.01)
        return opero.current() ~= nil and opero.current():status() == "running",
          opero.now() - begun, opero.all {
            function() opero.sleep(0.001) return 2 end,
            function() opero.yield() return 3 end,
          }.n
      end)
      assert.same({ true, true, 2 }, { is_task, slept >= 0.0099, count })
    end))

    it("sees nothing of the tasks of the parent", task(function()
      local pool <close> = new_pool()
      local sleeper = opero.spawn(opero.sleep, 60):name("the sleeper of the parent")
      local names = pool:call(function()
        local list = {}
        for i, info in ipairs(opero.tasks()) do
          list[i] = info.name
        end
        return table.concat(list, "\n")
      end)
      sleeper:cancel()
      assert.is_nil(names:find("the sleeper of the parent", 1, true))
    end))

    it("can make an orchestrator", task(function()
      local pool <close> = new_pool()
      local result, calls = pool:call(function()
        local count = 0
        local orch = opero.Orchestrator {
          retry_config = { max_attempts = 3, wait_min = 0, wait_multiplier = 0 },
        }
        return orch:execute(function()
          count = count + 1
          if count < 3 then
            error("not yet", 0)
          end
          return "done"
        end), count
      end)
      assert.same({ "done", 3 }, { result, calls })
    end))

    it("can have a pool of its own", task(function()
      local pool <close> = new_pool()
      local outer, inner, result = pool:call(function()
        local own <close> = opero.Pool { backend = backend, max_workers = 1 }
        return unistd.getpid(), own:call(unistd.getpid), own:call(square, 7)
      end)
      assert.equal(support.only_pid(pool), outer)
      assert.not_equal(outer, inner)
      assert.equal(49, result)
      assert.is_false(support.is_alive(inner))
    end))

    it("has not returned before the tasks have ended that it has spawned", task(function()
      local pool <close> = new_pool()
      local path = support.file()
      assert.equal("result", pool:call(function()
        opero.spawn(function()
          opero.sleep(0.02)
          support.note(path, "the child's child has begun")
          opero.spawn(function()
            opero.sleep(0.001)
            support.note(path, "and ended")
          end)
        end)
        return "result"
      end))
      assert.same({ "the child's child has begun", "and ended" }, support.lines(path))
    end))

    it("fails when a task fails that it has spawned, if nobody awaits that", task(function()
      local pool <close> = new_pool()
      local function parent(awaits)
        local child = opero.spawn(function()
          opero.sleep(0.001)
          error("of the child", 0)
        end)
        return awaits and not pcall(child.await, child) and "caught"
      end
      assert.equal("of the child", raised(pool.call, pool, parent, false))
      assert.equal("caught", pool:call(parent, true))
      local err = raised_class("AggregateError", pool.call, pool, function()
        opero.spawn(error, "first", 0)
        opero.spawn(error, "second", 0)
      end)
      assert.same({ "first", "second" }, err.errors)
      assert.equal(0, pool:stats().crashed)
    end))

    it("cancels the tasks that it has spawned when it fails", task(function()
      local pool <close> = new_pool()
      local path = support.file()
      assert.equal("of the parent", raised(pool.call, pool, function()
        opero.spawn(function()
          local _ <close> = support.noting_close(path)
          opero.sleep(60)
        end)
        opero.yield()
        error("of the parent", 0)
      end))
      assert.same({ "cancelled" }, support.lines(path))
    end))

    it("fails alone when it yields where no task may", task(function()
      local pool <close> = new_pool { max_workers = 1, tasks_per_worker = 2 }
      local other = pool:submit(function()
        opero.sleep(0.03)
        return "other"
      end)
      assert.matches("attempt to yield from outside a coroutine", raised(pool.call, pool, function()
        coroutine.yield()
      end), 1, true)
      assert.equal("other", other:await())
      local results, failures = pool:map(function(x)
        return x == 2 and coroutine.yield() or x
      end, { 1, 2, 3 }, { on_error = "collect" })
      assert.same({ 1, nil, 3, n = 3 }, results)
      assert.matches("attempt to yield", failures[2], 1, true)
      assert.same({ 1, 0 }, { pool:stats().started, pool:stats().crashed })
    end))

    it("may cancel all the tasks that there are, one that has not begun too", task(function()
      local pool <close> = new_pool { max_workers = 1, tasks_per_worker = 3 }
      local sleeper = pool:submit(opero.sleep, 60)
      local killer = pool:submit(function()
        opero.yield()
        for _, info in ipairs(opero.tasks()) do
          if info.task ~= opero.current() then
            info.task:cancel()
          end
        end
        return "done"
      end)
      local late = pool:submit(square, 5)
      for _, cancelled in ipairs { sleeper, late } do
        local ok, result = pcall(cancelled.await, cancelled)
        assert.is_true(ok and result == 25 or errors.is(result, errors.CancelledError))
      end
      assert.equal("done", killer:await())
      assert.equal(4, pool:call(square, 2))
      assert.equal(0, pool:stats().crashed)
    end))

    it("draws random numbers of its own", task(function()
      local pool <close> = new_pool { max_workers = 2 }
      local function draw()
        opero.sleep(0.02)
        return math.random(1 << 50), unistd.getpid()
      end
      local by_pid, numbers = {}, {}
      eventually(function() -- each worker has been asked
        local first, second = pool:submit(draw), pool:submit(draw)
        for _, drawing in ipairs { first, second } do
          local number, pid = drawing:await()
          by_pid[pid] = true
          assert.is_nil(numbers[number])
          numbers[number] = true
        end
        local one = next(by_pid)
        return next(by_pid, one) ~= nil
      end)
    end))

    it("may cancel itself", task(function()
      local pool <close> = new_pool()
      local err = raised(pool.call, pool, function()
        opero.current():cancel("enough")
        opero.yield()
      end)
      assert.is_true(errors.is(err, errors.CancelledError))
      assert.equal(4, pool:call(square, 2))
      assert.same({ 1, 0 }, { pool:stats().started, pool:stats().crashed })
    end))
  end)
end)

describe("of backend spawn, interpreter", function()
  it("is the program that workers run", task(function()
    local pool <close> = support.pool("spawn", { interpreter = support.interpreter() })
    assert.equal(4, pool:call(square, 2))
  end))

  it("is named in the error when it cannot be started", task(function()
    local pool <close> = support.pool("spawn", { interpreter = "no-such-program-here" })
    assert.matches("no-such-program-here", tostring(raised(pool.call, pool, square, 2)), 1, true)
    assert.equal(0, pool:stats().workers)
  end))
end)
