-- The pool under load: workers that are killed all the time, thousands of pools, random programs,
-- tasks that print.

local errors = require "opero.errors"
local faults = require "spec.pool.faults"
local opero = require "opero"
local signal = require "posix.signal"
local unistd = require "posix.unistd"

local task = faults.task

-- Under a sanitizer a tenth of it has to do.
local function some(count)
  return faults.is_sanitized and math.max(2, count // 10) or count
end

local prelude <const> = [[
local faults = require "spec.pool.faults"
local opero = require "opero"
opero.configure_logging { levels = { opero = "error" } } -- workers that crash are no news here
local backend, more = ...
]]

-- ---- random programs ------------------------------------------------------------------------

local function fail_badly()
  error("bad luck", 0)
end

-- Whether a task can have ended with this error, whatever it did, because of what was done.
local function is_explained(err, list)
  return list.may_crash and faults.is_crash(err)
    or list.is_closed and errors.is(err, errors.ClosedError)
end

local function check_outcome(entry, list)
  local ok, result = pcall(entry.task.await, entry.task)
  local is_fine
  if ok then
    is_fine = entry.is_right(result)
  else
    is_fine = is_explained(result, list) or entry.error ~= nil and result == entry.error
      or entry.is_cancelled and errors.is(result, errors.CancelledError)
  end
  if not is_fine then
    error(("%s ended with %s"):format(entry.what, tostring(result)), 0)
  end
end

local function is_whole(count, list)
  return function(results)
    local squares, failures = results[1], results[2]
    for i = 1, count do
      if failures[i] == nil and squares[i] ~= i * i
        or failures[i] ~= nil and not is_explained(failures[i], list) then
        return false
      end
    end
    return squares.n == count and failures.n == count
  end
end

-- Each adds what it has submitted to the list.
local actions = {
  function(pool, list)
    local x = math.random(1000)
    list[#list + 1] = { what = "a square", task = pool:submit(faults.square, x),
      is_right = function(result) return result == x * x end }
  end,
  function(pool, list)
    list[#list + 1] = { what = "a failure", task = pool:submit(fail_badly), error = "bad luck",
      is_right = function() return false end }
  end,
  function(pool, list)
    local seconds = math.random() * 0.004
    list[#list + 1] = { what = "a sleeper", task = pool:submit(opero.sleep, seconds),
      is_right = function(result) return result == nil end }
  end,
  function(pool, list)
    local count, chunk_size = math.random(30), math.random(5)
    local options = { on_error = "collect", chunk_size = chunk_size > 1 and chunk_size or nil }
    list[#list + 1] = { what = "a map", is_right = is_whole(count, list),
      task = opero.spawn(function()
        return table.pack(pool:map(faults.square, faults.numbers(count), options))
      end) }
  end,
  function(_, list) -- may well have ended
    local entry = list[math.random(math.max(#list, 1))]
    if entry and entry.what ~= "a map" and entry.task:cancel() then
      entry.is_cancelled = true
    end
  end,
  function(pool, list)
    local pids = pool:stats().pids
    if #pids > 0 then
      list.may_crash = true
      signal.kill(pids[math.random(#pids)], signal.SIGKILL)
    end
  end,
  function()
    opero.sleep(math.random(0, 3) * 0.001)
  end,
}

local function run_random_program(backend)
  local tasks_per_worker = math.random(2) == 1 and 1 or 3
  local pool <close> = opero.Pool { backend = backend, max_workers = math.random(3),
    tasks_per_worker = tasks_per_worker,
    max_tasks_per_worker = math.random(3) == 1 and 5 or nil,
    cancel = math.random(2) == 1 and "wait" or "kill" }
  -- one that is killed with a task that was cancelled takes the others along
  local list = { may_crash = tasks_per_worker > 1 }
  for _ = 1, some(120) do
    actions[math.random(#actions)](pool, list)
  end
  local ending = math.random(3)
  list.is_closed = ending > 1
  if ending == 2 then
    pool:close(math.random(0, 2) * 0.01)
  elseif ending == 3 then
    pool:close()
  end
  for _, entry in ipairs(list) do
    check_outcome(entry, list)
  end
  pool:close()
  local stats = pool:stats()
  assert.same({ 0, 0, 0, {} }, { stats.queued, stats.running, stats.workers, stats.pids })
end

-- Kills a worker, one after the other, as long as fn runs. Returns how often.
local function killing(pool, interval, fn)
  local kills = 0
  local killer = opero.spawn(function()
    while true do
      opero.sleep(interval * faults.slowness)
      local pids = pool:stats().pids
      if #pids > 0 then
        signal.kill(pids[math.random(#pids)], signal.SIGKILL)
        kills = kills + 1
      end
    end
  end)
  local _ <close> = setmetatable({}, { __close = function() killer:cancel() end })
  fn()
  return kills
end

for _, backend in ipairs(faults.backends) do
  describe("pools of backend " .. backend, function()
    local interval = backend == "fork" and 0.02 or 0.2
    local mark

    setup(function()
      faults.warm_up(backend)
    end)

    before_each(function()
      mark = faults.mark()
    end)

    after_each(function()
      faults.clean_up()
      assert.equal("nothing", faults.left_since(mark))
    end)

    -- ---- workers that are killed ------------------------------------------------------------

    -- A pool whose workers note what `faults.noted_work` begins.
    local function noting_pool(log, turns)
      return opero.Pool { backend = backend, max_workers = 4, init = function()
        faults.prepare_work(log, turns)
      end }
    end

    -- Each was begun, and at most as often as it was submitted.
    local function check_runs(log, count, submissions)
      local runs = faults.notes(log)
      for i = 1, count do
        if not runs[i] or runs[i] > submissions[i] then
          error(("%d was submitted %d times and ran %s times"):format(
            i, submissions[i], tostring(runs[i])))
        end
      end
    end

    -- A kill can have hit one task that had begun, and no other.
    local function check_kills(pool, kills, failures)
      assert.is_true(kills > 0 or faults.is_sanitized)
      assert.is_true(failures <= kills, failures .. " failures of " .. kills .. " kills")
      local stats = pool:stats()
      assert.is_true(stats.crashed <= kills)
      assert.same({ 0, 0 }, { stats.queued, stats.running })
    end

    -- Has all numbers up to `count` worked on, those that a crash has hit once more. `work_on`
    -- returns results and errors for a list of numbers.
    local function check_work(count, turns, work_on)
      local log = faults.file()
      local pool <close> = noting_pool(log, turns)
      local results, submissions, failures = {}, {}, 0
      for i = 1, count do
        submissions[i] = 0
      end
      local kills = killing(pool, interval, function()
        local pending = faults.numbers(count)
        while #pending > 0 do
          local again, given, errs = {}, work_on(pool, pending)
          for k, i in ipairs(pending) do
            submissions[i] = submissions[i] + 1
            if errs[k] == nil then
              assert(results[i] == nil and given[k] == faults.worked(i))
              results[i] = given[k]
            else
              assert(faults.is_crash(errs[k]) and errs[k].item == i, errs[k])
              again[#again + 1] = i
            end
          end
          failures, pending = failures + #again, again
        end
      end)
      assert.equal(count, #results)
      check_runs(log, count, submissions)
      check_kills(pool, kills, failures)
    end

    it("map 100,000 items while workers are killed", task(function()
      check_work(some(100000), 10000, function(pool, numbers)
        return pool:map(faults.noted_work, numbers, { on_error = "collect" })
      end)
    end))

    it("run 20,000 submitted tasks while workers are killed", task(function()
      check_work(some(20000), 40000, function(pool, numbers)
        local tasks, given, errs = {}, {}, {}
        for k, i in ipairs(numbers) do
          tasks[k] = pool:submit(faults.noted_work, i)
        end
        for k, submitted in ipairs(tasks) do
          local ok, result = pcall(submitted.await, submitted)
          if ok then
            given[k] = result
          else
            errs[k] = result
          end
        end
        return given, errs
      end)
    end))

    it("run 20,000 tasks of an orchestrator that retries what a killed worker ran", task(function()
      local count, log, submissions, failures = some(20000), faults.file(), {}, 0
      local pool <close> = noting_pool(log, 40000)
      for i = 1, count do
        submissions[i] = 1
      end
      local orch = opero.Orchestrator {
        multiprocess_config = pool,
        concurrency_config = { limit = 100 },
        retry_config = { max_attempts = 20, wait_min = 0, wait_multiplier = 0,
          retry_on = function(err)
            if not faults.is_crash(err) then
              return false
            end
            submissions[err.item] = submissions[err.item] + 1
            failures = failures + 1
            return true
          end },
      }
      local results
      local kills = killing(pool, interval, function()
        results = orch:map(faults.noted_work, faults.numbers(count))
      end)
      assert.equal(count, results.n)
      for i = 1, count do
        assert(results[i] == faults.worked(i))
      end
      check_runs(log, count, submissions)
      check_kills(pool, kills, failures)
    end))

    it("do what random programs want", function()
      for seed = 1, some(backend == "fork" and 30 or 8) do
        math.randomseed(seed)
        local ok, err = pcall(task(function() run_random_program(backend) end))
        if not ok then
          error(("seed %d: %s"):format(seed, tostring(err)), 0)
        end
        assert.equal("seed " .. seed .. ": nothing",
          "seed " .. seed .. ": " .. faults.left_since(mark))
      end
      math.randomseed()
    end)

    -- ---- many pools -------------------------------------------------------------------------

    it("leave nothing, however many there are", function()
      assert.equal("nothing left\n", faults.output_of(prelude .. [[
        local function resident()
          return tonumber(faults.read("/proc/self/status"):match "VmRSS:%s*(%d+) kB")
        end
        local function open_and_close(idle, used)
          for i = 1, idle do
            local pool <close> = opero.Pool { backend = backend, max_workers = 1 + i % 4 }
          end
          for i = 1, used do
            local pool <close> = opero.Pool { backend = backend, max_workers = 1 }
            assert(pool:call(faults.square, i) == i * i)
          end
          collectgarbage()
          collectgarbage()
        end
        local idle, used = tonumber((more:match "%d+")), tonumber((more:match "%d+$"))
        open_and_close(idle // 10, used // 5 + 1)
        local mark, in_lua, in_all = faults.mark(), collectgarbage "count", resident()
        open_and_close(idle, used)
        local left = faults.left_since(mark)
        in_lua, in_all = collectgarbage "count" - in_lua, resident() - in_all
        if not faults.is_sanitized then
          assert(in_lua < 100, in_lua .. " KiB more in Lua")
          assert(in_all < 4096, in_all .. " KiB more in all")
        end
        print(left .. " left")
      ]], { backend, ("%d,%d"):format(some(10000), some(backend == "fork" and 500 or 30)) }))
    end)

    -- ---- standard streams -------------------------------------------------------------------

    it("give tasks an empty stdin, and leave the parent's alone", function()
      assert.equal("first\nnil\t\tnil\nsecond\nthird\tnil\n", faults.output_of(prelude .. [[
        print(io.read()) -- and has the rest in its buffer
        local pool = opero.Pool { backend = backend, max_workers = 1 }
        print(pool:call(function() return io.read(), io.read "a", io.read "n" end))
        print(io.read())
        faults.crash_of(pool:submit(function() io.read() os.exit(0) end))
        print(io.read(), io.read())
        pool:close()
      ]], { backend }, "first\nsecond\nthird\n"))
    end)

    it("keep what each task prints together, and print nothing twice", function()
      local path, lines, expected = faults.file(), {}, { "begin" }
      local out = faults.output_of(prelude .. [[
        local file = assert(io.open(more, "w"))
        file:write "once\n"
        io.write "begin\n"
        local pool = opero.Pool { backend = backend, max_workers = 3 }
        pool:map(function(i)
          for piece = 1, 200 do
            io.write(i, ":", piece, " ")
          end
          io.write "\n"
          return i
        end, faults.numbers(60))
        faults.crash_of(pool:submit(os.exit, 1))
        pool:close()
        io.write "end\n"
        file:close()
      ]], { backend, path })
      for line in out:gmatch("([^\n]*)\n") do
        lines[#lines + 1] = line
      end
      for i = 1, 60 do
        local pieces = {}
        for piece = 1, 200 do
          pieces[piece] = ("%d:%d "):format(i, piece)
        end
        expected[i + 1] = table.concat(pieces)
      end
      expected[62] = "end"
      assert.same({ "begin", "end" }, { lines[1], lines[#lines] })
      table.sort(lines)
      table.sort(expected)
      assert.is_true(table.concat(expected, "\n") == table.concat(lines, "\n"))
      assert.equal("once\n", faults.read(path))
    end)

    it("go on when a task closes the standard streams", task(function()
      local pool <close> = opero.Pool { backend = backend, max_workers = 1 }
      for _ = 1, 2 do
        assert.equal("closed", pool:call(function()
          for fd = 0, 2 do
            unistd.close(fd)
          end
          io.write("into the void")
          io.stderr:write("this too")
          return "closed"
        end))
        faults.queue_behind(pool)()
      end
      assert.equal(0, pool:stats().crashed)
    end))
  end)
end
