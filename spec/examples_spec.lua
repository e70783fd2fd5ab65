-- The examples, run on a small folder made here: as programs, and their parts from inside.

local dirent = require "posix.dirent"
local opero = require "opero"
local stat = require "posix.sys.stat"
local stdlib = require "posix.stdlib"
local unistd = require "posix.unistd"

local FILES = 12
-- Faults cost little time then.
local HASTE = " --timeout=0.05 --wait-max=0.02 --rate=2000"

local function write_file(path, text)
  local file <close> = assert(io.open(path, "wb"))
  file:write(text)
end

---@return string # content that is of every kind of byte and of no pattern that a mix-up would keep
local function content(seed, length)
  local bytes = {}
  for i = 1, length do
    bytes[i] = string.char((i * i + seed * i + seed) % 256)
  end
  return table.concat(bytes)
end

---Makes a folder of FILES files, some in a folder of their own, one empty, one large.
local function make_folder()
  local root = assert(stdlib.mkdtemp("/tmp/opero-examples-XXXXXX"))
  stat.mkdir(root .. "/in ner", 493)
  for i = 1, FILES do
    local name = (i % 3 == 0 and "in ner/" or "") .. ("file %02d%%.h"):format(i)
    write_file(root .. "/" .. name, content(i, i == 2 and 0 or i == 3 and 300000 or 100 * i))
  end
  return root
end

local function remove(root)
  os.execute(("rm -rf '%s'"):format(root))
end

---Runs the program with its output in a pipe. exec: what is measured is Lua, not the shell.
---@param words string for the shell
---@return integer status, string output
local function mirror(words)
  local pipe = assert(io.popen("exec lua5.4 examples/mirror.lua " .. words .. " 2>&1"))
  local output = pipe:read("a")
  local _, _, status = pipe:close()
  return status, output
end

---@return integer
local function open_descriptors()
  collectgarbage()
  collectgarbage()
  return #dirent.dir("/proc/self/fd")
end

describe("the mirror example", function()
  local root

  setup(function()
    root = make_folder()
  end)

  teardown(function()
    remove(root)
  end)

  it("gets every file, whatever fails", function()
    for seed = 1, 3 do
      local status, output = mirror(("%s --seed=%d"):format(root, seed) .. HASTE)
      assert.are.equal(0, status, output)
      assert.matches("\nattempts   %d+, of them %d+ retries, %d+ fallbacks to the mirror\n", output)
      assert.matches("\nfaults     busy %d+, cut %d+, refuse %d+, stall %d+\n", output)
      assert.matches("\npolicies   %d+ attempts timed out, %d+ waited for the rate, ", output)
      assert.matches("\nlatency    p50 [^,]+, p90 [^,]+, p99 [^,]+, max [^,\n]+\n", output)
      assert.matches("\ntime       %d+%.%d%d s\n$", output)
      assert.matches(("\nfiles      %d of %d, "):format(FILES, FILES), output)
    end
  end)

  it("needs no more than one attempt a file when nothing fails", function()
    local status, output = mirror(root .. " --faults=0 --timeout=60 --rate=1000")
    assert.are.equal(0, status, output)
    assert.matches(("attempts   %d, of them 0 retries, 0 fallbacks"):format(FILES), output)
    assert.matches("faults     busy 0, cut 0, refuse 0, stall 0", output)
  end)

  it("gets all from the mirror when the first server never answers well", function()
    local status, output = mirror(root .. " --faults=1" .. HASTE)
    assert.are.equal(0, status, output)
    local attempts, fallbacks =
      output:match("attempts   (%d+), of them %d+ retries, (%d+) fallbacks")
    assert.equal(FILES, tonumber(fallbacks))
    assert.is_true(tonumber(attempts) < 4 * FILES, "the breaker has spared the server nothing")
    assert.matches("breakers opened [1-9]", output)
  end)

  it("writes nothing but lines of text into a pipe", function()
    local _, output = mirror(root .. HASTE)
    assert.is_nil(output:match("[^\n\32-\126]"))
  end)

  it("picks as many files as it is told to", function()
    local status, output = mirror(root .. " --files=5" .. HASTE)
    assert.are.equal(0, status, output)
    assert.matches("\nfiles      5 of 5, ", output)
  end)

  describe("fails", function()
    local served

    before_each(function()
      served = make_folder()
    end)

    after_each(function()
      remove(served)
    end)

    it("when a file is missing", function()
      os.remove(served .. "/file 04%.h")
      local status, output = mirror(("%s --serve=%s"):format(root, served) .. HASTE)
      assert.are.equal(1, status, output)
      assert.matches("FAILED file 04%.h: ", output, 1, true)
      assert.matches("404", output, 1, true)
      assert.matches("INCOMPLETE 1 of 12 files are missing or wrong\n", output, 1, true)
    end)

    it("when a body is not the file, be it by a single byte", function()
      local path = served .. "/file 07%.h"
      write_file(path, content(7, 699) .. "x")
      local status, output = mirror(("%s --serve=%s"):format(root, served) .. HASTE)
      assert.are.equal(1, status, output)
      assert.matches("FAILED file 07%.h: ", output, 1, true)
      assert.matches("is not the file on disk", output, 1, true)
      assert.matches("INCOMPLETE 1 of 12 files are missing or wrong\n", output, 1, true)
    end)
  end)

  it("refuses words it does not know, and says why", function()
    local empty = assert(stdlib.mkdtemp("/tmp/opero-examples-XXXXXX"))
    local refused = {
      ["/no/such/folder"] = "FOLDER: there is no folder '/no/such/folder'",
      ["--serve=/no/such/folder"] = "--serve: there is no folder '/no/such/folder'",
      ["/ /usr"] = "one folder, not two: '/' and '/usr'",
      ["--speed=9"] = "there is no option '--speed=9'",
      ["-v"] = "there is no option '-v'",
      ["--seed"] = "--seed needs a value: --seed=...",
      ["--seed=1.5"] = "--seed takes an integer of at least 0, not '1.5'",
      ["--files=0"] = "--files takes an integer of at least 1, not '0'",
      ["--files=many"] = "--files takes an integer of at least 1, not 'many'",
      ["--faults=2"] = "--faults takes a number from 0 to 1, not '2'",
      ["--rate=0"] = "--rate takes a number of at least 0.001, not '0'",
      ["--concurrency="] = "--concurrency takes an integer of at least 1, not ''",
      [empty] = ("no file in '%s' can be read"):format(empty),
    }
    for words, why in pairs(refused) do
      local status, output = mirror(words)
      assert.are.equal(2, status, words)
      assert.are.equal("mirror: " .. why .. " (see --help)\n", output)
    end
    remove(empty)
  end)

  it("explains itself", function()
    local status, output = mirror("--help")
    assert.are.equal(0, status)
    assert.matches("^usage: lua5%.4 examples/mirror%.lua %[FOLDER%]", output)
  end)
end)

describe("the example's", function()
  local root, path, faults, http_client, http_server, tcp

  setup(function()
    path = package.path
    package.path = "examples/?.lua;" .. path
    faults, http_client = require "faults", require "http_client"
    http_server, tcp = require "http_server", require "tcp"
    root = make_folder()
  end)

  teardown(function()
    package.path = path
    remove(root)
  end)

  ---Sends some bytes to a server and returns all that comes back.
  local function exchange(server, ...)
    local connection <close> = tcp.connect(server.port)
    for _, piece in ipairs { ... } do
      connection:send(piece)
      opero.sleep(0.002)
    end
    local parts = {}
    repeat
      parts[#parts + 1] = connection:receive()
    until parts[#parts] == ""
    return table.concat(parts)
  end

  describe("program, run in this process,", function()
    ---@param on_terminal boolean
    local function run(on_terminal)
      local output, status = {}, nil
      local io_here = setmetatable({
        write = function(...)
          output[#output + 1] = table.concat { ... }
        end,
      }, { __index = io })
      local os_here = setmetatable({
        exit = function(code)
          status = code
        end,
      }, { __index = os })
      local env = setmetatable({ io = io_here, os = os_here }, { __index = _G })
      local isatty, loaded = unistd.isatty, package.loaded.mirror_report
      unistd.isatty = function()
        return on_terminal and 1 or nil
      end
      local report = assert(loadfile("examples/mirror_report.lua", "t", env))
      package.loaded.mirror_report = report()
      local program = assert(loadfile("examples/mirror.lua", "t", env))
      local ok, err = pcall(program, root, "--timeout=0.05", "--wait-max=0.02", "--rate=2000")
      unistd.isatty, package.loaded.mirror_report = isatty, loaded
      assert(ok, err)
      return status, table.concat(output)
    end

    it("leaves no descriptor open and no task behind", function()
      run(false) -- what is kept for good, such as the runtime's own descriptors, is there now
      local before = open_descriptors()
      local status, output = run(false)
      assert.are.equal(0, status, output)
      assert.are.equal(before, open_descriptors())
      assert.are.same({}, opero.tasks())
    end)

    it("shows a line of progress on a terminal and takes it away at the end", function()
      local status, output = run(true)
      assert.are.equal(0, status)
      assert.matches("\r\27[K0 of 12 files, 0.00 MB, 0 retries, 0 fallbacks", output, 1, true)
      assert.matches("\r\27%[Kfolder     .*\nfiles      12 of 12", output)
    end)
  end)

  describe("server", function()
    ---@param test fun(server: Server)
    local function with_server(test, respond)
      opero.run(function()
        local server <close> = http_server.start(root, respond)
        opero.timeout(10, test, server)
      end)
    end

    it("serves files byte for byte, whatever their name and size", function()
      with_server(function(server)
        for i = 1, FILES do
          local name = (i % 3 == 0 and "in ner/" or "") .. ("file %02d%%.h"):format(i)
          local file <close> = assert(io.open(root .. "/" .. name, "rb"))
          assert.are.equal(file:read("a"), http_client.get(server.port, name))
        end
      end)
    end)

    it("understands a request that comes in pieces", function()
      with_server(function(server)
        local answer = exchange(server, "GE", "T /file%2004%25.h HT", "TP/1.1\r", "\n\r", "\n")
        assert.matches("^HTTP/1%.1 200 OK\r\n", answer)
        assert.matches("\r\nContent%-Length: 400\r\n", answer)
        assert.matches("\r\n\r\n" .. content(4, 400), answer, 1, true)
      end)
    end)

    it("answers what it does not serve by the right status", function()
      with_server(function(server)
        local statuses = {
          ["GET /nothing HTTP/1.1\r\n\r\n"] = 404,
          ["GET / HTTP/1.1\r\n\r\n"] = 404,
          ["GET /in%20ner HTTP/1.1\r\n\r\n"] = 404,
          ["GET /file%2004%25.h%00 HTTP/1.1\r\n\r\n"] = 404,
          ["POST /file%2004%25.h HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"] = 405,
          ["nonsense\r\n\r\n"] = 400,
          ["GET /a b HTTP/1.1\r\n\r\n"] = 400,
          ["GET /a HTTP/2\r\n\r\n"] = 400,
          ["\0\255\r\n\r\n"] = 400,
          ["GET /" .. ("a"):rep(100000) .. " HTTP/1.1\r\n\r\n"] = 431,
        }
        for request, status in pairs(statuses) do
          local answer = exchange(server, request)
          assert.are.equal("HTTP/1.1 " .. status, answer:sub(1, 12), request:sub(1, 40))
        end
      end)
    end)

    it("serves nothing outside of its folder", function()
      local outside = root .. "-secret"
      write_file(outside, "secret")
      unistd.link(outside, root .. "/link", true)
      with_server(function(server)
        local name = outside:match("[^/]+$")
        for _, target in ipairs {
          "../" .. name,
          "%2e%2e/" .. name,
          "in%20ner/../../" .. name,
          "/" .. outside,
          "link",
        } do
          local answer = exchange(server, "GET /" .. target .. " HTTP/1.1\r\n\r\n")
          assert.are.equal("HTTP/1.1 404", answer:sub(1, 12), target)
        end
      end)
      os.remove(root .. "/link")
      os.remove(outside)
    end)

    it("outlives clients that hang up at any point", function()
      with_server(function(server)
        tcp.connect(server.port):close()
        tcp.connect(server.port):reset()
        for _, how in ipairs { "close", "reset" } do
          local connection <close> = tcp.connect(server.port)
          connection:send("GET /in%20ner/file%2003%25.h HTTP/1.1\r\n\r\n")
          connection:receive()
          connection[how](connection)
        end
        assert.are.equal(content(4, 400), http_client.get(server.port, "file 04%.h"))
      end)
    end)

    it("drops its connections when it is closed", function()
      opero.run(function() end)
      local before = open_descriptors()
      opero.run(function()
        local server = http_server.start(root, function(connection)
          connection:send("HTTP/1.1 200 OK\r\n")
          opero.sleep(3600)
        end)
        local clients = {}
        for i = 1, 5 do
          clients[i] = tcp.connect(server.port)
          clients[i]:send("GET /x HTTP/1.1\r\n\r\n")
          clients[i]:receive()
        end
        -- One more that has been accepted, and one that has said nothing yet.
        clients[6], clients[7] = tcp.connect(server.port), tcp.connect(server.port)
        server:close()
        for i = 1, 7 do
          -- A connection that the server had not accepted yet is reset.
          pcall(function()
            assert.are.equal("", clients[i]:receive())
          end)
          clients[i]:close()
        end
        local ok, err = pcall(tcp.connect, server.port)
        assert.is_false(ok)
        assert.is_true(opero.errors.is(err, tcp.ConnectionError))
      end)
      assert.are.equal(before, open_descriptors())
    end)
  end)

  describe("client", function()
    ---Gets something from a server that sends just these bytes.
    local function get_from(bytes)
      local result
      opero.run(function()
        local server <close> = http_server.start(root, function(connection)
          connection:send(bytes)
        end)
        result = table.pack(opero.timeout(10, pcall, http_client.get, server.port, "x"))
      end)
      return table.unpack(result, 1, result.n)
    end

    it("refuses what is not a whole response", function()
      for bytes, message in pairs {
        ["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"] = "the body ends after 3 of 5 bytes",
        ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc"] = "the body goes on after its 2 bytes",
        ["HTTP/1.1 200 OK\r\n\r\nabc"] = "Content-Length is nil",
        ["HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"] = "Content-Length is -1",
        ["HTTP/1.1 200 OK\r\nContent-Length: 1e30\r\n\r\n"] = "Content-Length is 1e30",
        ["SSH-2.0-OpenSSH\r\n\r\n"] = "not an HTTP response",
        ["HTTP/1.1 200 OK\r\n"] = "the server hung up after 17 bytes of the response's head",
        [""] = "the server hung up after 0 bytes of the response's head",
        [("x"):rep(20000)] = "the response's head is longer than 16384 bytes",
      } do
        local ok, err = get_from(bytes)
        assert.is_false(ok)
        assert.is_true(opero.errors.is(err, http_client.BrokenResponse), tostring(err))
        assert.matches(message, err.message, 1, true)
      end
    end)

    it("tells a busy server from one that has nothing, and reads how long to wait", function()
      local _, err = get_from("HTTP/1.1 503 Busy\r\nretry-AFTER:  7 \r\n\r\n")
      assert.is_true(opero.errors.is(err, http_client.Unavailable))
      assert.are.equal(7, err.retry_after)
      _, err = get_from("HTTP/1.1 503 Busy\r\n\r\n")
      assert.is_true(opero.errors.is(err, http_client.Unavailable))
      assert.is_nil(err.retry_after)
      _, err = get_from("HTTP/1.1 404 Not Found\r\n\r\n")
      assert.is_true(opero.errors.is(err, http_client.StatusError))
      assert.is_false(opero.errors.is(err, http_client.Unavailable))
      assert.are.equal(404, err.status)
    end)

    it("raises the reason when nobody listens", function()
      local listener, port = tcp.listen()
      listener:close()
      local ok, err = pcall(http_client.get, port, "x")
      assert.is_false(ok)
      assert.is_true(opero.errors.is(err, tcp.ConnectionError))
      assert.are.equal(require("posix.errno").ECONNREFUSED, err.code)
    end)
  end)

  describe("faults", function()
    it("are the same for the same seed, path and attempt, else others", function()
      local function plan(seed)
        local kinds, count = {}, 0
        for i = 1, 1000 do
          local kind = faults.plan(seed, 0.4, "file " .. i % 100, i // 100)
          kinds[i] = kind or "none"
          count = count + (kind and 1 or 0)
        end
        return table.concat(kinds, " "), count
      end
      local first, count = plan(1)
      assert.are.equal(first, (plan(1)))
      assert.are_not.equal(first, (plan(2)))
      assert.is_true(count > 350 and count < 450, count)
      for _, kind in ipairs(faults.KINDS) do
        assert.matches(kind, first, 1, true)
      end
      assert.is_nil(faults.plan(1, 0, "x", 1))
      assert.is_string(faults.plan(1, 1, "x", 1))
    end)

    local SEED = 2 -- one by which each kind comes up

    it("come in the order planned, and each looks like what it is", function()
      local expected = {
        busy = http_client.Unavailable,
        cut = http_client.BrokenResponse,
        refuse = tcp.ConnectionError,
        stall = opero.errors.TimeoutError,
      }
      local planned = { busy = 0, cut = 0, refuse = 0, stall = 0 }
      opero.run(function()
        local respond, injected = faults.flaky(SEED, 0.7)
        local server <close> = http_server.start(root, respond)
        for _, name in ipairs { "file 02%.h", "file 04%.h" } do -- the one is empty
          for n = 1, 10 do
            local kind = faults.plan(SEED, 0.7, name, n)
            local patience = kind == "stall" and 0.02 or 10
            local ok, err = pcall(opero.timeout, patience, http_client.get, server.port, name)
            if kind then
              planned[kind] = planned[kind] + 1
              -- The client may have lost its patience before the server got to it.
              while injected[kind] < planned[kind] do
                opero.sleep(0.001)
              end
              assert.is_false(ok)
              assert.is_true(opero.errors.is(err, expected[kind]), tostring(err))
            else
              assert.is_true(ok, tostring(err))
            end
          end
        end
        assert.are.same(planned, injected)
      end)
      for _, kind in ipairs(faults.KINDS) do
        assert.is_true(planned[kind] > 0, kind)
      end
    end)
  end)
end)

describe("duplicates.lua", function()
  local root

  ---@return integer status, string output
  local function duplicates(words)
    local pipe = assert(io.popen("exec lua5.4 examples/duplicates.lua " .. words .. " 2>&1"))
    local output = pipe:read("a")
    local _, _, status = pipe:close()
    return status, output
  end

  setup(function()
    root = make_folder()
    for i = 1, 2 do
      write_file(("%s/twin %d"):format(root, i), content(3, 300000))
    end
    write_file(root .. "/other", content(4, 150000))
  end)

  teardown(function()
    remove(root)
  end)

  for _, backend in ipairs { "fork", "spawn" } do
    it("finds equal files, all digests are right, and no file is lost with a worker: " .. backend,
      function()
        local status, output = duplicates(("'%s' --workers=2 --backend=%s"):format(root, backend))
        assert.equal(0, status, output)
        assert.matches("equal   3 files of 300000 bytes: in ner/file 03%.h", output, 1, true)
        assert.matches(("%d files, "):format(FILES + 3), output, 1, true)
        assert.matches("1 groups of equal files; 0 failed; ", output, 1, true)
        assert.matches("every digest is the one that sha256sum finds", output, 1, true)
      end)
  end

  it("says what is wrong with its arguments", function()
    for words, message in pairs {
      ["--files=0"] = "--files takes an integer of at least 1, not '0'",
      ["--workers=x"] = "--workers takes an integer of at least 1, not 'x'",
      ["--backend=thread"] = "unknown option or value '--backend=thread'",
      ["/no/such/folder"] = "'/no/such/folder' is not a folder that can be read",
      ["/tmp /tmp"] = "one folder, not also '/tmp'",
    } do
      local status, output = duplicates(words)
      assert.equal(2, status)
      assert.equal("duplicates: " .. message .. " (see --help)\n", output)
    end
  end)

  it("tells how it is used", function()
    local status, output = duplicates("--help")
    assert.equal(0, status)
    assert.matches("^usage: ", output)
  end)
end)

describe("sha256.lua", function()
  it("finds the digests of the standard's examples", function()
    local sha256 = require "examples.sha256"
    assert.equal("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", sha256(""))
    assert.equal("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", sha256("abc"))
    assert.equal("248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
      sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"))
  end)
end)
