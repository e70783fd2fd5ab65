-- The pool in the process around it: whoever ends, and however, nobody is left; and what belongs to
-- the host stays as it was.

local errors = require "opero.errors"
local faults = require "spec.pool.faults"
local opero = require "opero"
local raised = require "spec.support".raised
local signal = require "posix.signal"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"

local task = faults.task

local prelude <const> = [[
local errors = require "opero.errors"
local faults = require "spec.pool.faults"
local opero = require "opero"
local signal = require "posix.signal"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"
local backend, path, more = ...
]]

local busy_program <const> = prelude .. [[
local pool = opero.Pool { backend = backend, max_workers = 3 }
for i = 1, 2 do
  pool:submit(faults.note_and_work, i, path)
end
pool:submit(faults.note_and_sleep, 3, path)
]]

local when_busy <const> = [[
faults.wait_until("all are busy", function() return faults.count_notes(path) == 3 end)
]]

local kill <const> = "signal.kill(unistd.getpid(), signal.SIGKILL)"

local endings = {
  { "is killed", when_busy .. kill, code = 137 },
  { "is killed while they start", "opero.sleep(0) " .. kill, code = 137 },
  { "ends", when_busy },
  { "ends while they start", "opero.sleep(0)" },
  { "exits", when_busy .. "os.exit(3)", code = 3 },
  { "exits while they start", "opero.sleep(0) os.exit(0)" },
  { "exits and closes its state", when_busy .. "os.exit(0, true)" },
  { "fails", when_busy .. "error('bad luck', 0)", code = 1, err = "^[^\n]*: bad luck\n" },
  { "fails in a task", when_busy .. [[
    opero.run(function()
      local own = opero.Pool { backend = backend, max_workers = 1 }
      own:submit(faults.note_and_work, 4, path)
      faults.wait_until("it is busy", function() return faults.count_notes(path) == 4 end)
      error("bad luck", 0)
    end)
  ]], code = 1, err = "^[^\n]*: bad luck\n" },
}

-- A function for workers that notes how it was left.
local interruptible <const> = prelude .. [[
local function work(number, log, closed)
  local _ <close> = setmetatable({}, { __close = function(_, err)
    faults.note(closed, tostring(err):match "^%w+")
  end })
  faults.note(log, number)
  if number == 1 then
    opero.sleep(60)
  end
  while true do end
end
]]

-- What /proc says of signals and threads of this process.
local function signals()
  local lines = {}
  for line in faults.read("/proc/self/status"):gmatch("[^\n]+") do
    if line:find("^Sig[BIC]") or line:find("^Threads") then
      lines[#lines + 1] = line
    end
  end
  return lines
end

for _, backend in ipairs(faults.backends) do
  local mark

  local function new_pool(options)
    options = options or {}
    options.backend, options.max_workers = backend, options.max_workers or 1
    return opero.Pool(options)
  end

  local function check_nothing_left()
    assert.equal("nothing", faults.left_since(mark))
  end

  local function prepare()
    faults.warm_up(backend)
  end

  local function before()
    mark = faults.mark()
  end

  local function after()
    faults.clean_up()
    check_nothing_left()
  end

  describe("workers of backend " .. backend .. " are gone when", function()
    setup(prepare)
    before_each(before)
    after_each(after)

    for _, ending in ipairs(endings) do
      it("the program " .. ending[1], function()
        local outcome = faults.run_program(busy_program .. ending[2], { backend, faults.file() })
        assert.equal(ending.code or 0, outcome.code, outcome.err)
        assert.matches(ending.err or "^$", outcome.err)
        assert.is_true(faults.is_deserted(outcome.session))
        assert.is_true(outcome.seconds < 5 * faults.slowness)
      end)
    end

    it("the worker whose pool they are is killed", task(function()
      local pool <close> = new_pool()
      local log = faults.file()
      local host = pool:submit(function()
        local inner = opero.Pool { backend = backend, max_workers = 1 }
        inner:submit(function()
          faults.note(log, unistd.getpid())
          while true do end
        end)
        opero.sleep(60)
      end)
      local pid = faults.wait_until("there is a worker's worker", function()
        return tonumber(faults.read(log):match("^(%d+)\n"))
      end)
      signal.kill(pool:stats().pids[1], signal.SIGKILL)
      faults.crash_of(host)
      faults.wait_until("it is gone", function() return faults.is_gone(pid) end, 1)
    end))

    it("close returns, which was called while they start, and all has been done", task(function()
      local pool, tasks = new_pool { max_workers = 3 }, {}
      for i = 1, 20 do
        tasks[i] = pool:submit(faults.square, i)
      end
      pool:close()
      check_nothing_left()
      for i = 1, 20 do
        assert.equal(i * i, tasks[i]:await())
      end
    end))

    it("close(0) returns, and each task has a result or a ClosedError", task(function()
      for turns = 0, 5 do
        local pool, tasks = new_pool { max_workers = 2 }, {}
        for i = 1, 20 do
          tasks[i] = pool:submit(faults.square, i)
        end
        opero.sleep(turns * 0.001) -- they are anywhere between waiting and done
        pool:close(0)
        check_nothing_left()
        for i = 1, 20 do
          local ok, result = pcall(tasks[i].await, tasks[i])
          if ok then
            assert.equal(i * i, result)
          else
            assert.is_true(errors.is(result, errors.ClosedError), tostring(result))
          end
        end
      end
    end))

    it("close returns, which has waited in vain for a busy one", task(function()
      local pool, log = new_pool(), faults.file()
      local busy, behind = pool:submit(faults.note_and_work, 1, log), pool:submit(faults.square, 2)
      faults.wait_until("it is busy", function() return faults.notes(log)[1] end)
      local started = opero.now()
      pool:close(0.05)
      local took = opero.now() - started
      check_nothing_left()
      assert.is_true(took >= 0.05 and took < faults.slowness)
      assert.equal("ClosedError", raised(busy.await, busy).name)
      assert.equal("ClosedError", raised(behind.await, behind).name)
    end))

    it("close returns, also those that are stopped", task(function()
      for _, is_busy in ipairs { false, true } do
        local pool, log, busy = new_pool(), faults.file(), nil
        pool:call(faults.square, 1)
        if is_busy then
          busy = pool:submit(faults.note_and_work, 1, log)
          faults.wait_until("it is busy", function() return faults.notes(log)[1] end)
        end
        signal.kill(pool:stats().pids[1], signal.SIGSTOP)
        pool:close(is_busy and 0.05 or nil)
        check_nothing_left()
        assert.is_true(not busy or raised(busy.await, busy).name == "ClosedError")
      end
    end))

    it("close returns, to each who called it", task(function()
      local pool, closers = new_pool { max_workers = 2 }, {}
      local sleeper = pool:submit(opero.sleep, 0.02)
      for i = 1, 3 do
        closers[i] = opero.spawn(function()
          pool:close()
          assert.equal("done", sleeper:status())
          check_nothing_left()
        end)
      end
      opero.all(closers)
      pool:close()
      pool:close(0)
      for _, method in ipairs { "submit", "call", "map" } do
        assert.equal("ClosedError", raised(pool[method], pool, faults.square, { 1 }).name)
      end
      assert.equal("ClosedError", raised(function()
        for _ in pool:imap(faults.square, { 1 }) do end
      end).name)
    end))

    it("a pool goes out of scope with an error", task(function()
      local log, busy = faults.file(), nil
      assert.equal("bad luck", raised(function()
        local pool <close> = new_pool()
        busy = pool:submit(faults.note_and_work, 1, log)
        faults.wait_until("it is busy", function() return faults.notes(log)[1] end)
        error("bad luck", 0)
      end))
      check_nothing_left()
      assert.equal("ClosedError", raised(busy.await, busy).name)
    end))

    it("a pool is collected unclosed", function()
      for _ = 1, 3 do
        (function()
          local pool = new_pool { max_workers = 2 }
          assert.equal(4, pool:call(faults.square, 2))
          assert.equal(9, pool:submit(faults.square, 3):await())
        end)()
      end
      faults.wait_until("nothing is left", function()
        opero.run(function() opero.yield() end) -- where the last task's values were
        return faults.left_since(mark) == "nothing"
      end)
    end)

    it("an interrupt comes from the terminal, and the tasks have cleaned up", function()
      local closed = faults.file()
      local outcome = faults.run_program(interruptible .. [[
        local pool, group = opero.Pool { backend = backend, max_workers = 2 }, unistd.getpgrp()
        if unistd.fork() == 0 then
          unistd.setpid "s"
          faults.stand_still_until(function() return faults.count_notes(path) == 2 end)
          signal.killpg(group, signal.SIGINT)
          unistd._exit(0)
        end
        opero.run(function()
          pool:submit(work, 1, path, more)
          pool:submit(work, 2, path, more)
        end)
      ]], { backend, faults.file(), closed })
      assert.equal(1, outcome.code)
      assert.matches("^[^\n]*: interrupted!\n", outcome.err)
      assert.equal(1, select(2, outcome.err:gsub("traceback", "")), outcome.err)
      assert.equal("CancelledError\nCancelledError\n", faults.read(closed))
      assert.is_true(faults.is_deserted(outcome.session))
    end)
  end)

  describe("a pool of backend " .. backend, function()
    setup(prepare)
    before_each(before)
    after_each(after)

    it("lets a worker end cleanly and quietly that is interrupted", function()
      local closed = faults.file()
      local out = faults.output_of(interruptible .. [[
        local pool = opero.Pool { backend = backend, max_workers = 1 }
        for number = 1, 2 do
          local task = pool:submit(work, number, path, more)
          local behind = pool:submit(faults.square, 3)
          faults.wait_until("it is busy", function() return faults.notes(path)[number] end)
          signal.kill(pool:stats().pids[1], signal.SIGINT)
          local err = faults.crash_of(task)
          print(err.name, err.signal == signal.SIGINT, behind:await())
          local idle = pool:stats().pids[1]
          signal.kill(idle, signal.SIGINT)
          faults.wait_until("it is gone", function() return faults.is_gone(idle) end)
          print(pool:call(faults.square, 4))
        end
        pool:close()
      ]], { backend, faults.file(), closed })
      assert.equal(("WorkerCrashedError\ttrue\t9\n16\n"):rep(2), out)
      assert.equal("CancelledError\nCancelledError\n", faults.read(closed))
    end)

    it("takes tasks from whoever has just had a result", task(function()
      local pool <close> = new_pool { max_workers = 2 }
      local last = 0
      for i = 1, 50 do
        last = pool:submit(math.max, last, i):await()
      end
      assert.equal(50, last)
      for result, _, index in pool:imap(faults.square, faults.numbers(20)) do
        assert.equal(result, pool:call(faults.square, index))
        assert.same({ n = 3, 1, 4, 9 }, (pool:map(faults.square, { 1, 2, 3 })))
      end
    end))

    for _, ending in ipairs { "unistd._exit", "os.exit", "close" } do
      it("belongs to the parent after a fork of the user's own: " .. ending, function()
        assert.equal("exited\t0\tslept\t16\ttrue\t0\n", faults.output_of(prelude .. [[
          local pool = opero.Pool { backend = backend, max_workers = 2 }
          local function pids()
            local list = pool:stats().pids
            table.sort(list)
            return table.concat(list, " ")
          end
          local sleeper = pool:submit(function() opero.sleep(0.05) return "slept" end)
          assert(pool:call(faults.square, 3) == 9)
          local before = pids()
          local child = unistd.fork()
          if child == 0 then
            local function is_refused(method, ...)
              local ok, err = pcall(pool[method], pool, faults.square, ...)
              return not ok and errors.is(err, errors.ClosedError) and err.message:find "parent"
            end
            local code = is_refused("submit", 1) and is_refused("call", 1)
              and is_refused("map", { 1 }) and 0 or 1
            if more == "unistd._exit" then
              pcall(pool.close, pool)
              unistd._exit(code)
            end
            pool = nil
            collectgarbage()
            os.exit(code, more == "close")
          end
          local _, how, status = wait.wait(child)
          print(how, status, sleeper:await(), pool:call(faults.square, 4), pids() == before,
            pool:stats().crashed)
          pool:close()
        ]], { backend, "-", ending }))
      end)
    end

    it("leaves the host's own children to it", task(function()
      local child = assert(unistd.fork())
      if child == 0 then
        unistd._exit(7)
      end
      faults.wait_until("it has ended", function() return faults.process(child).state == "Z" end)
      local pool = new_pool()
      faults.crash_of(pool:submit(os.exit, 1))
      assert.equal(4, pool:call(faults.square, 2))
      pool:close()
      assert.same({ child, "exited", 7 }, { wait.wait(child) })
    end))

    it("makes no thread, and handles and blocks no signal", task(function()
      local there = signals()
      local pool = new_pool()
      pool:call(faults.square, 2)
      assert.same(there, signals())
      faults.crash_of(pool:submit(os.exit, 1))
      pool:close()
      assert.same(there, signals())
    end))

    it("passes no descriptor on to programs", function()
      assert.equal("checked\n", faults.output_of(prelude .. [[
        local function passed_on()
          os.execute("ls /proc/self/fd >" .. path)
          return faults.read(path)
        end
        local allowed = {}
        for fd in passed_on():gmatch "%d+" do
          allowed[fd] = true
        end
        local function check(who, list)
          for fd in list:gmatch "%d+" do
            assert(allowed[fd], who .. " passes on " .. fd)
          end
        end
        local first = opero.Pool { backend = backend, max_workers = 1 }
        local second = opero.Pool { backend = backend, max_workers = 1 }
        for _ = 1, 2 do
          check("a worker of the first", first:call(passed_on))
          check("a worker of the second", second:call(passed_on))
          check("the parent", passed_on())
        end
        first:close()
        second:close()
        print "checked"
      ]], { backend, faults.file() }))
    end)
  end)
end
