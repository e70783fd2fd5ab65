-- Tasks of a pool that are cut short: cancelled, or out of time.

local opero = require "opero"
local support = require "spec.pool.support"
local unistd = require "posix.unistd"

local eventually, raised, raised_class = support.eventually, support.raised, support.raised_class
local task = support.task

local function square(x) return x * x end

-- These note in the file that they have begun, and in which process, and how they were left.
local function sleeps(path)
  local _ <close> = support.noting_close(path)
  support.note(path, unistd.getpid())
  opero.sleep(3600)
end

local function computes(path)
  local _ <close> = support.noting_close(path)
  support.note(path, unistd.getpid())
  while true do end
end

-- Nothing but its end makes it stop.
local function insists(path)
  support.note(path, unistd.getpid())
  while true do
    pcall(function()
      while true do end
    end)
  end
end

-- Waits until what was submitted with this file has begun; returns the process it is in.
local function until_begun(path)
  return tonumber(eventually(function() return support.lines(path)[1] end))
end

-- Waits until it has been left by a cancellation.
local function until_cleaned_up(path)
  eventually(function() return support.lines(path)[2] == "cancelled" end)
end

local function check_cancelled(waiting, reason)
  local err = raised_class("CancelledError", waiting.await, waiting)
  assert.equal(reason, err.reason)
  assert.equal("cancelled", waiting:status())
end

support.each_backend(function(backend)
  local function new_pool(options)
    return support.pool(backend, options)
  end

  -- It has another worker than that, and is none the worse for it.
  local function check_replaced(pool, pid)
    support.until_gone(pid)
    assert.not_equal(pid, (pool:call(unistd.getpid)))
    assert.equal(0, pool:stats().crashed)
    support.until_unemployed(pool)
  end

  describe("cancelling a task of backend " .. backend, function()
    after_each(support.clean_up)

    it("that has not begun takes it out of the queue", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local gate, log = support.file(), support.file()
      local first = pool:submit(support.wait_for, gate)
      support.until_running(pool, 1)
      local second = pool:submit(support.note, log, "second")
      local third = pool:submit(support.note, log, "third")
      eventually(function() return pool:stats().queued == 2 end)
      assert.is_true(second:cancel("no need"))
      check_cancelled(second, "no need")
      eventually(function() return pool:stats().queued == 1 end)
      support.open(gate)
      first:await()
      third:await()
      assert.same({ "third" }, support.lines(log))
      assert.equal(1, pool:stats().started)
    end))

    it("that has not even been sent does nothing", task(function()
      local pool <close> = new_pool()
      local log = support.file()
      local waiting = pool:submit(support.note, log, "was run")
      waiting:cancel()
      check_cancelled(waiting)
      assert.equal(4, pool:call(square, 2))
      support.until_unemployed(pool)
      assert.same({}, support.lines(log))
    end))

    it("again, or when it is done, changes nothing", task(function()
      local pool <close> = new_pool()
      local done = pool:submit(square, 3)
      assert.equal(9, done:await())
      assert.is_false(done:cancel())
      assert.equal(9, done:await())
      local path = support.file()
      local running = pool:submit(sleeps, path)
      until_begun(path)
      running:cancel("enough")
      running:cancel("enough")
      check_cancelled(running, "enough")
      assert.is_false(running:cancel())
    end))

    for _, case in ipairs { { "sleeps", sleeps }, { "computes", computes } } do
      it("that " .. case[1] .. " ends it with its cleanup, and replaces its worker",
        task(function()
          local pool <close> = new_pool { max_workers = 1 }
          local path = support.file()
          local running = pool:submit(case[2], path)
          local pid = until_begun(path)
          running:cancel("enough")
          check_cancelled(running, "enough")
          until_cleaned_up(path)
          check_replaced(pool, pid)
        end))
    end

    it("that does not let go of its worker kills that", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local path = support.file()
      local running = pool:submit(insists, path)
      local pid, begun = until_begun(path), opero.now()
      running:cancel()
      check_cancelled(running)
      check_replaced(pool, pid)
      assert.is_true(opero.now() - begun < support.soon)
    end))

    it("leaves those that wait behind it to the next worker", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local path, log, behind = support.file(), support.file(), {}
      local running = pool:submit(computes, path)
      until_begun(path)
      for i = 1, 10 do
        behind[i] = pool:submit(function()
          support.note(log, i)
          return i
        end)
      end
      running:cancel()
      for i = 1, 10 do
        assert.equal(i, behind[i]:await())
      end
      check_cancelled(running)
      local lines = support.lines(log)
      table.sort(lines)
      assert.equal("1 10 2 3 4 5 6 7 8 9", table.concat(lines, " "))
      assert.equal(0, pool:stats().crashed)
    end))

    it("leaves tasks in other workers alone", task(function()
      local pool <close> = new_pool { max_workers = 2 }
      local path, gate = support.file(), support.file()
      local running, other = pool:submit(computes, path), pool:submit(support.wait_for, gate)
      until_begun(path)
      support.until_running(pool, 2)
      running:cancel()
      check_cancelled(running)
      support.open(gate)
      assert.equal("open", other:await())
    end))

    it("with cancel = \"wait\" lets it run to its end and drops its result", task(function()
      local pool <close> = new_pool { max_workers = 1, cancel = "wait" }
      local gate, log = support.file(), support.file()
      local running = pool:submit(function()
        local _ <close> = support.noting_close(log)
        support.wait_for(gate)
        return unistd.getpid()
      end)
      support.until_running(pool, 1)
      local pid, begun = support.only_pid(pool), opero.now()
      running:cancel("enough")
      check_cancelled(running, "enough")
      assert.is_true(opero.now() - begun < support.soon)
      assert.is_true(support.is_alive(pid))
      local queued = pool:submit(support.note, log, "queued")
      queued:cancel()
      check_cancelled(queued)
      assert.same({}, support.lines(log))
      support.open(gate)
      eventually(function() return support.lines(log)[1] == "nil" end) -- closed by no error
      assert.equal(pid, (pool:call(unistd.getpid)))
      support.until_unemployed(pool)
      assert.same({ "nil" }, support.lines(log))
      assert.same({ 1, 0 }, { pool:stats().started, pool:stats().crashed })
    end))
  end)

  describe("waiting for a task of backend " .. backend, function()
    after_each(support.clean_up)

    it("for a time only leaves it running", task(function()
      local pool <close> = new_pool()
      local gate = support.file()
      local running = pool:submit(support.wait_for, gate)
      local err = raised_class("TimeoutError", running.await, running, 0.01)
      assert.equal(0.01, err.timeout)
      support.until_running(pool, 1)
      support.open(gate)
      assert.equal("open", running:await())
      assert.same({ 1, 1 }, { pool:stats().started, pool:stats().completed })
    end))

    it("within a timeout cancels it", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      pool:call(square, 1) -- so that it is there
      local path = support.file()
      raised_class("TimeoutError", opero.timeout, 0.2, pool.call, pool, computes, path)
      until_cleaned_up(path)
      check_replaced(pool, until_begun(path))
    end))

    it("in a scope that fails cancels it, begun or not", task(function()
      local pool <close> = new_pool { max_workers = 1 }
      local path, log = support.file(), support.file()
      assert.equal("elsewhere", raised(opero.scope, function(scope)
        scope:spawn(pool.call, pool, sleeps, path)
        until_begun(path)
        scope:spawn(pool.call, pool, support.note, log, "was run")
        opero.yield()
        error("elsewhere", 0)
      end))
      until_cleaned_up(path)
      support.until_unemployed(pool)
      assert.equal(4, pool:call(square, 2))
      assert.same({}, support.lines(log))
    end))

    it("in a race cancels the one that loses", task(function()
      local pool <close> = new_pool { max_workers = 2 }
      local path = support.file()
      assert.equal("first", (opero.race {
        function() return pool:call(sleeps, path) end,
        function()
          until_begun(path)
          return "first"
        end,
      }))
      until_cleaned_up(path)
      support.until_unemployed(pool)
    end))

    it("behind a shield goes on when it is cancelled", task(function()
      local pool <close> = new_pool()
      local gate, result = support.file(), nil
      local shielded = opero.spawn(function()
        opero.shield(function()
          result = pool:call(support.wait_for, gate)
        end)
      end)
      support.until_running(pool, 1)
      shielded:cancel()
      opero.sleep(0.005)
      assert.equal("suspended", shielded:status())
      support.open(gate)
      check_cancelled(shielded)
      assert.equal("open", result)
      assert.equal(1, pool:stats().started)
    end))
  end)

  describe("task_timeout of backend " .. backend, function()
    after_each(support.clean_up)

    for _, case in ipairs { { "sleeps", sleeps }, { "computes", computes },
      { "insists", insists } } do
      it("ends a task that " .. case[1] .. " for longer, and its worker", task(function()
        local pool <close> = new_pool { max_workers = 1, task_timeout = 0.1 }
        local path, begun = support.file(), opero.now()
        local running = pool:submit(case[2], path)
        local err = raised_class("TimeoutError", running.await, running)
        assert.equal(0.1, err.timeout)
        assert.is_true(opero.now() - begun >= 0.099)
        check_replaced(pool, until_begun(path))
      end))
    end

    it("does not count the time in the queue", task(function()
      local pool <close> = new_pool { max_workers = 1, task_timeout = 0.5 }
      local tasks = {}
      for i = 1, 3 do
        tasks[i] = pool:submit(function()
          opero.sleep(0.2)
          return i
        end)
      end
      for i = 1, 3 do
        assert.equal(i, tasks[i]:await())
      end
      assert.equal(1, pool:stats().started)
    end))

    it("lets those that wait behind it run elsewhere", task(function()
      local pool <close> = new_pool { max_workers = 1, task_timeout = 0.1 }
      local path, log = support.file(), support.file()
      local slow = pool:submit(computes, path)
      local behind = { pool:submit(support.note, log, 1), pool:submit(support.note, log, 2) }
      raised_class("TimeoutError", slow.await, slow)
      behind[1]:await()
      behind[2]:await()
      assert.same({ "1", "2" }, support.lines(log))
      assert.equal(0, pool:stats().crashed)
    end))

    it("holds for each item of a map", task(function()
      local pool <close> = new_pool { task_timeout = 0.1 }
      local results, failures = pool:map(function(item)
        while item == 3 do end
        opero.sleep(0.02)
        return item
      end, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, { on_error = "collect" })
      assert.same({ n = 10, 1, 2, nil, 4, 5, 6, 7, 8, 9, 10 }, results)
      for i = 1, 10 do
        assert.equal(i == 3, failures[i] ~= nil)
      end
      assert.equal("TimeoutError", failures[3].name)
      assert.equal(10, failures.n)
    end))
  end)
end)
