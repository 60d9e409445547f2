/** What the module's tests run on: a clock that is moved by hand, a gateway and sockets that exist in this page only. */

const real = { setTimeout, clearTimeout, setInterval, clearInterval, fetch, WebSocket, now: Date.now, random: Math.random };
const later = real.setTimeout.bind(globalThis);

/** Let promises, messages between tabs and locks come to rest. */
export async function settle() {
  for (let turn = 0; turn < 4; turn++) await new Promise((done) => later(done, 1));
}

/** Until it is so, in real time. */
export async function until(condition, what = String(condition)) {
  for (let turn = 0; turn < 5000; turn++) {
    if (condition()) return;
    await new Promise((done) => later(done, 2));
  }
  throw new Error(`never: ${what}`);
}

export class Clock {
  now = 1_000_000;
  #number = 0;
  #timers = new Map();

  install() {
    globalThis.setTimeout = (call, ms = 0, ...args) => this.#add(call, ms, null, args);
    globalThis.setInterval = (call, ms) => this.#add(call, ms, ms);
    globalThis.clearTimeout = globalThis.clearInterval = (number) => this.#timers.delete(number);
    Date.now = () => this.now;
  }

  #add(call, ms, every, args = []) {
    this.#timers.set(++this.#number, { call: () => call(...args), at: this.now + ms, every });
    return this.#number;
  }

  /** The time passes, and what is due happens in its order. */
  async advance(ms) {
    const end = this.now + ms;
    for (;;) {
      const [number, due] = [...this.#timers].sort(([, a], [, b]) => a.at - b.at)[0] ?? [];
      if (!due || due.at > end) break;
      this.now = Math.max(this.now, due.at);
      if (due.every === null) this.#timers.delete(number);
      else due.at += due.every;
      due.call();
      await settle();
    }
    this.now = end;
    await settle();
  }
}

/** An unsigned token. */
export function token(user, tenant = "t1", serial = 0) {
  const text = btoa(JSON.stringify({ user_id: user, tenant_id: tenant, serial }));
  return `head.${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}.sign`;
}

export function problem(status, code, more = {}, headers = {}) {
  const body = JSON.stringify({ code, status, detail: `It is ${code}.`, request_id: "request-1", ...more });
  return new Response(body, { status, headers: { "Content-Type": "application/problem+json", ...headers } });
}

const encoder = new TextEncoder();

/** Answers `fetch` as a gateway does: tickets, a history, streams. */
export class FakeGateway {
  epoch = 1;
  alerts = [];
  streams = new Set();
  /** All requests, as `METHOD path?query`, and what came with them. */
  requests = [];
  /** Answers to come before the usual ones, by path. */
  answers = { "/api/v1/alerts/ticket": [], "/api/v1/alerts/stream": [], "/api/v1/auth/session": [] };
  away = false;
  retryMs = null;
  heartbeatS = 15;
  #tickets = new Set();
  #serial = 0;

  install() {
    globalThis.fetch = (url, init = {}) => this.#fetch(new URL(url), init);
  }

  /** How often this path was asked for. */
  count(path) {
    return this.requests.filter((it) => it.path === path).length;
  }

  get asked() {
    return this.requests.filter((it) => it.path === "/api/v1/alerts/stream");
  }

  publish(message) {
    this.alerts.push(message);
    this.say(this.#alert(this.alerts.length));
  }

  /** To every open stream. */
  say(text) {
    for (const stream of [...this.streams]) stream.enqueue(encoder.encode(text));
  }

  event(name, data, id) {
    this.say(`event: ${name}\n${id ? `id: ${id}\n` : ""}data: ${JSON.stringify(data)}\n\n`);
  }

  /** The connections are lost. */
  cut() {
    for (const stream of [...this.streams]) stream.error(new TypeError("network error"));
    this.streams.clear();
  }

  /** The connections are ended properly. */
  end() {
    for (const stream of [...this.streams]) stream.close();
    this.streams.clear();
  }

  #alert(offset) {
    const data = JSON.stringify({ message: this.alerts[offset - 1] });
    return `event: alert\nid: ${this.epoch}-${offset}\ndata: ${data}\n\n`;
  }

  async #fetch(url, init) {
    const headers = new Headers(init.headers);
    const query = Object.fromEntries(url.searchParams);
    this.requests.push({ method: init.method ?? "GET", path: url.pathname, query, headers, credentials: init.credentials });
    if (init.signal?.aborted) throw new DOMException("aborted", "AbortError");
    if (this.away) throw new TypeError("Failed to fetch");
    const prepared = this.answers[url.pathname]?.shift();
    if (prepared) return prepared;
    if (url.pathname === "/api/v1/alerts/ticket") return this.#ticket();
    if (url.pathname === "/api/v1/auth/session") return Response.json({ user_id: "u1", tenant_id: "t1", csrf_token: "c" });
    if (url.pathname === "/api/v1/alerts/stream") return this.#stream(query, init);
    return problem(404, "not-found");
  }

  #ticket() {
    const ticket = `ticket-${++this.#serial}`;
    this.#tickets.add(ticket);
    return Response.json({ ticket, expires_in: 30 }, { status: 201 });
  }

  #stream(query, init) {
    if (init.credentials !== "include" && !this.#tickets.delete(query.ticket)) return problem(401, "token-invalid");
    let held;
    const body = new ReadableStream({ start: (controller) => this.streams.add((held = controller)) });
    init.signal?.addEventListener("abort", () => {
      if (this.streams.delete(held)) held.error(new DOMException("aborted", "AbortError"));
    });
    held.enqueue(encoder.encode(this.#beginning(query.last_event_id)));
    return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
  }

  #beginning(after) {
    const head = `${this.epoch}-${this.alerts.length}`;
    const [epoch, offset] = (after ?? head).split("-").map(Number);
    const known = epoch === this.epoch;
    let text = this.retryMs === null ? "" : `retry: ${this.retryMs}\n\n`;
    const hello = { epoch: this.epoch, offset: this.alerts.length, recovered: known, missed: this.alerts.length - offset,
      heartbeat_seconds: this.heartbeatS };
    text += `event: hello\nid: ${head}\ndata: ${JSON.stringify(hello)}\n\n`;
    if (!known) return `${text}event: gap\nid: ${head}\ndata: {"reason":"epoch"}\n\n`;
    for (let next = offset + 1; next <= this.alerts.length; next++) text += this.#alert(next);
    return text;
  }
}

/** Stands where `WebSocket` does. */
export class FakeSocket {
  static all = [];
  static refusing = false;
  readyState = 0;
  bufferedAmount = 0;
  sent = [];

  constructor(url, protocols) {
    this.url = new URL(url);
    this.protocols = protocols;
    FakeSocket.all.push(this);
  }

  static install() {
    FakeSocket.all = [];
    globalThis.WebSocket = FakeSocket;
  }

  static get last() {
    return FakeSocket.all.at(-1);
  }

  opens() {
    this.readyState = 1;
    this.onopen();
  }

  send(data) {
    this.sent.push(data);
  }

  close(code) {
    this.closedWith = code;
    this.readyState = 2;
  }

  closes(code, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }
}

export function restore() {
  Object.assign(globalThis, {
    setTimeout: real.setTimeout,
    clearTimeout: real.clearTimeout,
    setInterval: real.setInterval,
    clearInterval: real.clearInterval,
    fetch: real.fetch,
    WebSocket: real.WebSocket,
  });
  Date.now = real.now;
  Math.random = real.random;
}

const tests = [];

export function test(name, body) {
  tests.push({ name, body });
}

export function equal(found, expected) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(expected)];
  if (a !== b) throw new Error(`found ${a}\nnot ${b}`);
}

export function ok(value, what = "not so") {
  if (!value) throw new Error(what);
}

/** Every test's failure, by name; null where there is none. */
export async function run() {
  const outcomes = {};
  for (const { name, body } of tests) {
    const clock = new Clock();
    const gateway = new FakeGateway();
    const cleanups = [];
    sessionStorage.clear();
    clock.install();
    gateway.install();
    FakeSocket.install();
    Math.random = () => 0.5;
    let timer;
    try {
      const late = new Promise((_, fail) => (timer = later(() => fail(new Error("too slow")), 30_000)));
      const begun = (async () => body({ clock, gateway, later: (call) => cleanups.push(call) }))();
      await Promise.race([begun, late]);
      outcomes[name] = null;
    } catch (error) {
      outcomes[name] = String(error?.stack ?? error);
    } finally {
      real.clearTimeout.call(globalThis, timer);
      for (const call of cleanups) call();
      restore();
      await settle();
    }
  }
  return outcomes;
}
