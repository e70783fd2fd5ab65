-- Opero's side of the measurements of pools; peers/pool_peer.py does the same in Python. Pools have
-- two workers, which have started before the clock does, except where starting is measured.
local measure = require "measure"
local opero = require "opero"

local now = opero.now
local WORKERS = 2

-- What the workers are asked to do --------------------------------------------------------------

local function work(x)
  return x + 1
end

local function size_of(block)
  return #block
end

-- By the page: string.rep of one byte would copy byte by byte.
local function block_of(size)
  return (("x"):rep(4096):rep(size // 4096))
end

local function burn(steps)
  local x = 1
  for _ = 1, steps do
    x = (x * 1103515245 + 12345) % 2147483648
  end
  return x
end

-- Pools -----------------------------------------------------------------------------------------

---@param backend? "fork"|"spawn"
---@return table pool whose workers have started and run one task each
local function ready(backend)
  local pool = opero.Pool { max_workers = WORKERS, backend = backend }
  local tasks = {}
  for i = 1, WORKERS do
    tasks[i] = pool:submit(work, i)
  end
  for i = 1, WORKERS do
    tasks[i]:await()
  end
  local workers = pool:stats().workers
  assert(workers == WORKERS, workers .. " workers started")
  return pool
end

---Runs fn in a task with a pool, and prints what it returns when the pool has closed well.
---@param fn fun(pool: table): table<string, number>
---@param backend? "fork"|"spawn"
local function with_pool(fn, backend)
  measure.report(opero.run(function()
    local pool <close> = ready(backend)
    return fn(pool)
  end))
end

---@param n integer
---@param item fun(i: integer): any
---@return fun(): any # an iterator of item(1) ... item(n)
local function each(n, item)
  local i = 0
  return function()
    i = i + 1
    if i <= n then
      return item(i)
    end
  end
end

local rows = {}

-- Small tasks -----------------------------------------------------------------------------------

---@param n integer
---@param backend "fork"|"spawn"
function rows.submit(n, backend)
  with_pool(function(pool)
    local tasks, total = {}, 0
    local start = now()
    for i = 1, n do
      tasks[i] = pool:submit(work, i)
    end
    for i = 1, n do
      total = total + tasks[i]:await()
    end
    local seconds = now() - start
    assert(total == n * (n + 3) // 2, "results are wrong")
    return { rate = n / seconds }
  end, backend)
end

---@param n integer
---@param where "main"|"task"
function rows.call(n, where)
  local function loop()
    local pool <close> = ready()
    local times = {}
    for i = 1, n do
      local start = now()
      local result = pool:call(work, i)
      times[i] = now() - start
      assert(result == i + 1, "a result is wrong")
    end
    return { us = measure.mean(times) * 1e6, p99 = measure.percentile(times, 99) * 1e6 }
  end
  if where == "task" then
    measure.report(opero.run(loop))
  else
    measure.report(loop())
  end
end

---@param n integer
---@param chunk_size? integer
function rows.map(n, chunk_size)
  with_pool(function(pool)
    local items = {}
    for i = 1, n do
      items[i] = i
    end
    local start = now()
    local results = pool:map(work, items, { chunk_size = chunk_size })
    local seconds = now() - start
    assert(results.n == n and results[n] == n + 1, "results are wrong")
    return { rate = n / seconds }
  end)
end

-- The growth is that of this process since before there was a pool, and of its workers since they
-- have worked a little: what they inherited counts as theirs only once they have touched it.
function rows.imap(n)
  local function run(pool, total, on_result)
    local count = 0
    local items = each(total, function(i)
      return i
    end)
    for result in pool:imap(work, items) do
      count = count + 1
      assert(result == count + 1, "imap lost or swapped items")
      on_result(count)
    end
    assert(count == total, "imap lost items")
  end
  measure.report(opero.run(function()
    local before = measure.rss()
    local pool <close> = ready()
    local function of_workers()
      local sum, pids = 0, pool:stats().pids
      for _, pid in ipairs(pids) do
        sum = sum + measure.rss(true, pid)
      end
      assert(#pids == WORKERS, "a worker was replaced")
      return sum
    end
    run(pool, n // 100, function() end)
    before = before + of_workers()
    local peak = before
    local start = now()
    run(pool, n, function(count)
      if count % 500000 == 0 then
        peak = math.max(peak, measure.rss(true) + of_workers())
      end
    end)
    local seconds = now() - start
    return {
      rate = n / seconds,
      seconds = seconds,
      before = before,
      after = measure.rss() + of_workers(),
      peak = peak,
    }
  end))
end

-- Large ones ------------------------------------------------------------------------------------

-- Chunks of one, and not the same string again and again: nothing can be sent but once.
function rows.bytes(n, size)
  with_pool(function(pool)
    local blocks, total = {}, 0
    for i = 0, 15 do
      blocks[i] = string.char(65 + i):rep(4096):rep(size // 4096)
    end
    local items = each(n, function(i)
      return blocks[i % 16]
    end)
    local start = now()
    for length in pool:imap(size_of, items, { chunk_size = 1 }) do
      total = total + length
    end
    local seconds = now() - start
    assert(total == n * size, "results are wrong")
    return { throughput = total / seconds }
  end)
end

function rows.back(n, size)
  with_pool(function(pool)
    local total = 0
    local items = each(n, function()
      return size
    end)
    local start = now()
    for block in pool:imap(block_of, items, { chunk_size = 1 }) do
      total = total + #block
    end
    local seconds = now() - start
    assert(total == n * size, "results are wrong")
    return { throughput = total / seconds }
  end)
end

-- Work that takes the processor -----------------------------------------------------------------

---Serial and parallel by turns; the speed-up is the median of the turns'.
---@param tasks integer
---@param steps integer of each task
---@param turns integer
function rows.cpu(tasks, steps, turns)
  with_pool(function(pool)
    local items, ratios = {}, {}
    for i = 1, tasks do
      items[i] = steps
    end
    for turn = 1, turns do
      local alone = {}
      local start = now()
      for i = 1, tasks do
        alone[i] = burn(items[i])
      end
      local middle = now()
      local together = pool:map(burn, items)
      ratios[turn] = (middle - start) / (now() - middle)
      for i = 1, tasks do
        assert(together[i] == alone[i], "results are wrong")
      end
    end
    return { speedup = measure.percentile(ratios, 50) }
  end)
end

-- Starting and stopping -------------------------------------------------------------------------

---@param n integer
---@param backend "fork"|"spawn"
function rows.start(n, backend)
  measure.report(opero.run(function()
    local function cycle()
      local start = now()
      ready(backend):close()
      return now() - start
    end
    cycle() -- what is loaded on first use has been
    local times = {}
    for i = 1, n do
      times[i] = cycle()
    end
    return { ms = measure.percentile(times, 50) * 1e3 }
  end))
end

measure.main(rows)
