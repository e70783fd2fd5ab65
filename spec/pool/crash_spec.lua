-- Workers that die, in every way and at every moment: the task that was running fails alone.

local errors = require "opero.errors"
local faults = require "spec.pool.faults"
local opero = require "opero"
local signal = require "posix.signal"
local stdlib = require "posix.stdlib"
local support = require "spec.support"
local unistd = require "posix.unistd"

local crash_of, queue_behind, task = faults.crash_of, faults.queue_behind, faults.task

local BIG <const> = 50000000

local function big_text()
  return ("0123456789"):rep(BIG // 10)
end

-- Kills the process it is called in.
local function die()
  signal.kill(unistd.getpid(), signal.SIGKILL)
end

local function killed_by(number)
  return { "is killed by signal " .. number, function()
    signal.kill(unistd.getpid(), number)
  end, signal = number }
end

local ways = {
  { "exits with 0", function() os.exit(0) end, status = 0 },
  { "exits with 1", function() os.exit(1) end, status = 1 },
  { "exits and closes its state", function() os.exit(4, true) end, status = 4 },
  { "leaves without a word", function() unistd._exit(3) end, status = 3 },
  { "aborts", function() stdlib.abort() end, signal = signal.SIGABRT },
  killed_by(signal.SIGKILL),
  killed_by(signal.SIGSEGV),
  killed_by(signal.SIGTERM),
}

-- Whether the error says how the worker ended.
local function check_end(err, way)
  assert.equal("integer", math.type(err.pid))
  assert.is_true(faults.is_gone(err.pid))
  if faults.is_sanitized then -- which handles some signals, and looks for leaks at an exit
    assert.is_true(err.status ~= nil or err.signal ~= nil)
  else
    assert.equal(way.status, err.status)
    assert.equal(way.signal, err.signal)
  end
end

for _, backend in ipairs(faults.backends) do
  describe("a worker of backend " .. backend .. " that", function()
    local mark, package_path

    local function new_pool(options)
      options = options or {}
      options.backend, options.max_workers = backend, options.max_workers or 1
      return opero.Pool(options)
    end

    setup(function()
      faults.warm_up(backend)
    end)

    before_each(function()
      package_path = package.path
      mark = faults.mark()
    end)

    after_each(function()
      package.path = package_path
      faults.clean_up()
      assert.equal("nothing", faults.left_since(mark))
    end)

    for _, way in ipairs(ways) do
      local title, fail = table.unpack(way)

      it(title .. " while it runs a task fails this one alone", task(function()
        local pool <close> = new_pool()
        local culprit = pool:submit(fail, "the item")
        local check_behind = queue_behind(pool)
        local err = crash_of(culprit)
        check_end(err, way)
        assert.equal("the item", err.item)
        check_behind()
        assert.equal(1, pool:stats().crashed)
      end))
    end

    it("is killed while it is idle is missed by nobody", task(function()
      local pool <close> = new_pool()
      for count, number in ipairs { signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM } do
        assert.equal(9, pool:call(faults.square, 3))
        local pid = pool:stats().pids[1]
        signal.kill(pid, number)
        faults.wait_until("the death is known", function()
          return pool:stats().crashed == count
        end)
        assert.is_nil(faults.process(pid))
        assert.equal(0, pool:stats().workers)
      end
      queue_behind(pool)()
    end))

    it("died unnoticed fails no task that it never began", task(function()
      local pool <close> = new_pool()
      for i = 1, backend == "fork" and 50 or 10 do
        pool:call(faults.square, i)
        signal.kill(pool:stats().pids[1], signal.SIGKILL)
        assert.equal(i * i, pool:call(faults.square, i))
      end
    end))

    it("is killed from outside while it is busy fails this task alone", task(function()
      local pool <close> = new_pool()
      local log = faults.file()
      local busy = pool:submit(faults.note_and_work, 7, log)
      local check_behind = queue_behind(pool)
      faults.wait_until("it is busy", function() return faults.notes(log)[7] end)
      local pid = pool:stats().pids[1]
      signal.kill(pid, signal.SIGKILL)
      local err = crash_of(busy)
      assert.same({ pid, signal.SIGKILL, 7 }, { err.pid, err.signal, err.item })
      assert.matches("^WorkerCrashedError: ", tostring(err))
      check_behind()
    end))

    it("is killed while it suspends several tasks fails these alone", task(function()
      local pool <close> = new_pool { tasks_per_worker = 3 }
      local log = faults.file()
      local function sleep(i)
        faults.note(log, i)
        opero.sleep(i <= 3 and 60 or 0)
        return i
      end
      local tasks = {}
      for i = 1, 5 do
        tasks[i] = pool:submit(sleep, i)
      end
      faults.wait_until("three have begun", function() return faults.count_notes(log) == 3 end)
      signal.kill(pool:stats().pids[1], signal.SIGKILL)
      for i = 1, 3 do
        assert.equal(i, crash_of(tasks[i]).item)
      end
      assert.same({ 4, 5 }, { tasks[4]:await(), (tasks[5]:await()) })
      assert.same(faults.once_each(5), faults.notes(log))
      assert.equal(1, pool:stats().crashed)
    end))

    it("dies again and again fails each time the task it ran", task(function()
      local pool <close> = new_pool()
      local tasks, log = {}, faults.file()
      for i = 1, 10 do
        tasks[i] = { pool:submit(die, i), pool:submit(faults.noted_square, log, i) }
      end
      for i, pair in ipairs(tasks) do
        assert.equal(i, crash_of(pair[1]).item)
        assert.equal(i * i, pair[2]:await())
      end
      assert.same(faults.once_each(10), faults.notes(log))
      assert.equal(10, pool:stats().crashed)
    end))

    it("is killed with all others leaves the rest to new ones", task(function()
      local count = backend == "fork" and 4 or 2
      local pool <close> = new_pool { max_workers = count }
      local sleepers, log = {}, faults.file()
      for i = 1, count do
        sleepers[i] = pool:submit(faults.note_and_sleep, i, log)
      end
      faults.wait_until("all are busy", function() return faults.count_notes(log) == count end)
      assert.equal(count, pool:stats().running)
      local check_behind = queue_behind(pool)
      local pids = pool:stats().pids
      assert.equal(count, #pids)
      for _, pid in ipairs(pids) do
        signal.kill(pid, signal.SIGKILL)
      end
      for i = 1, count do
        assert.equal(i, crash_of(sleepers[i]).item)
      end
      check_behind()
      assert.equal(count, pool:stats().crashed)
    end))

    it("is killed while arguments are on their way loses nothing", task(function()
      local pool <close> = new_pool()
      local text = big_text()
      for i = 0, 5 do
        pool:call(faults.square, 1)
        local pid = pool:stats().pids[1]
        if i == 0 then -- it reads nothing, so they are stuck half-way
          signal.kill(pid, signal.SIGSTOP)
        end
        local reading = pool:submit(string.len, text)
        local check_behind = queue_behind(pool)
        opero.sleep(i * 0.004) -- from "nothing of it has been read" to "all has"
        signal.kill(pid, signal.SIGKILL)
        faults.check_whole_or_crash(reading, BIG)
        check_behind()
      end
    end))

    if not faults.is_sanitized then -- for which there is no such limit
      it("has no memory left fails this task alone", task(function()
        local pool <close> = new_pool { memory_limit = 64 << 20 }
        local function hoard(mebibytes)
          local list = {}
          for i = 1, mebibytes do
            list[i] = ("x"):rep(1 << 20) .. i
          end
          return #list
        end
        for _ = 1, 3 do
          local hungry = pool:submit(hoard, 1000)
          local check_behind = queue_behind(pool)
          assert.matches("not enough memory", tostring(support.raised(hungry.await, hungry)))
          check_behind()
          assert.equal(10, pool:call(hoard, 10))
        end
        -- an argument that alone is too much
        local err = support.raised(pool.call, pool, string.len, ("x"):rep(200 << 20))
        assert.is_true(faults.is_crash(err) or tostring(err):find("not enough memory") ~= nil)
        queue_behind(pool)()
      end))
    end

    it("dies of a module it loads for a task fails this one alone", task(function()
      local folder, name = faults.folder(), "opero_deadly_" .. backend
      faults.write(("%s/%s.lua"):format(folder, name), ([[
        if require("posix.unistd").getpid() ~= %d then
          os.exit(9)
        end
        return { answer = function() return 42 end }
      ]]):format(unistd.getpid()))
      package.path = folder .. "/?.lua;" .. package.path
      local pool <close> = new_pool()
      pool:call(faults.square, 1) -- the worker is there before the module is loaded here
      local deadly = require(name)
      local loading = pool:submit(function() return deadly.answer() end, "item")
      local check_behind = queue_behind(pool)
      local err = crash_of(loading)
      check_end(err, { status = 9 })
      assert.equal("item", err.item)
      check_behind()
      package.loaded[name] = nil
    end))

    it("is killed while its result is half sent gives all or nothing", task(function()
      local pool <close> = new_pool()
      local text = big_text()
      for i = 0, 5 do
        local log = faults.file()
        local sending = pool:submit(function()
          faults.note(log, 1)
          local result = ("0123456789"):rep(BIG // 10)
          faults.note(log, 2)
          return result
        end)
        local check_behind = queue_behind(pool)
        faults.wait_until("it runs", function() return faults.notes(log)[1] end)
        local pid = pool:stats().pids[1]
        if i == 0 then -- nothing is read here, so the worker comes to where it can send no more
          faults.stand_still_until(function()
            return faults.notes(log)[2] and faults.process(pid).state ~= "R"
          end)
        else
          faults.wait_until("it is made", function() return faults.notes(log)[2] end)
          opero.sleep((i - 1) * 0.005) -- from "nothing of it was sent" to "all was"
        end
        signal.kill(pid, signal.SIGKILL)
        faults.check_whole_or_crash(sending, text)
        check_behind()
      end
    end))

    it("closes its channel is found out", task(function()
      local pool <close> = new_pool()
      local closing = pool:submit(function()
        for fd = 3, 255 do
          unistd.close(fd)
        end
        return "closed"
      end)
      local check_behind = queue_behind(pool)
      faults.check_whole_or_crash(closing, "closed")
      check_behind(true)
    end))

    it("dies at every start ends in one clear error", task(function()
      local flag = faults.file()
      faults.write(flag, "die")
      local pool <close> = new_pool { max_workers = 2, init = function()
        if faults.read(flag) ~= "" then
          os.exit(5)
        end
      end }
      local tasks = {}
      for i = 1, 6 do
        tasks[i] = pool:submit(faults.square, i)
      end
      for i = 1, 6 do
        local err = crash_of(tasks[i])
        check_end(err, { status = 5 })
        assert.equal(i, err.item)
      end
      local started = pool:stats().started
      assert.is_true(started >= 3 and started <= 8, started .. " were started")
      opero.sleep(0.05)
      assert.equal(started, pool:stats().started)
      crash_of(pool:submit(faults.square, 7))
      faults.write(flag, "")
      queue_behind(pool)()
    end))

    it("dies at its first start alone loses no task", task(function()
      local flag = faults.file()
      local pool <close> = new_pool { init = function()
        local is_first = faults.read(flag) == ""
        faults.note(flag, unistd.getpid())
        if is_first then
          signal.kill(unistd.getpid(), signal.SIGKILL)
        end
      end }
      queue_behind(pool)()
      assert.equal(1, pool:stats().crashed)
    end))

    it("is killed while it starts loses no task", task(function()
      local flag = faults.file()
      local pool <close> = new_pool { init = function()
        local is_first = faults.read(flag) == ""
        faults.note(flag, unistd.getpid())
        while is_first do end
      end }
      local check_behind = queue_behind(pool)
      local pid = faults.wait_until("it starts", function()
        return tonumber(faults.read(flag):match("^(%d+)\n"))
      end)
      signal.kill(pid, signal.SIGKILL)
      check_behind()
    end))

    for title, chunk_size in pairs { [" a chunk of a map"] = 10, [" a map"] = false } do
      it("dies in" .. title .. " fails one item", task(function()
        local pool <close> = new_pool { max_workers = 2 }
        local log, items = faults.file(), faults.numbers(40)
        local function square(i)
          faults.note(log, i)
          return i == 13 and die() or i * i
        end
        local results, failures = pool:map(square, items,
          { on_error = "collect", chunk_size = chunk_size or nil })
        for i = 1, 40 do
          if i == 13 then
            assert.is_true(faults.is_crash(failures[i]))
            assert.equal(13, failures[i].item)
          else
            assert.is_nil(failures[i])
            assert.equal(i * i, results[i])
          end
        end
        assert.same(faults.once_each(40), faults.notes(log))
        for result, err, index in pool:imap(square, items,
          { on_error = "collect", chunk_size = chunk_size or nil }) do
          assert.equal(index == 13, faults.is_crash(err))
          assert.equal(index ~= 13 and index * index, result)
        end
        local err = support.raised(pool.map, pool, square, items)
        assert.same({ "ItemError", 13, 13 }, { err.name, err.index, err.item })
        assert.is_true(faults.is_crash(err.cause))
        assert.equal(49, pool:call(faults.square, 7))
      end))
    end

    it("dies is made good by a retry, if retry_on says so", task(function()
      local function orchestrate(retry_on)
        local orch <close> = opero.Orchestrator {
          multiprocess_config = { backend = backend, max_workers = 1 },
          retry_config = { max_attempts = 3, wait_min = 0, wait_multiplier = 0,
            retry_on = retry_on },
        }
        local log = faults.file()
        local ok, result = pcall(orch.execute, orch, function(path)
          local is_first = faults.read(path) == ""
          faults.note(path, 1)
          return is_first and die() or "done"
        end, log)
        return ok, result, faults.notes(log)[1]
      end
      assert.same({ true, "done", 2 }, { orchestrate(errors.WorkerCrashedError) })
      local ok, err, runs = orchestrate(errors.TimeoutError)
      assert.same({ false, true, 1 }, { ok, faults.is_crash(err), runs })
    end))
  end)
end
