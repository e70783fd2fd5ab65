-- Opero inside of C programs: compiled here against the library of the build that is tested, with
-- the very command that made it (it knows of sanitizers, of warnings, of where Lua's headers are).

local build = assert(package.searchpath("opero.core", package.cpath)):match("^(.*)/lua/opero/")

--- Runs a command, and returns whether it went well and all it said.
local function run(command)
  local pipe = assert(io.popen("(" .. command .. ") 2>&1"))
  local output = pipe:read("a")
  return pipe:close() == true, output
end

local function read_file(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

---@param source string  in spec/embed
---@param options? string for the linker
---@return string path of the program
local function compile(source, options)
  local program = ("%s/embed/%s"):format(build, source:match("^(%w+)"))
  local compiler = read_file(build .. "/flags"):gsub("\n", "")
  if source:match("%.cpp$") then
    compiler = compiler:gsub("^%S+ %-std=c11 %-D_GNU_SOURCE=", "c++")
  end
  local _, libraries = run("pkg-config --libs lua5.4 || echo -llua5.4")
  -- A sanitizer that is preloaded for the specs would look for the compiler's own leaks.
  local ok, output = run(("mkdir -p %s/embed && unset LD_PRELOAD && %s spec/embed/%s %s/libopero.a"
    .. " %s %s -lm -lpthread -o %s"):format(
    build, compiler, source, build, options or "", libraries:match("%-[^\n]*"), program))
  assert(ok, output)
  return program
end

local function succeeds(command)
  local ok, output = run(command)
  assert(ok, output)
  assert.are.equal("", output)
end

describe("a C program with a loop of its own", function()
  local program

  setup(function()
    program = compile("host.c")
  end)

  for name in read_file("spec/embed/host.c"):gmatch('\n    {"([%w ()]+)", [%w_]+},') do
    it(name, function()
      succeeds(("%s '%s'"):format(program, name))
    end)
  end

  it("has been tested in all it can do", function()
    local _, names = run(program)
    assert.are.equal(select(2, names:gsub("\n", "")),
      select(2, read_file("spec/embed/host.c"):gsub('\n    {"[%w ()]+", [%w_]+},', "")))
  end)
end)

it("a C++ program needs nothing but opero.h", function()
  succeeds(compile("plus.cpp"))
end)

it("short of memory at any point, all ends in an error or a result, and nothing leaks", function()
  local program = compile("memory.c",
    "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free")
  local stride = build:match("sanitize") and 5 or 1 -- there it takes its time
  for _, scenario in ipairs { "scenario", "codec_scenario", "pool_scenario",
    "log_scenario" } do
    local ok, output = run(("%s spec/embed/%s.lua %d"):format(program, scenario, stride))
    assert(ok, output)
    -- what of the log's outputs failed is told on stderr, where no other could take it
    output = output:gsub("[^\n]* ERROR    opero: a log output failed [^\n]*\n", "")
    local runs = output:match("^(%d+) runs, 0 failures\n$")
    assert(tonumber(runs) > 1000 // stride, output)
  end
end)
