-- The manual says what is true: its examples run and print what they say, its links lead somewhere,
-- its tables agree with the code.
--
-- Each block that is marked as Lua runs as a program of its own, example.lua. What follows `-->` in
-- it, from top to bottom, is what it prints, line by line; `...` stands for anything. A block
-- without any `-->` only has to end well.

local cache = require "opero.cache"
local chaos = require "opero.chaos"
local circuit_breaker = require "opero.circuit_breaker"
local concurrency = require "opero.concurrency"
local errors = require "opero.errors"
local events = require "opero.events"
local hedge = require "opero.hedge"
local opero = require "opero"
local pool = require "opero.pool"
local rate_limit = require "opero.rate_limit"
local retry = require "opero.retry"
local retry_budget = require "opero.retry_budget"
local timeout = require "opero.timeout"
local stdlib = require "posix.stdlib"

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

local function list(command)
  local pipe <close> = assert(io.popen(command))
  local names = {}
  for name in pipe:lines() do
    names[#names + 1] = name
  end
  return names
end

local pages = list "LC_ALL=C ls README.md CONTRIBUTING.md docs/*.md 2>/dev/null"
local texts = {}
for _, page in ipairs(pages) do
  texts[page] = read(page)
end

-- Calls visit(line, number, language) for each line; language is that of the block it stands in,
-- "" in one that has none, nil outside.
local function each_line(text, visit)
  local number, language = 0, nil
  for line in text:gmatch("([^\n]*)\n") do
    number = number + 1
    local fence = line:match("^%s*```(.*)$")
    if not fence then
      visit(line, number, language)
    elseif language then
      language = nil
    else
      language = fence
    end
  end
  return language
end

-- The blocks of a page that are in a language: { line, source }.
local function blocks_of(page, wanted)
  local blocks, current = {}, nil
  each_line(texts[page], function(line, number, language)
    if language ~= wanted then
      current = nil
      return
    elseif not current then
      current = { line = number, lines = {} }
      blocks[#blocks + 1] = current
    end
    current.lines[#current.lines + 1] = line
  end)
  for _, block in ipairs(blocks) do
    block.source = table.concat(block.lines, "\n") .. "\n"
  end
  return blocks
end

local function expected_output(source)
  local lines = {}
  for line in source:gmatch("%-%-> ?([^\n]*)") do
    lines[#lines + 1] = line
  end
  return lines
end

local function as_pattern(line)
  return "^" .. line:gsub("%p", "%%%0"):gsub("%%%.%%%.%%%.", ".*") .. "$"
end

-- Whether the output is what the lines say.
local function is_as_expected(output, lines)
  local i = 0
  for line in output:gmatch("([^\n]*)\n") do
    i = i + 1
    if not lines[i] or not line:find(as_pattern(lines[i])) then
      return false
    end
  end
  return i == #lines
end

describe("the examples of", function()
  local folder

  setup(function()
    folder = assert(stdlib.mkdtemp("/tmp/opero-docs-XXXXXX"))
  end)

  teardown(function()
    os.execute("rm -rf " .. folder)
  end)

  local function run(source)
    local file <close> = assert(io.open(folder .. "/example.lua", "wb"))
    file:write(source)
    file:close()
    local pipe = assert(io.popen("cd " .. folder .. " && exec lua5.4 example.lua 2>&1"))
    local output = pipe:read("a")
    -- What the library says of workers that crash and such, as in some examples, is for stderr.
    output = output:gsub("[^\n]- WARNING  opero: [^\n]*\n", "")
    return output, (pipe:close() == true)
  end

  for _, page in ipairs(pages) do
    for _, block in ipairs(blocks_of(page, "lua")) do
      it(("%s, line %d"):format(page, block.line), function()
        local output, ok = run(block.source)
        assert.is_true(ok, output)
        local lines = expected_output(block.source)
        if #lines > 0 and not is_as_expected(output, lines) then
          assert.equal(table.concat(lines, "\n") .. "\n", output)
          error("unexpected output: " .. output)
        end
      end)
    end
  end

  it("the manual are told from prose", function()
    local count = 0
    for _, page in ipairs(pages) do
      count = count + #blocks_of(page, "lua")
    end
    assert.is_true(count > 30)
    assert.is_true(is_as_expected("a 1\nb\n", { "a ...", "b" }))
    assert.is_false(is_as_expected("a 1\nb\n", { "a ..." }))
    assert.is_false(is_as_expected("a\n", { "a", "b" }))
  end)
end)

-- #once: the library is the same thing in every build.
describe("the C program of the manual #once", function()
  it("compiles and runs", function()
    local build = assert(package.searchpath("opero.core", package.cpath)):match("^(.*)/lua/opero/")
    local blocks = blocks_of("docs/embedding.md", "c")
    assert.equal(1, #blocks)
    local folder = assert(stdlib.mkdtemp("/tmp/opero-docs-XXXXXX"))
    local source <close> = assert(io.open(folder .. "/host.c", "wb"))
    source:write(blocks[1].source)
    source:close()
    -- The command that made the build knows where the headers are; warnings are errors. A sanitizer
    -- that is preloaded for the specs would look for the compiler's own leaks.
    local pipe = assert(io.popen(("{ unset LD_PRELOAD; %s -Werror %s/host.c %s/libopero.a "
      .. "$(pkg-config --libs lua5.4 || echo -llua5.4) -lm -o %s/host && %s/host; } 2>&1")
      :format(read(build .. "/flags"):gsub("\n", ""), folder, build, folder, folder)))
    local output = pipe:read("a")
    assert.is_true(pipe:close(), output)
    os.execute("rm -rf " .. folder)
    assert.equal("task\t1\ntask\t2\ntask\t3\n", output)
  end)
end)

describe("the pages", function()
  -- The name by which a heading is linked to.
  local function anchor_of(heading)
    return (heading:lower():gsub("[^%w%s_-]", ""):gsub("%s", "-"))
  end

  local anchors = {}
  for page, text in pairs(texts) do
    anchors[page] = {}
    each_line(text, function(line, _, language)
      local heading = not language and line:match("^#+ (.*)")
      if heading then
        anchors[page][anchor_of(heading)] = true
      end
    end)
  end

  -- The path of a link in a page, from the top of the checkout.
  local function resolve(page, path)
    if path == "" then
      return page
    end
    local full = (page:match("^(.*/)") or "") .. path
    return (full:gsub("[^/]+/%.%./", ""))
  end

  for _, page in ipairs(pages) do
    it(page .. " has links that lead somewhere", function()
      each_line(texts[page], function(line, number, language)
        for target in (language and "" or line):gmatch("%]%(([^)]*)%)") do
          local path, anchor = target:match("^([^#]*)#?(.*)$")
          if not path:find("^https?:") then
            local where = ("%s:%d: %s"):format(page, number, target)
            path = resolve(page, path)
            local file = io.open(path)
            assert.is_truthy(file, where)
            file:close()
            if anchor ~= "" and anchors[path] then
              assert.is_true(anchors[path][anchor], where)
            end
          end
        end
      end)
    end)

    it(page .. " keeps its lines short and closes its blocks", function()
      local open = each_line(texts[page], function(line, number)
        if not line:find("^|") then -- a row of a table cannot be broken
          assert.is_true(utf8.len(line) <= 100, ("%s:%d"):format(page, number))
        end
        assert.is_nil(line:find("%s$"), ("%s:%d ends in a blank"):format(page, number))
      end)
      assert.is_nil(open)
      assert.equal("\n", texts[page]:sub(-1))
    end)
  end

  it("name all that opero offers", function()
    local all = ""
    for _, page in ipairs(pages) do
      all = all .. texts[page]
    end
    for name in pairs(opero) do
      local pattern = name:find("^_") and name or "opero%." .. name .. "%f[^%w_]"
      assert.is_truthy(all:find(pattern), name .. " is not in the manual")
    end
  end)

  it("name every method", function()
    local objects = {
      { "semaphore", opero.semaphore(1) }, { "channel", opero.channel() },
      { "event", opero.event() }, { "orch", opero.Orchestrator() },
      { "chain", opero.FallbackChain(print) }, { "f", opero.orchestrate()(print) },
    }
    opero.run(function()
      objects[#objects + 1] = { "task", opero.current() }
      opero.scope(function(scope)
        objects[#objects + 1] = { "scope", scope }
      end)
    end)
    objects[#objects + 1] = { "pool", opero.Pool() }
    for name, object in pairs {
      log = opero.get_logger(), breaker = opero.CircuitBreaker(),
      bulkhead = opero.Bulkhead { limit = 1 },
      limiter = opero.RateLimiter { rate = 1 }, budget = opero.RetryBudget(),
      pipeline = opero.pipeline {},
    } do
      objects[#objects + 1] = { name, object }
    end
    local all = texts["docs/running.md"] .. texts["docs/orchestrating.md"] .. texts["docs/pool.md"]
      .. texts["docs/logging.md"] .. texts["docs/policies.md"] .. texts["docs/events.md"]
    for _, object in ipairs(objects) do
      local methods = debug.getmetatable(object[2]).__index
      for name in pairs(methods) do
        if name:find "^_" then
          goto continue -- of its own
        end
        local call = ("%s:%s("):format(object[1], name)
        assert.is_truthy(all:find(call, 1, true), call .. " is not in the manual")
        ::continue::
      end
    end
  end)
end)

-- The rows of the table under a heading: lists of cells.
local function rows_under(page, heading)
  local rows, here = {}, false
  each_line(texts[page], function(line, _, language)
    local title = not language and line:match("^#+ (.*)")
    if title then
      here = title == heading
    elseif here and line:find("^|") then
      local cells = {}
      for cell in line:gmatch("|%s*([^|]-)%s*%f[|]") do
        cells[#cells + 1] = cell
      end
      rows[#rows + 1] = cells
    end
  end)
  table.remove(rows, 2) -- the line below the heads
  table.remove(rows, 1)
  assert(#rows > 0, page .. " has no table under " .. heading)
  return rows
end

describe("the tables of options", function()
  -- Where the default is none that could be written down the page has to say it in words.
  local in_words = {
    retry_on = "all but cancellation and `CircuitOpenError`",
    failure_on = "all but cancellation",
    failures = "5, unless there is a rate",
    window = "the last 100 calls",
    min_calls = "10, or fewer in a smaller window",
    delay = "`{ percentile = 0.95 }`",
    error = "an OperoError",
    result = "nil",
    seed = "those of the runtime",
  }

  for heading, place in pairs {
    ["RetryConfig"] = { "orchestrating", retry.options },
    ["RateLimitConfig"] = { "orchestrating", rate_limit.options },
    ["ConcurrencyConfig"] = { "orchestrating", concurrency.options },
    ["TimeoutConfig"] = { "policies", timeout.options },
    ["CircuitBreakerConfig"] = { "policies", circuit_breaker.options },
    ["HedgeConfig"] = { "policies", hedge.options },
    ["CacheConfig"] = { "policies", cache.options },
    ["RetryBudget"] = { "policies", retry_budget.options },
    ["Chaos"] = { "policies", chaos.options },
  } do
    local page, options = ("docs/%s.md"):format(place[1]), place[2]
    it("agree with " .. heading, function()
      local documented = {}
      for _, row in ipairs(rows_under(page, heading)) do
        local name = row[1]:match("^`([%w_]+)`$")
        if not name then
          break -- another table
        end
        local field = assert(options.fields[name], "no such option: " .. row[1])
        documented[name] = true
        local default = (heading ~= "RetryBudget" or nil) and in_words[name]
          or heading == "CacheConfig" and name == "key"
          and "the arguments, which have to be scalars"
          or field.required and "required"
          or ("`%s`"):format(type(field.default) == "string" and '"' .. field.default .. '"'
            or tostring(field.default))
        assert.equal(default, row[3], name)
        local bound = field.max and field.max < 1000
          and ("from %s to %s"):format(field.min, field.max)
          or field.min and ">= " .. field.min or field.above and "> " .. field.above
        assert.is_truthy(not bound or row[2]:find(bound, 1, true), name .. ": " .. row[2])
        for _, value in ipairs(field.values or {}) do
          assert.is_truthy(row[2]:find(('`"%s"`'):format(value), 1, true), value)
        end
      end
      for name in pairs(options.fields) do
        assert.is_true(documented[name], name)
      end
    end)
  end
end)

describe("the table of the options of pools", function()
  it("has them all, and no other, and what they take", function()
    local documented = {}
    for _, row in ipairs(rows_under("docs/pool.md", "Options")) do
      local name = row[1]:match("^`([%w_]+)`$")
      local field = assert(pool.options.fields[name], "no such option: " .. row[1])
      documented[name] = true
      if field.default ~= nil then
        local default = type(field.default) == "string" and '"%s"' or "%s"
        assert.equal("`" .. default:format(field.default) .. "`", row[3], name)
      end
      local bound = field.max and ("from %s to %s"):format(field.min, field.max)
        or field.min and ">= " .. field.min or field.above and "> " .. field.above
      assert.is_truthy(not bound or row[2]:find(bound, 1, true), name .. ": " .. row[2])
      for _, value in ipairs(field.values or {}) do
        assert.is_truthy(row[2]:find(('`"%s"`'):format(value), 1, true), value)
      end
    end
    for name in pairs(pool.options.fields) do
      assert.is_true(documented[name], name)
    end
  end)
end)

describe("the table of events", function()
  it("has them all, and no other", function()
    local documented = {}
    for _, row in ipairs(rows_under("docs/events.md", "The events")) do
      local name = row[1]:match("^`([%w_]+)`$")
      assert.is_table(events.kinds[name], row[1])
      assert.equal(events.kinds[name].level, row[2])
      documented[name] = true
    end
    for name in pairs(events.kinds) do
      assert.is_true(documented[name], name)
    end
  end)
end)

describe("the table of error classes", function()
  it("has them all, and no other", function()
    local documented = {}
    for _, row in ipairs(rows_under("docs/errors.md", "The classes")) do
      local name = row[1]:match("^`([%w_]+)`$")
      assert.is_true(errors.is_class(errors[name]), row[1])
      documented[name] = true
    end
    for name, class in pairs(errors) do
      assert.is_true(documented[name] or not errors.is_class(class), name)
    end
  end)
end)

describe("the house", function()
  local function stems_of(cell)
    return cell:gmatch("`([%w_.]+)`")
  end

  it("is built bottom up: no C file includes what stands above it", function()
    local level = {}
    for i, row in ipairs(rows_under("docs/layout.md", "The C files")) do
      for stem in stems_of(row[1]) do
        level[stem:gsub("%.h$", "")] = i
      end
    end
    local pure = level.reactor
    for _, path in ipairs(list "ls csrc/*.[ch]") do
      local name = path:match("([^/]+)%.[ch]$")
      local mine = assert(level[name], path .. " is not in the table of docs/layout.md")
      for included in read(path):gmatch('#include "([%w_]+)%.h"') do
        local theirs = assert(level[included], included)
        assert.is_true(theirs <= mine, ("%s includes %s.h"):format(path, included))
      end
      if mine <= pure then
        assert.is_nil(read(path):find("#include <l%w+%.h>"), path .. " knows Lua")
      end
    end
  end)

  it("has policies that do not know each other", function()
    local may_know = {
      backoff = true, check = true, core = true, errors = true, matcher = true, outcome = true,
      events = true, retry_budget = true, adaptive = true,
    }
    local policies = 0
    for _, row in ipairs(rows_under("docs/layout.md", "The Lua files")) do
      for name in stems_of(row[1]) do
        local text = read("lua/opero/" .. name)
        if row[2]:find("^a policy") then
          policies = policies + 1
          for required in text:gmatch('require "opero%.([%w_]+)"') do
            assert.is_true(may_know[required], ("%s requires %s"):format(name, required))
          end
        end
      end
    end
    assert.equal(9, policies)
  end)

  it("has a table of all its Lua files", function()
    local documented = {}
    for _, row in ipairs(rows_under("docs/layout.md", "The Lua files")) do
      for name in stems_of(row[1]) do
        documented[name] = true
      end
    end
    for _, path in ipairs(list "ls lua/opero/*.lua") do
      assert.is_true(documented[path:match("[^/]+$")],
        path .. " is not in the table of docs/layout.md")
    end
  end)
end)
