#include "codec_parts.h"

#include <lauxlib.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_LENGTH 1000 /* what is longer is no name that anybody wrote */

/* ---- entries ----------------------------------------------------------------------------------- */

static Entry *find_slot(Entry *entries, uint32_t capacity, uintptr_t key) {
    size_t mask = (size_t)capacity - 1, i = codec_hash(key) & mask;
    while (entries[i].key != 0 && entries[i].key != key)
        i = (i + 1) & mask;
    return &entries[i];
}

const Entry *catalogue_find(const Codec *codec, uintptr_t key) {
    Entry *entry;
    if (codec->entry_count == 0)
        return NULL;
    entry = find_slot(codec->entries, codec->entry_capacity, key);
    return entry->key == 0 ? NULL : entry;
}

static void grow_entries(lua_State *L, Codec *codec) {
    uint32_t capacity = codec->entry_capacity == 0 ? 1024 : codec->entry_capacity * 2;
    Entry *entries = calloc(capacity, sizeof *entries);
    if (entries == NULL)
        luaL_error(L, "not enough memory");
    for (uint32_t i = 0; i < codec->entry_capacity; i++)
        if (codec->entries[i].key != 0)
            *find_slot(entries, capacity, codec->entries[i].key) = codec->entries[i];
    free(codec->entries);
    codec->entries = entries;
    codec->entry_capacity = capacity;
}

/* The entry for the key, made if there is none: then its kind is `kind` and it has no names. */
static Entry *add_entry(lua_State *L, Codec *codec, uintptr_t key, EntryKind kind, bool *is_new) {
    Entry *entry;
    if (codec->entry_count >= codec->entry_capacity / 2)
        grow_entries(L, codec);
    entry = find_slot(codec->entries, codec->entry_capacity, key);
    *is_new = entry->key == 0;
    if (*is_new) {
        entry->key = key;
        entry->kind = kind;
        entry->names = 0;
        codec->entry_count++;
    }
    return entry;
}

const char *catalogue_push_name(lua_State *L, int codec, const Entry *entry, int n,
                                size_t *length) {
    lua_getiuservalue(L, codec, CODEC_NAMES);
    lua_rawgeti(L, -1, (lua_Integer)entry->names + n + 1);
    lua_replace(L, -2);
    return lua_type(L, -1) == LUA_TSTRING ? lua_tolstring(L, -1, length) : NULL;
}

bool catalogue_holds(lua_State *L, int codec, const Entry *entry, int index) {
    int top = lua_gettop(L);
    bool holds = false;
    index = lua_absindex(L, index);
    if (entry->kind == ENTRY_CLASS) {
        holds = class_push_name(L, codec, index) == LUA_TSTRING;
    } else {
        lua_getiuservalue(L, codec, CODEC_LOADED);
        if (catalogue_push_name(L, codec, entry, 0, NULL) != NULL) {
            lua_rawget(L, -2);
            if (entry->kind == ENTRY_MODULE)
                holds = lua_rawequal(L, -1, index);
            else if (lua_istable(L, -1) && catalogue_push_name(L, codec, entry, 1, NULL) != NULL) {
                lua_rawget(L, -2);
                holds = lua_rawequal(L, -1, index);
            }
        }
    }
    lua_settop(L, top);
    return holds;
}

/* ---- reading what is loaded -------------------------------------------------------------------- */

static uint64_t take_fingerprint(lua_State *L, int codec) {
    uint64_t sum = 0;
    lua_getiuservalue(L, codec, CODEC_LOADED);
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) { /* in whatever order */
        uint64_t key = (uintptr_t)lua_topointer(L, -2), value = (uintptr_t)lua_topointer(L, -1);
        sum += (key ^ (value << 9 | value >> 55)) * 0x9e3779b97f4a7c15 + 1;
    }
    lua_pop(L, 1);
    return sum;
}

bool catalogue_is_outdated(lua_State *L, int codec) {
    Codec *self = lua_touserdata(L, codec);
    return !self->is_built || take_fingerprint(L, codec) != self->fingerprint;
}

static bool is_name(lua_State *L, int index) {
    return lua_type(L, index) == LUA_TSTRING && lua_rawlen(L, index) <= NAME_MAX_LENGTH;
}

static int compare_names(lua_State *L, int a, int b) { /* shorter first */
    size_t a_length, b_length;
    const char *a_name = lua_tolstring(L, a, &a_length), *b_name = lua_tolstring(L, b, &b_length);
    if (a_length != b_length)
        return a_length < b_length ? -1 : 1;
    return memcmp(a_name, b_name, a_length);
}

/* Whether module and field, the latter none at index 0, are a better name than the entry's: one
 * choice for all, whatever the order of the tables. */
static bool is_better(lua_State *L, int names, const Entry *entry, int module, int field) {
    int top = lua_gettop(L), order;
    bool is_global = strcmp(lua_tostring(L, module), LUA_GNAME) == 0, was_global;
    lua_rawgeti(L, names, (lua_Integer)entry->names + 1);
    was_global = strcmp(lua_tostring(L, -1), LUA_GNAME) == 0;
    lua_rawgeti(L, names, (lua_Integer)entry->names + 2);
    if ((entry->kind == ENTRY_MODULE) != (field == 0))
        order = field == 0 ? -1 : 1;
    else if (is_global != was_global)
        order = was_global ? -1 : 1;
    else
        order = compare_names(L, module, top + 1);
    if (order == 0 && field != 0)
        order = compare_names(L, field, top + 2);
    lua_settop(L, top);
    return order < 0;
}

/* Enters the value on the top of the stack. */
static void enter(lua_State *L, Codec *self, int names, int module, int field) {
    uintptr_t key = codec_identity(L, -1, lua_type(L, -1));
    EntryKind kind = field == 0 ? ENTRY_MODULE : ENTRY_FIELD;
    bool is_new;
    Entry *entry = add_entry(L, self, key, kind, &is_new);
    if (is_new) {
        entry->names = self->name_count;
        self->name_count += 2;
    } else if (!is_better(L, names, entry, module, field))
        return;
    entry->kind = kind;
    lua_pushvalue(L, module);
    lua_rawseti(L, names, (lua_Integer)entry->names + 1);
    if (field != 0)
        lua_pushvalue(L, field);
    else
        lua_pushboolean(L, false);
    lua_rawseti(L, names, (lua_Integer)entry->names + 2);
}

/* Enters the fields of the module on the top of the stack, whose name is at index `module`. */
static void enter_fields(lua_State *L, Codec *self, int names, int module) {
    bool is_globals = strcmp(lua_tostring(L, module), LUA_GNAME) == 0;
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
        int type = lua_type(L, -1);
        /* a global that is a Lua function is the program's own, and not there in a fresh state */
        bool is_nameable = (type == LUA_TFUNCTION && !(is_globals && !lua_iscfunction(L, -1))) ||
                           type == LUA_TUSERDATA || type == LUA_TLIGHTUSERDATA;
        if (is_nameable && is_name(L, -2))
            enter(L, self, names, module, lua_gettop(L) - 1);
    }
}

static void enter_class(lua_State *L, Codec *self, int index) {
    bool is_new;
    Entry *entry = add_entry(L, self, codec_identity(L, index, LUA_TTABLE), ENTRY_CLASS, &is_new);
    entry->kind = ENTRY_CLASS;
}

void catalogue_build(lua_State *L, int codec) {
    Codec *self = lua_touserdata(L, codec);
    int names, loaded;
    stack_reserve(L, 12);
    self->is_built = false;
    lua_newtable(L); /* here finalizers may run, and below not */
    names = lua_gettop(L);
    if (self->entries != NULL)
        memset(self->entries, 0, self->entry_capacity * sizeof *self->entries);
    self->entry_count = self->name_count = 0;
    lua_pushvalue(L, names);
    lua_setiuservalue(L, codec, CODEC_NAMES);
    lua_getiuservalue(L, codec, CODEC_LOADED);
    loaded = lua_gettop(L);
    for (lua_pushnil(L); lua_next(L, loaded); lua_pop(L, 1)) {
        int type = lua_type(L, -1), module = lua_gettop(L) - 1;
        if (!is_name(L, module))
            continue;
        if (type == LUA_TTABLE || type == LUA_TFUNCTION || type == LUA_TUSERDATA)
            enter(L, self, names, module, 0);
        if (type == LUA_TTABLE)
            enter_fields(L, self, names, module);
    }
    lua_getiuservalue(L, codec, CODEC_CLASS_NAMES);
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
        enter_class(L, self, lua_gettop(L) - 1);
    self->fingerprint = take_fingerprint(L, codec);
    self->is_built = true;
    lua_settop(L, names - 1);
}

/* ---- classes ----------------------------------------------------------------------------------- */

/* Replaces the key on the top of the stack by what that user value of the codec has for it. */
static int look_up(lua_State *L, int codec, int user_value) {
    lua_getiuservalue(L, codec, user_value);
    lua_insert(L, -2);
    lua_rawget(L, -2);
    lua_remove(L, -2);
    return lua_type(L, -1);
}

int class_push_name(lua_State *L, int codec, int index) {
    lua_pushvalue(L, index);
    return look_up(L, codec, CODEC_CLASS_NAMES);
}

int class_push_base(lua_State *L, int codec, int index) {
    lua_pushvalue(L, index);
    return look_up(L, codec, CODEC_BASES);
}

bool class_find(lua_State *L, int codec) {
    lua_pushvalue(L, -1);
    if (look_up(L, codec, CODEC_CLASSES) == LUA_TNIL) {
        lua_pop(L, 1);
        return false;
    }
    lua_replace(L, -2);
    return true;
}

/* codec's user value [key] = value */
static void enter_value(lua_State *L, int codec, int user_value, int key, int value) {
    lua_getiuservalue(L, codec, user_value);
    lua_pushvalue(L, key);
    lua_pushvalue(L, value);
    lua_rawset(L, -3);
    lua_pop(L, 1);
}

/* Makes the table at `class` that of the name at `name`, derived from what is at `base`. */
static void add_class(lua_State *L, int codec, int class, int name, int base) {
    enter_value(L, codec, CODEC_BASES, class, base);
    enter_value(L, codec, CODEC_CLASSES, name, class);
    enter_value(L, codec, CODEC_CLASS_NAMES, class, name);
    enter_class(L, lua_touserdata(L, codec), class);
}

/* Pushes the name under which a new class called what is at `name` can be told from others. */
static void push_free_name(lua_State *L, int codec, int name) {
    lua_Integer count;
    lua_pushvalue(L, name);
    look_up(L, codec, CODEC_COUNTS);
    count = lua_tointeger(L, -1);
    lua_pop(L, 1);
    do {
        count++;
        lua_pushvalue(L, name);
        if (count > 1) {
            lua_pushfstring(L, "#%I", (LUAI_UACINT)count);
            lua_concat(L, 2);
        }
        lua_pushvalue(L, -1);
        if (look_up(L, codec, CODEC_CLASSES) == LUA_TNIL || look_up(L, codec, CODEC_STAND_INS)) {
            lua_pop(L, 1);
            break;
        }
        lua_pop(L, 2);
    } while (true);
    lua_pushinteger(L, count);
    enter_value(L, codec, CODEC_COUNTS, name, lua_gettop(L));
    lua_pop(L, 1);
}

/* register_class(name, class, base?) */
static int register_class(lua_State *L) {
    luaL_checktype(L, 1, LUA_TSTRING);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 3);
    codec_open(L); /* 4 */
    luaL_argcheck(L, class_push_name(L, 4, 2) == LUA_TNIL, 2, "class is registered already");
    luaL_argcheck(L, lua_isnil(L, 3) || class_push_name(L, 4, 3) == LUA_TSTRING, 3,
                  "registered class expected");
    push_free_name(L, 4, 1);
    add_class(L, 4, 2, lua_gettop(L), 3);
    return 0;
}

/* set_class_maker(function(name, base) -> class) */
static int set_class_maker(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    codec_open(L);
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, 2, CODEC_MAKER);
    return 0;
}

/* What the class was called before it got a number: without its "#2". */
static size_t plain_length(const char *name, size_t length) {
    size_t end = length;
    while (end > 1 && name[end - 1] >= '0' && name[end - 1] <= '9')
        end--;
    return end > 1 && end < length && name[end - 1] == '#' ? end - 1 : length;
}

void class_stand_in(lua_State *L, int codec) {
    int base = lua_gettop(L) - 1, name = base + 1, class = base + 2;
    size_t length;
    const char *text = lua_tolstring(L, name, &length);
    stack_reserve(L, 8);
    lua_getiuservalue(L, codec, CODEC_MAKER);
    lua_pushlstring(L, text, plain_length(text, length));
    lua_pushvalue(L, base);
    lua_call(L, 2, 1);
    luaL_checktype(L, class, LUA_TTABLE);
    lua_pushboolean(L, true);
    enter_value(L, codec, CODEC_STAND_INS, class, class + 1);
    add_class(L, codec, class, name, base);
    lua_settop(L, class);
    lua_replace(L, base);
    lua_settop(L, base);
}

/* ---- the codec of a state ---------------------------------------------------------------------- */

static const char CODEC_KEY; /* its address is the key */

static int codec_gc(lua_State *L) {
    Codec *codec = lua_touserdata(L, 1);
    free(codec->entries);
    free(codec->memos);
    free(codec->frames);
    memset(codec, 0, sizeof *codec);
    codec->is_closed = true;
    return 0;
}

static void set_weak_table(lua_State *L, int user_value, const char *mode) {
    lua_newtable(L);
    lua_createtable(L, 0, 1);
    lua_pushstring(L, mode);
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_setiuservalue(L, -2, user_value);
}

Codec *codec_open(lua_State *L) {
    Codec *codec;
    if (lua_rawgetp(L, LUA_REGISTRYINDEX, &CODEC_KEY) == LUA_TUSERDATA) {
        codec = lua_touserdata(L, -1);
        if (codec->is_closed) /* by a finalizer, late */
            luaL_error(L, "the state is closing");
        return codec;
    }
    lua_pop(L, 1);
    codec = lua_newuserdatauv(L, sizeof *codec, CODEC_USER_VALUES);
    memset(codec, 0, sizeof *codec);
    luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    lua_setiuservalue(L, -2, CODEC_LOADED);
    set_weak_table(L, CODEC_CLASS_NAMES, "k");
    set_weak_table(L, CODEC_CLASSES, "v");
    set_weak_table(L, CODEC_BASES, "k");
    set_weak_table(L, CODEC_STAND_INS, "k");
    lua_newtable(L);
    lua_setiuservalue(L, -2, CODEC_COUNTS);
    lua_newtable(L);
    lua_setiuservalue(L, -2, CODEC_SPILL);
    lua_createtable(L, 0, 2);
    lua_pushcfunction(L, codec_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushliteral(L, "opero.Codec");
    lua_setfield(L, -2, "__name");
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &CODEC_KEY);
    return codec;
}

/* ---- the stack beyond the stack ------------------------------------------------------------------ */

void stack_spill(lua_State *L, int floor, int count, int spill, lua_Integer *spilled) {
    for (int i = 1; i <= count; i++) {
        lua_pushvalue(L, floor + i);
        lua_rawseti(L, spill, *spilled + i);
    }
    *spilled += count;
    for (int i = floor + count + 1, top = lua_gettop(L); i <= top; i++) /* what is above them */
        lua_copy(L, i, i - count);
    lua_pop(L, count);
}

void stack_unspill(lua_State *L, int count, int spill, lua_Integer *spilled) {
    *spilled -= count;
    for (int i = 1; i <= count; i++)
        lua_rawgeti(L, spill, *spilled + i);
}

void stack_reserve(lua_State *L, int count) {
    if (!lua_checkstack(L, count))
        luaL_error(L, lua_gettop(L) < LUAI_MAXSTACK / 2 ? "not enough memory" : "stack overflow");
}

static const luaL_Reg functions[] = {
    {"register_class", register_class}, {"set_class_maker", set_class_maker}, {NULL, NULL}};

void catalogue_register(lua_State *L, int module) {
    lua_pushvalue(L, module);
    luaL_setfuncs(L, functions, 0);
    lua_pop(L, 1);
}
