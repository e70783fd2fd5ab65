-- A small HTTP/1.1 server for the files of one folder. Each connection is a task, so this code
-- reads as if it had the machine for itself.

local errno = require "posix.errno"
local opero = require "opero"
local stat = require "posix.sys.stat"
local stdlib = require "posix.stdlib"
local tcp = require "tcp"

local http_server = {}

local HEAD_LIMIT = 8 * 1024
local HEAD_SECONDS = 5 -- how long a client may take to say what it wants
local DRAIN_SECONDS = 1

local REASONS = {
  [200] = "OK",
  [400] = "Bad Request",
  [404] = "Not Found",
  [405] = "Method Not Allowed",
  [408] = "Request Timeout",
  [431] = "Request Header Fields Too Large",
  [503] = "Service Unavailable",
}

---@class Response
---@field status integer
---@field headers table<string, string|integer>
---@field body string

---@param status integer
---@param body? string default: the status in words
---@param headers? table<string, string|integer>
---@return Response
function http_server.response(status, body, headers)
  return { status = status, body = body or REASONS[status] .. "\n", headers = headers or {} }
end

---@param response Response
---@return string # the part before the body
function http_server.head(response)
  local lines = { ("HTTP/1.1 %d %s"):format(response.status, REASONS[response.status]) }
  for name, value in pairs(response.headers) do
    lines[#lines + 1] = name .. ": " .. value
  end
  lines[#lines + 1] = "Content-Length: " .. #response.body
  lines[#lines + 1] = "Connection: close\r\n\r\n"
  return table.concat(lines, "\r\n")
end

---The plain way to answer, which a server may be given another in place of.
---@param connection Socket
---@param response Response
function http_server.respond(connection, response)
  connection:send(http_server.head(response))
  connection:send(response.body)
end

---@param connection Socket
---@return string? head nil: the client has hung up, or has not come to its end
---@return integer? status what to answer then
local function receive_head(connection)
  local data = ""
  while not data:find("\r\n\r\n", 1, true) do
    if #data > HEAD_LIMIT then
      return nil, 431
    end
    local more = connection:receive()
    if more == "" then
      return nil
    end
    data = data .. more
  end
  return data
end

---@param folder string absolute, without symbolic links, a slash at its end
---@param path string as it was asked for
---@return Response
local function read_file(folder, path)
  -- What the path really leads to, after "..", "." and links, must lie in the folder.
  local real = not path:find("\0", 1, true) and stdlib.realpath(folder .. path)
  if not real or real:sub(1, #folder) ~= folder then
    return http_server.response(404)
  end
  local status = stat.stat(real)
  if not status or stat.S_ISREG(status.st_mode) == 0 then
    return http_server.response(404)
  end
  local file <close>, _, code = io.open(real, "rb")
  if not file and (code == errno.EMFILE or code == errno.ENFILE) then
    return http_server.response(503, nil, { ["Retry-After"] = 1 }) -- no descriptor is free
  end
  local content = file and file:read("a")
  return http_server.response(content and 200 or 404, content)
end

---@param folder string
---@param head string
---@return Response, string? path
local function answer(folder, head)
  local method, target = head:match("^(%u+) /(%S*) HTTP/1%.[01]\r\n")
  if not method then
    return http_server.response(400)
  elseif method ~= "GET" then
    return http_server.response(405, nil, { Allow = "GET" })
  end
  local path = target:gsub("[?#].*", ""):gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end)
  return read_file(folder, path), path
end

---@param server Server
---@param connection Socket
local function serve(server, connection)
  local in_time, head, status = pcall(opero.timeout, HEAD_SECONDS, receive_head, connection)
  if not in_time then
    if not opero.errors.is(head, opero.errors.TimeoutError) then
      error(head, 0)
    end
    head, status = nil, 408
  end
  if head then
    local response, path = answer(server.folder, head)
    server.respond(connection, response, path)
  elseif status then
    http_server.respond(connection, http_server.response(status))
  else
    return
  end
  if not connection:getfd() then
    return -- that was the answer
  end
  -- Closing while the client still sends would reset the connection, and the answer with it.
  connection:finish()
  opero.timeout(DRAIN_SECONDS, function()
    while connection:receive() ~= "" do end
  end)
end

---The client has gone, or does not listen: that is its own affair.
local function is_harmless(err)
  return opero.errors.is(err, tcp.ConnectionError)
    or opero.errors.is(err, opero.errors.TimeoutError)
end

---@param server Server
---@param accepted Socket
local function handle(server, accepted)
  local connection <close> = accepted
  local ok, err = pcall(serve, server, connection)
  server.accepted[connection] = nil
  if not ok and not is_harmless(err) then
    error(err, 0)
  end
end

---@class Server
---@field port integer
---@field folder string
---@field respond fun(connection: Socket, response: Response, path: string?)
---@field listener Socket
---@field accepted table<Socket, true> connections that are not closed yet
---@field task Task
local server_methods = {}
local server_mt = { __name = "HttpServer", __index = server_methods }

---Stops listening, drops the connections, waits until their tasks have ended.
function server_methods:close()
  self.task:cancel("the server is closed")
  pcall(self.task.await, self.task)
  self.listener:close()
  -- A task that was cancelled before it began has not closed the connection it was given.
  for connection in pairs(self.accepted) do
    connection:close()
  end
end

server_mt.__close = server_methods.close

---Starts a server as a child of the running task.
---@param folder string whose files it serves
---@param respond? fun(connection: Socket, response: Response, path: string?) how it answers
---@return Server # ends with its block: local server <close> = http_server.start(...)
function http_server.start(folder, respond)
  local self = setmetatable({ accepted = {} }, server_mt)
  self.respond = respond or http_server.respond
  self.folder = assert(stdlib.realpath(folder)):gsub("/$", "") .. "/"
  self.listener, self.port = tcp.listen()
  self.task = opero.spawn(function()
    while true do
      local connection = self.listener:accept()
      self.accepted[connection] = true
      opero.spawn(handle, self, connection)
    end
  end)
  self.task:name("http server on port " .. self.port)
  return self
end

return http_server
