-- TCP sockets for tasks: luaposix makes the system calls, opero.wait suspends the task until the
-- next one can be made. Every socket is non-blocking, is not inherited by other programs, and
-- closes itself: at the end of its block (`local s <close> = ...`), or when it is collected.

local errno = require "posix.errno"
local fcntl = require "posix.fcntl"
local opero = require "opero"
local socket = require "posix.sys.socket"
local unistd = require "posix.unistd"

local tcp = {}

---Raised when a connection cannot be made or breaks. Its field `code` is the errno.
tcp.ConnectionError = opero.errors.class("ConnectionError")

-- One call moves at most this much, so that a large body does not hold up the other tasks.
local CHUNK = 65536

---@class Socket
---@field fd integer? nil once closed
local socket_methods = {}
local socket_mt = { __name = "Socket", __index = socket_methods }

---@param what string
local function fail(what, message, code)
  error(tcp.ConnectionError(what .. ": " .. message, { code = code }))
end

---Makes a system call, and makes it again for as long as it says "not yet" or is interrupted.
---@param self Socket
---@param mode "r"|"w" what to wait for
local function call(self, mode, what, fn, ...)
  while true do
    local result, message, code = fn(self.fd, ...)
    if result then
      return result
    elseif code == errno.EAGAIN or code == errno.EWOULDBLOCK then
      opero.wait(self, mode)
    elseif code ~= errno.EINTR then
      fail(what, message, code)
    end
  end
end

---@param fd integer
local function prepare(fd)
  fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
  fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.O_NONBLOCK)
end

---@return Socket
local function new()
  local self = setmetatable({}, socket_mt)
  local fd, message, code = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
  if not fd then
    fail("socket", message, code)
  end
  self.fd = fd
  prepare(fd)
  return self
end

---Listens on the loopback interface.
---@param port? integer default: any that is free
---@return Socket, integer port
function tcp.listen(port)
  local self = new()
  local address = { family = socket.AF_INET, addr = "127.0.0.1", port = port or 0 }
  socket.setsockopt(self.fd, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  call(self, "r", "bind", socket.bind, address)
  call(self, "r", "listen", socket.listen, socket.SOMAXCONN)
  return self, socket.getsockname(self.fd).port
end

---Connects to a port of this machine.
---@param port integer
---@return Socket
function tcp.connect(port)
  local self = new()
  local address = { family = socket.AF_INET, addr = "127.0.0.1", port = port }
  local ok, message, code = socket.connect(self.fd, address)
  if not ok and (code == errno.EINPROGRESS or code == errno.EINTR) then
    opero.wait(self, "w")
    code = socket.getsockopt(self.fd, socket.SOL_SOCKET, socket.SO_ERROR)
    ok, message = code == 0, errno.errno(code)
  end
  if not ok then
    self:close()
    fail("connect", message, code)
  end
  return self
end

---What opero.wait asks an object for.
function socket_methods:getfd()
  return self.fd
end

---Waits for the next connection.
---@return Socket
function socket_methods:accept()
  local connection = setmetatable({}, socket_mt)
  while true do
    local fd, message, code = socket.accept(self.fd)
    if fd then
      connection.fd = fd
      prepare(fd)
      return connection
    elseif code == errno.EAGAIN or code == errno.EWOULDBLOCK then
      opero.wait(self, "r")
    elseif code == errno.EMFILE or code == errno.ENFILE then
      opero.sleep(0.05) -- no descriptor is free: the peer waits in the queue meanwhile
    elseif code ~= errno.EINTR and code ~= errno.ECONNABORTED then
      fail("accept", message, code)
    end
  end
end

---Waits for data.
---@return string data "" when the peer has finished
function socket_methods:receive()
  return call(self, "r", "receive", socket.recv, CHUNK)
end

---Sends all of the data.
---@param data string
function socket_methods:send(data)
  local first = 1
  while first <= #data do
    local piece = data:sub(first, first + CHUNK - 1)
    first = first + call(self, "w", "send", socket.send, piece)
  end
end

---Says that no more will be sent; the peer's data can still be received.
function socket_methods:finish()
  socket.shutdown(self.fd, socket.SHUT_WR)
end

---Closes the connection the hard way: the peer gets "connection reset".
function socket_methods:reset()
  socket.setsockopt(self.fd, socket.SOL_SOCKET, socket.SO_LINGER, 1, 0)
  self:close()
end

---May be called any number of times.
function socket_methods:close()
  local fd = self.fd
  if fd then
    self.fd = nil
    unistd.close(fd)
  end
end

socket_mt.__close = socket_methods.close
socket_mt.__gc = socket_methods.close

return tcp
