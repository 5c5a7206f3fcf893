// What guests in JavaScript find beside the language: callTool, parallel, console, timers, env and files.
//
// Theory of operation. This runs in the zygote's context, of which each guest has a copy, and keeps what it needs of the
// language in constants: a guest that replaces `JSON.stringify` or puts a `toJSON` on every object changes its own
// values, not how they travel. To the driver go strings that are JSON text, never objects, for only such survive the way
// whole. Here no prototype is relied on: no methods of strings and arrays, no iterators, and no promise of ours that
// looks at its `constructor`.
//
// None of it is trusted: a guest can do nothing here that the code of a guest could not do anyway.
(() => {
  const {host} = globalThis;
  delete globalThis.host;
  const {parse, stringify} = JSON;
  const {apply} = Reflect;
  const {captureStackTrace} = Error;
  const {defineProperty, keys} = Object;
  const {isArray} = Array;
  const {isView} = ArrayBuffer;
  const {random} = Math;
  const {queueMicrotask: queue, atob: fromBase64} = globalThis;
  const {then} = Promise.prototype;
  const [TheError, TheTypeError, ThePromise, TheMap, TheSet, TheDate, TheRegExp, TheUint8Array] =
    [Error, TypeError, Promise, Map, Set, Date, RegExp, Uint8Array];
  const {forEach: forEachOfMap} = Map.prototype;
  const {forEach: forEachOfSet} = Set.prototype;
  const {toString: textOfSymbol} = Symbol.prototype;
  const {toISOString: textOfDate} = Date.prototype;
  const {toString: textOfRegExp} = RegExp.prototype;
  const {charCodeAt, isWellFormed} = String.prototype;
  const MAX_DEPTH = 6;
  const MAX_ITEMS = 100;
  const MAX_DELAY_MS = 2147483647;
  const MAX_NAME_CHARS = 256;

  const hidden = (object, name, value) =>
    defineProperty(object, name, {__proto__: null, value, writable: true, configurable: true});

  class ToolError extends TheError {
    constructor(message, code) {
      super(message);
      this.code = code;
    }
  }
  hidden(ToolError.prototype, "name", "ToolError");

  // How things look on the console, and what is said of a thrown value that is no Error.

  const errorName = (error) => {
    const {name} = error;
    const own = name === "Error" ? error.constructor?.name : name;
    return typeof own === "string" && own ? own : "Error";
  };

  const errorText = (error) => {
    const {stack} = error;
    const lines = typeof stack === "string" ? host("stack", stringify(stack)) : "";
    return `${errorName(error)}: ${error.message}${lines && "\n"}${lines}`;
  };

  const listed = (open, count, item, close) => {
    const shown = count < MAX_ITEMS ? count : MAX_ITEMS;
    let text = open;
    for (let index = 0; index < shown; index++) text += (index ? ", " : "") + item(index);
    return text + (shown < count ? `, … ${count - shown} more` : "") + close;
  };

  const inspectObject = (value, depth, above) => {
    if (value instanceof TheError) return depth ? `[${errorName(value)}: ${value.message}]` : errorText(value);
    if (value instanceof TheDate) return apply(textOfDate, value, []);
    if (value instanceof TheRegExp) return apply(textOfRegExp, value, []);
    if (value instanceof ThePromise) return "Promise {}";
    for (let one = above; one; one = one.above) if (one.value === value) return "[Circular]";
    if (depth >= MAX_DEPTH) return isArray(value) ? "[Array]" : "[Object]";
    const here = {__proto__: null, value, above};
    const inner = (part) => inspect(part, depth + 1, here);
    if (isArray(value)) return listed("[", value.length, (index) => inner(value[index]), "]");
    const kind = typeof value.constructor?.name === "string" ? value.constructor.name : "";
    if (isView(value) && value.length >= 0)
      return listed(`${kind}(${value.length}) [`, value.length, (index) => `${value[index]}`, "]");
    const parts = {__proto__: null};
    let count = 0;
    if (value instanceof TheMap) {
      apply(forEachOfMap, value, [(item, key) => (parts[count++] = `${inner(key)} => ${inner(item)}`)]);
      return listed(`Map(${count}) {`, count, (index) => parts[index], "}");
    }
    if (value instanceof TheSet) {
      apply(forEachOfSet, value, [(item) => (parts[count++] = inner(item))]);
      return listed(`Set(${count}) {`, count, (index) => parts[index], "}");
    }
    const names = keys(value);
    const open = kind && kind !== "Object" ? `${kind} {` : "{";
    return listed(open, names.length, (index) => `${names[index]}: ${inner(value[names[index]])}`, "}");
  };

  const inspect = (value, depth, above) => {
    switch (typeof value) {
      case "string":
        return depth ? stringify(value) : value;
      case "symbol":
        return apply(textOfSymbol, value, []);
      case "bigint":
        return `${value}n`;
      case "function":
        return `[Function: ${value.name || "(anonymous)"}]`;
      case "object":
        return value === null ? "null" : inspectObject(value, depth, above);
      default:
        return `${value}`;
    }
  };

  const line = (values, text = "") => {
    for (let index = 0; index < values.length; index++) text += (text && " ") + inspect(values[index], 0, null);
    return stringify(text);
  };

  // How the code ends.

  const describe = (error) => {
    if (!(error instanceof TheError)) return {name: "", message: inspect(error, 1, null), stack: "", code: ""};
    const {stack} = error;
    const code = error instanceof ToolError ? error.code : "";
    return {
      name: errorName(error),
      message: `${error.message}`,
      stack: typeof stack === "string" ? stack : "",
      code: typeof code === "string" ? code : "",
    };
  };

  const fail = (error, what) => {
    const wasFull = host("room"); // it may have run out of memory: now there is some for what follows
    let told;
    try {
      if (error === null && wasFull) return host("lost"); // what the engine throws without room for an Error
      told = describe(error);
    } catch {
      told = {name: "", message: "an error that cannot be looked at", stack: "", code: ""};
    }
    try {
      host("failed", what, stringify(told.name), stringify(told.message), stringify(told.stack), stringify(told.code));
    } catch {
      host("lost");
    }
  };
  const failed = (error) => fail(error, "thrown");

  const returned = (value) => {
    if (value === undefined) return host("returned");
    let text;
    try {
      text = stringify(value);
      if (text === undefined) throw new TheTypeError(`a ${typeof value} is not JSON`);
    } catch (error) {
      return fail(error, "result");
    }
    return host("returned", text);
  };

  // What the code may use.

  const calls = {__proto__: null};
  const timers = {__proto__: null};
  let lastCall = 0;
  let lastTimer = 0;

  const promised = () => {
    const ends = {__proto__: null};
    ends.promise = new ThePromise((resolve, reject) => {
      ends.resolve = resolve;
      ends.reject = reject;
    });
    return ends;
  };

  const argumentsText = (args) => {
    const text = args === undefined ? "{}" : stringify(args);
    if (text === undefined) throw new TheTypeError(`callTool: the arguments are a ${typeof args}, which is not JSON`);
    return text;
  };

  const callTool = (name, args) => {
    const call = promised();
    try {
      if (typeof name !== "string" || !name) throw new TheTypeError("callTool: the tool's name must be a string");
      if (name.length > MAX_NAME_CHARS || !apply(isWellFormed, name, []))
        throw new TheTypeError(`callTool: a tool's name has at most ${MAX_NAME_CHARS} characters, each of them whole`);
      const text = argumentsText(args);
      captureStackTrace(call, callTool);
      calls[++lastCall] = call;
      host("call", lastCall, stringify(name), text);
    } catch (error) {
      call.reject(error);
    }
    return call.promise;
  };

  const parallel = (items, second, third) => {
    const mapped = typeof second === "function";
    const limit = (mapped ? third : second)?.maxConcurrency ?? 10;
    if (!isArray(items)) throw new TheTypeError("parallel: the first argument must be an array");
    if (!(limit >= 1)) throw new TheTypeError("parallel: maxConcurrency must be a number from 1");
    const all = promised();
    const count = items.length;
    const results = [];
    let next = 0;
    let active = 0;
    let finished = 0;
    const run = async (index) => {
      try {
        const item = items[index];
        const value = await (mapped ? second(item, index) : item());
        defineProperty(results, index, {__proto__: null, value, writable: true, enumerable: true, configurable: true});
      } catch (error) {
        next = count;
        all.reject(error);
        return;
      }
      active--;
      finished++;
      if (finished === count) all.resolve(results);
      else more();
    };
    const more = () => {
      while (active < limit && next < count) {
        active++;
        run(next++);
      }
    };
    if (count) more();
    else all.resolve(results);
    return all.promise;
  };

  const call = (callback, values) => {
    try {
      apply(callback, undefined, values);
    } catch (error) {
      failed(error);
    }
  };

  const queueMicrotask = (callback) => {
    if (typeof callback !== "function") throw new TheTypeError("queueMicrotask: the argument must be a function");
    queue(() => call(callback, []));
  };

  const setTimer = (callback, delay, values, again) => {
    if (typeof callback !== "function") throw new TheTypeError("a timer's first argument must be a function");
    const delayMs = delay > 0 ? (delay < MAX_DELAY_MS ? +delay : MAX_DELAY_MS) : 0;
    timers[++lastTimer] = {__proto__: null, callback, values, delayMs, again};
    host("timer", lastTimer, delayMs);
    return lastTimer;
  };
  const setTimeout = (callback, delay, ...values) => setTimer(callback, delay, values, false);
  const setInterval = (callback, delay, ...values) => setTimer(callback, delay, values, true);
  const clearTimeout = (id) => {
    if (typeof id !== "number" || !timers[id]) return;
    delete timers[id];
    host("clear", id);
  };

  const log = (...values) => host("out", line(values));
  const debug = (...values) => host("log", "debug", line(values));
  const info = (...values) => host("log", "info", line(values));
  const warn = (...values) => host("log", "warn", line(values));
  const error = (...values) => host("log", "error", line(values));
  const assert = (held, ...values) => {
    if (!held) host("log", "error", line(values, "Assertion failed:"));
  };
  const group = (...values) => {
    if (values.length) host("out", line(values));
  };
  const groupEnd = () => undefined;
  const console = {log, debug, info, warn, error, assert, group, groupEnd, dir: log, table: log, trace: debug};

  // sfc32, seeded in each sandbox: they share the generator that they replace, and so its numbers. Of that only what
  // lies below the 32nd bit comes in.
  let [a, b, c, d] = [0, 0, 0, 0];
  hidden(Math, "random", () => {
    const sum = ((a + b) | 0) + d | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum | 0;
    return ((sum >>> 0) + random()) / 4294967296;
  });

  const given = {callTool, parallel, ToolError, console, queueMicrotask, setTimeout, setInterval, clearTimeout};
  for (const name of keys(given)) hidden(globalThis, name, given[name]);
  hidden(globalThis, "clearInterval", clearTimeout);

  // What the driver asks for.

  const seed = (text) => {
    [a, b, c, d] = parse(text);
  };

  const bytes = (text) => {
    const decoded = fromBase64(text);
    const array = new TheUint8Array(decoded.length);
    for (let index = 0; index < decoded.length; index++) array[index] = apply(charCodeAt, decoded, [index]);
    return array;
  };

  const give = (text) => {
    const {env, files} = parse(text);
    for (const path of keys(files)) if (typeof files[path] !== "string") files[path] = bytes(files[path].base64);
    hidden(globalThis, "env", env);
    hidden(globalThis, "files", files);
  };

  let ending;
  const run = (main) => {
    ending = main();
  };

  const end = () => {
    defineProperty(ending, "constructor", {__proto__: null, value: undefined}); // so `then` makes a plain promise
    apply(then, ending, [returned, failed]);
  };

  const answer = (text) => {
    const given = parse(text);
    const call = calls[given.id];
    if (!call) return;
    delete calls[given.id];
    if (given.ok) {
      call.resolve(given.value);
      return;
    }
    const error = new ToolError(given.message, given.code);
    hidden(error, "stack", call.stack);
    call.reject(error);
  };

  const strike = (id) => {
    const timer = timers[id];
    if (!timer) return;
    if (timer.again) host("timer", id, timer.delayMs);
    else delete timers[id];
    call(timer.callback, timer.values);
  };

  const requests = {__proto__: null, seed, give, run, end, answer, strike};
  return (request, value) => requests[request](value);
})()
