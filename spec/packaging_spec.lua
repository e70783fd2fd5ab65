-- Opero as somebody gets it: as a rock, by `make install`, and from the checkout by `make env`.

local top = io.popen("pwd"):read("l")

-- What is started here must see a user's surroundings, not those of the run of the tests.
local prelude = "exec 2>&1; unset LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS MAKEFLAGS MFLAGS MAKELEVEL"
  .. " LUA_PATH LUA_CPATH LUA_PATH_5_4 LUA_CPATH_5_4 LUAROCKS_CONFIG LUA_INCDIR; cd '%s'; %s"

--- What a command printed (errors too), and whether it exited with zero.
local function sh(command)
  local pipe = assert(io.popen(prelude:format(top, command)))
  local output = pipe:read("a")
  return output, (pipe:close() == true)
end

local function must(command)
  local output, ok = sh(command)
  assert.is_true(ok, command .. "\n" .. output)
  return output
end

local function write_file(path, text)
  local file <close> = assert(io.open(path, "w"))
  file:write(text)
end

--- A program that runs a little of everything the rock is made of, and says where it came from.
local program = [[
  local opero = require "opero"
  local orchestrator = opero.Orchestrator{ retry_config = { max_attempts = 3, wait_min = 0.001 } }
  local calls = 0
  local result = orchestrator:execute(function(x)
    calls = calls + 1
    opero.sleep(0.001)
    if calls < 3 then return nil, "not yet" end
    return x * 2
  end, 21)
  local pool <close> = opero.Pool{ backend = "spawn", max_workers = 1 }
  print(result, calls, pool:call(math.max, 3, 7))
  print(package.searchpath("opero", package.path))
  print(package.searchpath("opero.core", package.cpath))
]]

-- #once: it makes builds of its own, so one run of it says all.
describe("packaging #once", function()
  local folder

  setup(function()
    folder = must("mktemp -d"):gsub("\n", "")
    write_file(folder .. "/program.lua", program)
  end)

  teardown(function()
    must(("rm -rf '%s'"):format(folder))
  end)

  --- Runs the program on the files below `tree` alone, beside Lua's own.
  local function run_in(tree)
    local files, modules = tree .. "/share/lua/5.4", tree .. "/lib/lua/5.4"
    local output = must(("cd / && LUA_PATH='%s/?.lua;%s/?/init.lua;;' LUA_CPATH='%s/?.so;;' "
      .. "lua5.4 '%s/program.lua'"):format(files, files, modules, folder))
    assert.are.equal(
      ("42\t3\t7\n%s/opero/init.lua\n%s/opero/core.so\n"):format(files, modules), output)
  end

  describe("the rock", function()
    it("lists every file there is, once", function()
      local rockspec = {}
      assert(loadfile(top .. "/rockspec/opero-scm-1.rockspec", "t", rockspec))()
      local listed = {}
      for _, source in pairs(rockspec.build.modules) do
        if type(source) == "string" then
          listed[#listed + 1] = source
        else
          table.move(source.sources, 1, #source.sources, #listed + 1, listed)
        end
      end
      table.sort(listed)
      assert.are.equal(
        must("LC_ALL=C ls csrc/*.c lua/opero/*.lua"), table.concat(listed, "\n") .. "\n")
    end)

    it("installs with `luarocks make` and can be required from its tree", function()
      local posix_version = require("posix").version:match("luaposix ([%d.]+)")
      write_file(folder .. "/luarocks.lua",
        ("rocks_provided = { luaposix = %q }\n"):format(posix_version .. "-1"))
      -- The sources are copied, for LuaRocks leaves its objects beside them.
      must(("mkdir '%s/source' && cp -r csrc lua rockspec README.md LICENSE '%s/source'"):format(
        folder, folder))
      local tree = folder .. "/tree"
      must(("cd '%s/source' && HOME='%s' LUAROCKS_CONFIG='%s/luarocks.lua' "
        .. "luarocks --lua-version 5.4 --tree '%s' make"):format(folder, folder, folder, tree))
      run_in(tree)
    end)
  end)

  describe("make install", function()
    it("gives a tree that works, and make uninstall takes it away again", function()
      local prefix = folder .. "/prefix"
      local options = ("BUILD='%s/build' PREFIX='%s'"):format(folder, prefix)
      must("make -s install " .. options)
      run_in(prefix)
      must(("test -f '%s/include/opero.h' && test -f '%s/lib/libopero.a'"):format(prefix, prefix))
      must("make -s uninstall " .. options)
      assert.are.equal("", must(("find '%s' -name '*opero*' -o -type f"):format(prefix)))
    end)

    it("puts DESTDIR before the prefix", function()
      must(("make -s install BUILD='%s/build' PREFIX=/usr DESTDIR='%s/stage'"):format(
        folder, folder))
      run_in(folder .. "/stage/usr")
    end)
  end)

  describe("make env", function()
    it("prints lines that make the checkout usable from anywhere, paths set or not", function()
      local output = must(("cd / && LUA_PATH_5_4='/elsewhere/?.lua' sh -c '"
        .. 'eval "$(make -C "%s" -s env BUILD=build/env)" && '
        .. 'lua5.4 "%s/program.lua" && echo "$LUA_PATH"'
        .. "'"):format(top, folder))
      local expected = "42\t3\t7\nTOP/lua/opero/init.lua\nTOP/build/env/lua/opero/core.so\n"
        .. "TOP/lua/?.lua;TOP/lua/?/init.lua;/elsewhere/?.lua\n"
      assert.are.equal((expected:gsub("TOP", function() return top end)), output)
    end)
  end)

  describe("the set-up", function()
    --- A path with nothing in it but what the script itself is written with, and the given stubs.
    local function bare_path(name, stubs)
      local bin = ("%s/%s"):format(folder, name)
      must(("mkdir '%s' && for tool in sh awk cat dirname env grep sed; do "
        .. "ln -s \"$(command -v $tool)\" '%s'; done"):format(bin, bin))
      for tool, script in pairs(stubs) do
        write_file(bin .. "/" .. tool, "#!/bin/sh\n" .. script .. "\n")
        must(("chmod +x '%s/%s'"):format(bin, tool))
      end
      return ("PATH='%s' "):format(bin)
    end

    it("finds everything on a machine that has run it, and says nothing", function()
      for _, purpose in ipairs{ "build", "demo", "test" } do
        assert.are.equal("", must("tools/setup.sh " .. purpose))
      end
    end)

    it("stops without root and sudo, with the list of what to install", function()
      local path = bare_path("bare", { id = "echo 1000" })
      local output, ok = sh(path .. "tools/setup.sh test </dev/null")
      assert.is_false(ok)
      assert.matches("neither root nor sudo", output, 1, true)
      for _, package in ipairs{ "lua5.4", "lua-busted", "lua-check", "luarocks", "lua-posix" } do
        assert.matches("%s" .. package:gsub("%p", "%%%0") .. "[%s,]", output)
      end
    end)

    it("asks apt-get for what is missing and nothing else", function()
      local path = bare_path("stubbed", {
        id = "echo 0",
        ["lua5.4"] = "case $2 in *busted*) exit 1;; esac",
        make = "", cc = "", luacheck = "", luarocks = "", ["pkg-config"] = "", ["c++"] = "",
        ["clang-format"] = "",
        ["apt-get"] = ("echo \"$@\" >>'%s/asked'"):format(folder),
      })
      must(path .. "tools/setup.sh test")
      local asked = must(("cat '%s/asked'"):format(folder))
      assert.matches("install %-y %-%-no%-install%-recommends lua%-busted\n$", asked)
    end)

    it("refuses a purpose it does not know", function()
      local output, ok = sh("tools/setup.sh dinner")
      assert.is_false(ok)
      assert.matches("unknown purpose 'dinner'", output, 1, true)
    end)
  end)
end)
