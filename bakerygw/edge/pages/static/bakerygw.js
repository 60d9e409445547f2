/**
 * Alerts and training progress from the Bakery-IA gateway, for pages. One file without dependencies.
 *
 *     import { AlertStream, TrainingSocket, GatewayError } from "/bakerygw.js";
 *
 * A stream is read by `fetch`, for an `EventSource` tells nothing of why it was refused. All tabs of one user and
 * tenant share one connection: the tab that holds a Web Lock reads it and tells the others over a BroadcastChannel.
 * Each tab keeps its own place in the order of alerts, so that whoever reads next goes on where this tab was.
 */

const STREAM_PATH = "/api/v1/alerts/stream";
const TICKET_PATH = "/api/v1/alerts/ticket";
const SESSION_PATH = "/api/v1/auth/session";
const TRAINING_PATH = "/api/v1/training/ws";

const HEARTBEAT_MS = 15_000;
const HEARTBEATS_MISSED = 2.5;
const ANSWER_MS = 20_000;
/** How long a page may take for a token. */
const TOKEN_MS = 60_000;
const FIRST_DELAY_MS = 1_000;
const MAX_DELAY_MS = 30_000;
const MIN_DELAY_MS = 200;
const MAX_RETRY_MS = 600_000;
/** What lasted so long has worked: the next failure is the first again. */
const WORKED_MS = 10_000;
/** How long a tab that reads for the others may leave a question unanswered before another takes its place. */
const PATIENCE_MS = 10_000;
/** How long a token that was asked for to know its user is used for a connection, too. */
const UNUSED_MS = 10_000;
/** How old a change of subscription must be for a new token to be younger: tokens count in whole seconds. */
const STALE_MS = 2_000;
/** Characters of one event; the gateway's have less than a tenth of it. */
const MAX_EVENT = 1 << 20;
const MAX_BEHIND = 5_000;
const MAX_QUEUED = 256;
const MAX_QUEUED_BYTES = 1 << 20;
const MAX_UNSENT_BYTES = 4 << 20;
/** Of every request: from the gateway itself, and nowhere else. */
const STRAIGHT = { cache: "no-store", redirect: "error", referrerPolicy: "no-referrer" };
const RETRIED_CLOSES = new Set([1001, 1006, 1011, 1012, 1013]);
const TEMPORARY = new Set([0, 408, 425, 429]);

/** @typedef {"connecting" | "open" | "degraded" | "waiting" | "closed"} StreamState */
/** @typedef {(options: { renew: boolean }) => Promise<string | null> | string | null} TokenSource */
/**
 * @typedef {object} AccessOptions
 * @property {string} [token] an access token
 * @property {TokenSource} [getToken] gives the access token for each new connection; `renew` is true where the
 *   last one was refused or has ended. `null`: nobody is signed in
 * @property {string} [tenantId] another tenant than the token's own
 * @property {string} [baseUrl] the gateway's origin; by default that of the page
 * @property {boolean} [useCookies] use the session's cookie instead of a token
 */
/**
 * @typedef {object} StateDetails
 * @property {boolean} shared another tab holds the connection
 * @property {number} [retryInMs] of `waiting`
 * @property {GatewayError | null} [error] of `waiting` and `closed`: why
 * @property {string} [reason] what the gateway gave as its reason, if it did
 */
/**
 * @typedef {object} StreamOptions
 * @property {boolean} [shareTabs] one connection for all tabs; by default true
 * @property {string} [lastEventId] resume behind this alert
 * @property {Storage | null} [storage] keeps the place over a reload; by default `sessionStorage`
 * @property {number} [heartbeatSeconds] the longest silence until the gateway has told its own; 15
 * @property {(alert: any, about: { id: string }) => void} [onAlert] each alert once, in order
 * @property {(info: any) => void} [onGap] alerts were missed for good: load what is shown anew
 * @property {(state: StreamState, details: StateDetails) => void} [onState]
 * @property {(info: any) => void} [onTenantState] the tenant is read-only, or no longer; its subscription changed
 * @property {(info: any) => void} [onTokenExpiring] the token of this tab's connection ends soon
 * @property {(error: GatewayError) => void} [onError] the stream has closed, and why
 */
/**
 * @typedef {object} SocketOptions
 * @property {Record<string, string> | URLSearchParams} [query] for the training service
 * @property {string[]} [protocols] subprotocols to offer to the training service
 * @property {(data: string | ArrayBuffer) => void} [onMessage]
 * @property {() => void} [onOpen]
 * @property {(info: { code: number, reason: string, willRetry: boolean }) => void} [onClose]
 * @property {(error: GatewayError) => void} [onError] the socket has closed for good, and why
 */
/** @typedef {{ type: string, data: string, id: string | null }} StreamEvent */

/** Why the gateway, or the way to it, said no. Decide by `code`; `message` is for people. */
export class GatewayError extends Error {
  /** @param {{ code: string, status?: number, detail?: string, problem?: any, retryAfterS?: number | null }} about */
  constructor({ code, status = 0, detail = "", problem = null, retryAfterS = null }) {
    super(detail || code);
    this.name = "GatewayError";
    /** The problem's code; where there is none `network`, `silent`, `stream-invalid`, `user-changed` or `http-<status>`. */
    this.code = code;
    /** The HTTP status; 0 where there was no answer. */
    this.status = status;
    /** The whole problem document (RFC 9457), or null. */
    this.problem = problem;
    /** Seconds after which to try again, where the gateway said so. */
    this.retryAfterS = retryAfterS;
  }

  /** Whether the same may work later without anybody doing anything, as where a hotel's sign-in page answered. */
  get temporary() {
    return TEMPORARY.has(this.status) || this.status >= 500 || (this.status >= 200 && this.status < 300);
  }

  /** The gateway's number of the request, for reports. */
  get requestId() {
    return this.problem?.request_id ?? null;
  }

  /**
   * What an answer other than the expected one says.
   * @param {Response} answer
   */
  static async from(answer) {
    const problem = isProblem(answer) ? await answer.json().catch(() => null) : null;
    const header = Number(answer.headers.get("Retry-After") ?? NaN);
    const wait = Number(problem?.retry_after ?? header); // none, or 0, says nothing of when
    return new GatewayError({
      code: typeof problem?.code === "string" ? problem.code : `http-${answer.status}`,
      status: answer.status,
      detail: problem?.detail ?? problem?.title ?? "",
      problem,
      retryAfterS: wait > 0 ? Math.min(wait, 3600) : null,
    });
  }

  /**
   * Any failure as one of these.
   * @param {unknown} error
   */
  static of(error) {
    if (error instanceof GatewayError) return error;
    return new GatewayError({ code: "network", detail: error instanceof Error ? error.message : String(error) });
  }
}

/**
 * Splits the bytes of an event stream into events, as the HTML standard has it: lines end with CR, LF or CRLF,
 * and chunks anywhere.
 */
export class EventParser {
  #decoder = new TextDecoder(); // takes away a byte order mark at the beginning
  #rest = "";
  #afterCr = false;
  /** @type {string[]} */ #data = [];
  #size = 0;
  #type = "";
  /** @type {string | null} */ #id = null;
  /** @type {(event: StreamEvent) => void} */ #onEvent;
  /** @type {(retryMs: number) => void} */ #onRetry;

  /** @param {(event: StreamEvent) => void} onEvent @param {(retryMs: number) => void} [onRetry] */
  constructor(onEvent, onRetry = () => {}) {
    this.#onEvent = onEvent;
    this.#onRetry = onRetry;
  }

  /** @param {Uint8Array} bytes */
  push(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return;
    if (this.#afterCr && text[0] === "\n") text = text.slice(1);
    this.#afterCr = text.endsWith("\r");
    const end = /\r\n|\r|\n/g;
    end.lastIndex = this.#rest.length;
    text = this.#rest + text;
    let from = 0;
    for (let found = end.exec(text); found !== null; found = end.exec(text)) {
      this.#line(text.slice(from, found.index));
      from = end.lastIndex;
    }
    this.#rest = text.slice(from);
    if (this.#rest.length + this.#size > MAX_EVENT) {
      throw new GatewayError({ code: "stream-invalid", detail: "An event of the stream is too long." });
    }
  }

  /** @param {string} line */
  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return undefined; // a comment
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") {
      this.#data.push(value);
      this.#size += value.length + 1;
    } else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.#onRetry(Math.min(Number(value), MAX_RETRY_MS));
    return undefined;
  }

  #dispatch() {
    const event = { type: this.#type || "message", data: this.#data.join("\n"), id: this.#id };
    const empty = this.#data.length === 0;
    this.#data = [];
    this.#size = 0;
    this.#type = "";
    this.#id = null;
    if (!empty) this.#onEvent(event);
  }
}

/** Whom a page speaks for, and how it shows that to the gateway. */
class Access {
  /** User and tenant for whom this began. @type {string | null} */ #whom = null;
  /** What was asked for them and not used for a connection. @type {string | null} */ #unused = null;
  #askedAt = 0;

  /** @param {AccessOptions} options */
  constructor({ token, getToken, tenantId, baseUrl = globalThis.location?.origin, useCookies = false }) {
    if (!useCookies && !token && !getToken) throw new TypeError("Give token, getToken or useCookies.");
    if (getToken && typeof getToken !== "function") throw new TypeError("getToken must be a function.");
    if (!baseUrl || baseUrl === "null") throw new TypeError("Give baseUrl: the gateway's origin.");
    /** @type {TokenSource} */ this.source = getToken ?? (() => token ?? null);
    this.canRenew = Boolean(getToken) || useCookies;
    this.tenantId = tenantId;
    this.base = new URL(baseUrl);
    this.useCookies = useCookies;
  }

  /** From here on it may be another user, or another tenant. */
  begin() {
    this.#whom = null;
    this.#unused = null;
  }

  /**
   * What tells this user and tenant from others, for tabs that share; null where that can't be known.
   * @param {AbortSignal} signal @param {Attempts} attempts
   */
  async identity(signal, attempts) {
    const given = this.useCookies ? await this.#session(signal) : await this.#token(signal, attempts);
    const claims = this.useCookies ? parsed(given) : claimsOf(given);
    this.#unused = given;
    this.#askedAt = Date.now();
    const user = userOf(claims);
    const tenant = this.tenantId ?? claims?.tenant_id;
    return user && tenant ? `${this.base.origin}:${user}:${tenant}` : null;
  }

  /**
   * The address that opens a stream or socket, once.
   * @param {string} path @param {AbortSignal} signal @param {Attempts} attempts
   */
  async entry(path, signal, attempts) {
    const url = new URL(path, this.base);
    const unused = since(this.#askedAt) < UNUSED_MS ? this.#unused : null;
    this.#unused = null;
    if (this.useCookies) {
      if (unused === null) await this.#session(signal); // another tab may have signed somebody else in
      if (this.tenantId) url.searchParams.set("tenant_id", this.tenantId);
      return url;
    }
    const token = attempts.renew || unused === null ? await this.#token(signal, attempts) : unused;
    /** @type {Record<string, string>} */
    const headers = { Authorization: `Bearer ${token}` };
    if (this.tenantId) headers["X-Tenant-ID"] = this.tenantId;
    const init = { method: "POST", headers, credentials: /** @type {const} */ ("omit") };
    const answer = await ask(new URL(TICKET_PATH, this.base), init, signal);
    if (answer.status !== 201) throw await GatewayError.from(answer);
    url.searchParams.set("ticket", (await answer.json()).ticket);
    return url;
  }

  /**
   * A token of the same user. That another one is needed stays true until one was given.
   * @param {AbortSignal} signal @param {Attempts} attempts
   */
  async #token(signal, attempts) {
    const token = await promised(this.source({ renew: attempts.renew }), signal);
    attempts.renew = false;
    if (!token) throw new GatewayError({ code: "token-missing", status: 401, detail: "Nobody is signed in." });
    this.#check(claimsOf(token));
    return token;
  }

  /** What the gateway tells of the cookie. @param {AbortSignal} signal */
  async #session(signal) {
    const answer = await ask(new URL(SESSION_PATH, this.base), { credentials: "include" }, signal);
    if (answer.status !== 200) throw await GatewayError.from(answer);
    const said = await answer.text();
    this.#check(parsed(said));
    return said;
  }

  /** @param {any} claims of those who are signed in at this moment */
  #check(claims) {
    const whom = JSON.stringify([userOf(claims), this.tenantId ?? claims?.tenant_id]);
    if (this.#whom !== null && whom !== this.#whom) {
      const detail = "Somebody else has signed in, or for another tenant.";
      throw new GatewayError({ code: "user-changed", status: 401, detail });
    }
    this.#whom = whom;
  }
}

/** Decides when to try again, or not at all. */
class Attempts {
  #failures = 0;
  #renewed = false;
  #tooEarly = false;
  /** The token for the next attempt must be another one. */
  renew = false;
  /** The gateway's `retry:`, milliseconds. */
  retryMs = FIRST_DELAY_MS;

  /** @param {number} lastedMs how long the connection was open; 0 where it never was */
  ended(lastedMs) {
    if (lastedMs >= WORKED_MS) {
      this.#failures = 0;
      this.#renewed = this.#tooEarly = false;
    }
  }

  /** Whether a token that was refused may be replaced by a new one: once, until a connection has worked. */
  mayRenew() {
    if (this.#renewed) return false;
    this.#renewed = true;
    this.renew = true;
    return true;
  }

  /**
   * Milliseconds until the next attempt: as long as the gateway says and up to half as long again, else the
   * stream's own `retry:`, doubled with every failure in a row and with full jitter.
   * @param {number | null} [wishedMs]
   */
  delay(wishedMs = null) {
    const failures = this.#failures++;
    if (wishedMs !== null) return Math.max(MIN_DELAY_MS, wishedMs * (1 + Math.random() / 2));
    if (failures === 0) return Math.max(MIN_DELAY_MS, this.retryMs * (0.5 + Math.random()));
    const most = Math.max(this.retryMs, Math.min(MAX_DELAY_MS, this.retryMs * 2 ** failures));
    return Math.max(MIN_DELAY_MS, Math.random() * most);
  }

  /**
   * What a failed attempt leads to: milliseconds to wait, or the error again where trying on is of no use.
   * @param {GatewayError} error @param {boolean} canRenew
   */
  after(error, canRenew) {
    if (error.status === 401 && canRenew) {
      if (this.mayRenew()) return 0;
      if (isStale(error) && !this.#tooEarly) {
        this.#tooEarly = this.renew = true; // the new one was made in the very second of the change
        return this.delay(STALE_MS);
      }
    }
    if (!error.temporary) throw error;
    return this.delay(error.retryAfterS === null ? null : error.retryAfterS * 1000);
  }
}

/** A wait that may be cut short. */
class Pause {
  /** @type {(() => void) | null} */ #wake = null;
  #patient = false;

  /**
   * Ends after so many milliseconds, when told to, or when `signal` says so. `patient`: only `end(true)` ends it.
   * @param {number} ms @param {AbortSignal} signal @param {boolean} patient
   */
  async wait(ms, signal, patient) {
    if (signal.aborted) return;
    this.#patient = patient;
    await new Promise((/** @type {(value?: any) => void} */ resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      signal.addEventListener("abort", this.#wake, { once: true });
    });
    if (this.#wake) signal.removeEventListener("abort", this.#wake);
    this.#wake = null;
  }

  /** @param {boolean} [surely] */
  end(surely = false) {
    if (surely || !this.#patient) this.#wake?.();
  }
}

/** A tenant's alerts, live, and those that were missed first. */
export class AlertStream {
  /** @type {StreamOptions} */ #options;
  #access;
  #attempts = new Attempts();
  #pause = new Pause();
  /** @type {StreamState} */ #state = "closed";
  /** @type {StateDetails} */ #details = { shared: false };
  /** @type {string | null} */ #last = null;
  /** @type {Storage | null} */ #storage;
  #storageKey = "";
  /** @type {AbortController | null} */ #life = null;
  /** The page is left with it open, and may be come back to. */
  #left = false;
  /** @type {AbortController | null} */ #connection = null;
  #heardAt = 0;
  #heartbeatMs;
  /** @type {Tabs | null} */ #tabs = null;
  /** @type {StreamEvent | null} */ #tenantState = null;
  /** @type {CatchUp | null} */ #catchUp = null;

  /** @param {AccessOptions & StreamOptions} options */
  constructor(options) {
    this.#options = checked(options, ["onAlert", "onGap", "onState", "onTenantState", "onTokenExpiring", "onError"]);
    this.#access = new Access(options);
    this.#last = options.lastEventId || null;
    this.#storage = options.storage === undefined ? defaultStorage() : options.storage;
    this.#heartbeatMs = (options.heartbeatSeconds ?? HEARTBEAT_MS / 1000) * 1000;
    if (!(this.#heartbeatMs > 0)) throw new TypeError("heartbeatSeconds must be a number above 0.");
  }

  /** The `id` of the newest alert that this tab was given, or null. */
  get lastEventId() {
    return this.#last;
  }

  /** @returns {StreamState} */
  get state() {
    return this.#state;
  }

  /** Begin, or begin again after `close` or an error; harmless while it is open. */
  open() {
    if (this.#life) return;
    const life = new AbortController();
    this.#life = life;
    this.#attempts = new Attempts();
    if (!this.#left) this.#access.begin(); // a page that is come back to is still that of who left it
    this.#left = false;
    listen(life.signal, () => this.#awake());
    globalThis.addEventListener?.("pagehide", (event) => this.#hide(event.persisted), { signal: life.signal });
    this.#run(life.signal).then(
      () => {},
      (error) => this.#fail(GatewayError.of(error), life),
    );
  }

  /** End it. No callback is called any more, but for `onState("closed")`. */
  close() {
    if (!this.#life && !this.#left) return;
    this.#left = false;
    this.#end();
    this.#say("closed");
  }

  /** Drop the connection, whichever tab holds it, and connect anew at once. */
  reconnect() {
    if (!this.#life) this.open();
    else if (this.#tabs && !this.#tabs.leading) this.#tabs.post({ kind: "again" });
    else this.#again();
  }

  #end() {
    this.#life?.abort();
    this.#life = null;
    this.#tabs = null;
    this.#catchUp = null;
    this.#connection = null;
  }

  /** @param {GatewayError} error @param {AbortController} life */
  #fail(error, life) {
    if (this.#life !== life) return;
    this.#end();
    this.#say("closed", { error });
    this.#call(this.#options.onError, error);
  }

  /**
   * The page is left, but kept by the browser in case somebody comes back to it: it must not hold what other tabs need.
   * @param {boolean} kept
   */
  #hide(kept) {
    if (!kept) return;
    this.#end();
    this.#left = true;
    globalThis.addEventListener("pageshow", () => this.#left && this.open(), { once: true });
  }

  #again() {
    this.#connection?.abort();
    this.#pause.end(true);
  }

  /** The network is back, or somebody looks at this tab again. */
  #awake() {
    if (this.#tabs && !this.#tabs.leading) return this.#tabs.post({ kind: "wake" });
    this.#pause.end();
    const silent = since(this.#heardAt) > this.#heartbeatMs * 1.3;
    if (silent && (this.#state === "open" || this.#state === "degraded")) this.#connection?.abort();
    return undefined;
  }

  /** @param {AbortSignal} signal */
  async #run(signal) {
    this.#say("connecting");
    const identity = await this.#identify(signal);
    if (signal.aborted) return;
    if (identity !== null) this.#restore(`bakerygw:alerts:${identity}`);
    const shares = (this.#options.shareTabs ?? true) && identity !== null && canShare();
    if (!shares) return this.#lead(signal);
    try {
      this.#tabs = new Tabs(this.#storageKey, signal, {
        lead: (reign) => this.#lead(reign),
        follow: () => this.#post({ kind: "join" }),
        hear: (message) => this.#hear(message),
        silenceMs: this.#heartbeatMs * HEARTBEATS_MISSED,
      });
      return await this.#tabs.run();
    } catch (error) {
      if (!(error instanceof DOMException && error.name === "SecurityError")) throw error;
      // A page without an origin, such as a sandboxed frame, has no locks; one that may store nothing, no channel.
      this.#tabs = null;
      return this.#lead(signal);
    }
  }

  /** @param {AbortSignal} signal @returns {Promise<string | null>} */
  async #identify(signal) {
    for (;;) {
      try {
        return await this.#access.identity(signal, this.#attempts);
      } catch (error) {
        if (signal.aborted) return null;
        await this.#wait(GatewayError.of(error), signal);
      }
    }
  }

  /** @param {string} key */
  #restore(key) {
    if (this.#storageKey !== "" && this.#storageKey !== key) this.#last = this.#tenantState = null; // another's
    this.#storageKey = key;
    try {
      this.#last ??= this.#storage?.getItem(key) ?? null;
    } catch {
      this.#storage = null;
    }
  }

  /**
   * Hold the connection until `signal` says otherwise. Throws what trying on is of no use for.
   * @param {AbortSignal} signal
   */
  async #lead(signal) {
    this.#catchUp?.stop();
    this.#catchUp = null;
    while (!signal.aborted) {
      this.#say("connecting");
      const connection = linked(signal);
      this.#connection = connection;
      const attempt = { opened: 0, said: /** @type {any} */ (null) };
      try {
        await this.#read(connection.signal, (event) => this.#lived(event, attempt));
      } catch (error) {
        attempt.said ??= { error: connection.signal.aborted ? null : GatewayError.of(error) };
      }
      const asked = connection.signal.aborted;
      connection.abort();
      if (signal.aborted) return;
      await this.#ended(attempt, asked, signal);
    }
  }

  /**
   * @param {{ opened: number, said: any }} attempt @param {boolean} asked to be dropped by this page
   * @param {AbortSignal} signal
   */
  async #ended(attempt, asked, signal) {
    const { reason, retry, error } = attempt.said ?? {};
    const stale = reason === "token-stale"; // what opened it was good, so this is no refusal of it
    this.#attempts.ended(attempt.opened ? (stale ? WORKED_MS : since(attempt.opened)) : 0);
    if (asked && !reason) return undefined;
    if (error && !attempt.opened) return this.#wait(error, signal);
    const renewed = String(reason).startsWith("token-") && this.#access.canRenew && this.#attempts.mayRenew();
    if (renewed && !stale) return undefined;
    const least = renewed ? STALE_MS : 0;
    const wishedMs = retry > 0 ? Math.max(least, Math.min(retry, MAX_RETRY_MS)) : least || null;
    const delay = this.#attempts.delay(wishedMs);
    this.#say("waiting", { retryInMs: delay, error: error ?? null, reason });
    return this.#pause.wait(delay, signal, wishedMs !== null);
  }

  /**
   * Another token may be good; and where a ticket was not, another ticket.
   * @param {GatewayError} error
   */
  #mayAskAgain(error) {
    return this.#access.canRenew || error.problem?.instance === STREAM_PATH;
  }

  /** @param {GatewayError} error @param {AbortSignal} signal */
  async #wait(error, signal) {
    const delay = this.#attempts.after(error, this.#mayAskAgain(error));
    if (delay === 0) return;
    this.#say("waiting", { retryInMs: delay, error });
    await this.#pause.wait(delay, signal, error.retryAfterS !== null || isStale(error));
  }

  /**
   * Connect once, behind this tab's last alert, and read until it ends. Throws `GatewayError`.
   * @param {AbortSignal} signal @param {(event: StreamEvent) => void} onEvent
   */
  async #read(signal, onEvent) {
    const url = await this.#access.entry(STREAM_PATH, signal, this.#attempts);
    if (this.#last !== null) url.searchParams.set("last_event_id", this.#last);
    const watch = new Watch(signal, () => this.#heartbeatMs * HEARTBEATS_MISSED);
    try {
      const credentials = this.#access.useCookies ? "include" : "omit";
      const headers = { Accept: "text/event-stream" };
      const init = { ...STRAIGHT, headers, credentials, signal: watch.signal };
      const answer = await fetch(url, /** @type {RequestInit} */ (init));
      if (answer.status !== 200 || !answer.body) throw await GatewayError.from(answer);
      if (!isStream(answer)) throw new GatewayError({ code: "stream-invalid", detail: "What answered is no gateway." });
      await this.#pump(answer.body.getReader(), watch, onEvent);
    } catch (error) {
      throw watch.silent ? new GatewayError({ code: "silent", detail: "The stream went silent." }) : error;
    } finally {
      watch.end();
    }
  }

  /**
   * @param {ReadableStreamDefaultReader<Uint8Array>} reader @param {Watch} watch
   * @param {(event: StreamEvent) => void} onEvent
   */
  async #pump(reader, watch, onEvent) {
    const parser = new EventParser(
      (event) => {
        if (!watch.signal.aborted) onEvent(event);
      },
      (retryMs) => {
        this.#attempts.retryMs = Math.max(MIN_DELAY_MS, retryMs);
      },
    );
    for (;;) {
      const { done, value } = await reader.read();
      if (done || watch.signal.aborted) return;
      this.#heardAt = Date.now();
      parser.push(value);
      watch.heard(); // the greeting tells how long the next sign of life may take
      if (this.#tabs?.leading) this.#post({ kind: "beat" });
    }
  }

  /**
   * An event of the connection that this tab holds.
   * @param {StreamEvent} event @param {{ opened: number, said: any }} attempt
   */
  #lived(event, attempt) {
    if (event.type === "bye") {
      attempt.said = parsed(event.data) ?? {};
      return;
    }
    if (event.type === "token-expiring") {
      this.#call(this.#options.onTokenExpiring, parsed(event.data) ?? {});
      return;
    }
    if (event.type === "hello") {
      const seconds = Number(parsed(event.data)?.heartbeat_seconds);
      if (seconds > 0) this.#heartbeatMs = seconds * 1000;
    }
    attempt.opened ||= Date.now();
    if (event.type === "degraded") {
      this.#say("degraded", parsed(event.data) ?? {});
      return;
    }
    if (event.type === "hello" || this.#state === "connecting") this.#say("open"); // a hello ends `degraded`, too
    const before = this.#last ?? event.id;
    this.#take(event);
    if (this.#tabs?.leading) this.#post({ kind: "event", event, before });
  }

  /**
   * Give an event to the page, unless it is one that this tab had.
   * @param {StreamEvent} event
   */
  #take(event) {
    const info = parsed(event.data);
    if (event.type === "alert" && event.id !== null) {
      if (this.#last !== null && !isBehind(this.#last, event.id)) return;
      this.#moveTo(event.id);
      if (info !== undefined) this.#call(this.#options.onAlert, info, { id: event.id });
    } else if (event.type === "hello") {
      // With a place of its own, this tab is moved by the alerts that follow, or by the gap, and not beyond them.
      if (this.#last === null && event.id) this.#moveTo(event.id);
    } else if (event.type === "gap") {
      if (event.id === this.#last) return;
      const before = this.#last;
      if (event.id) this.#moveTo(event.id);
      this.#call(this.#options.onGap, { ...info, lastEventId: before });
    } else if (event.type === "tenant-state") {
      this.#tenantState = event;
      this.#call(this.#options.onTenantState, info ?? {});
    }
  }

  /** @param {string} id */
  #moveTo(id) {
    this.#last = id;
    try {
      if (this.#storageKey) this.#storage?.setItem(this.#storageKey, id);
    } catch {
      this.#storage = null; // full, or not allowed: the place is kept in memory
    }
  }

  /** @param {any} message */
  #post(message) {
    this.#tabs?.post(message);
  }

  /**
   * What another tab says.
   * @param {any} message
   */
  #hear(message) {
    if (this.#tabs?.leading) return this.#answer(message);
    if (message.kind === "event") this.#overheard(message.event, message.before);
    else if (message.kind === "state") this.#say(message.state, restored(message.details));
    else if (message.kind === "welcome" && message.to === this.#tabs?.id) this.#welcome(message);
    return undefined;
  }

  /** @param {any} message */
  #answer(message) {
    if (message.kind === "again") this.#again();
    else if (message.kind === "wake") this.#awake();
    if (message.kind === "join") this.#greet(message.from, this.#tenantState);
    // A browser may let a frozen tab hear messages, but neither read nor have timers: then another one shall lead.
    else if (message.kind === "ping") setTimeout(() => this.#tabs?.leading && this.#greet(message.from, null), 0);
  }

  /**
   * Tell a tab how it stands.
   * @param {string} to @param {StreamEvent | null} tenantState
   */
  #greet(to, tenantState) {
    this.#post({ kind: "welcome", to, state: this.#state, details: plain(this.#details), last: this.#last, tenantState });
  }

  /** @param {any} message */
  #welcome(message) {
    if (this.#state !== message.state || !this.#details.shared) this.#say(message.state, restored(message.details));
    if (message.tenantState) this.#take(message.tenantState);
    if (message.last === null) return;
    if (this.#last === null) this.#moveTo(message.last);
    else if (isBehind(this.#last, message.last)) this.#catchUpTo(message.last);
  }

  /**
   * An event that the connection of another tab brought.
   * @param {StreamEvent} event @param {string | null} [before] where that tab was when it came
   */
  #overheard(event, before = null) {
    if (this.#catchUp) {
      this.#catchUp.later(event);
      return;
    }
    const last = this.#last;
    if (last === null || event.id === null) this.#take(event);
    else if (event.type === "alert") {
      if (follows(last, event.id)) this.#take(event);
      else if (isBehind(last, event.id)) this.#catchUpTo(event.id);
    } else if (event.type === "gap") {
      // What comes late, behind what this tab fetched itself, would lead it back.
      if (isBehind(last, event.id) || parsed(event.data)?.reason === "rewound") this.#take(event);
    } else if (before !== null && isBehind(last, before)) this.#catchUpTo(before);
  }

  /**
   * Fetch over a connection of this tab's own, closed at once, what the others had before it was there.
   * @param {string} target
   */
  #catchUpTo(target) {
    if (this.#catchUp || !this.#life) return;
    const life = this.#life;
    const catchUp = new CatchUp(life.signal, target, {
      last: () => this.#last,
      read: (signal, onEvent) => this.#read(signal, onEvent),
      take: (event) => this.#take(event),
      pause: (error, signal) => sleep(this.#attempts.after(error, this.#mayAskAgain(error)), signal),
    });
    this.#catchUp = catchUp;
    catchUp.run().then(
      (waiting) => {
        if (this.#catchUp !== catchUp) return;
        this.#catchUp = null;
        this.#attempts.ended(WORKED_MS);
        for (const event of waiting) this.#overheard(event);
      },
      (error) => {
        if (this.#catchUp === catchUp) this.#fail(GatewayError.of(error), life);
      },
    );
  }

  /** @param {StreamState} state @param {Partial<StateDetails>} [more] */
  #say(state, more = {}) {
    const following = this.#tabs !== null && !this.#tabs.leading;
    const details = { ...more, shared: following };
    if (state === this.#state && following === this.#details.shared && state !== "waiting") return;
    this.#state = state;
    this.#details = details;
    if (!following) this.#post({ kind: "state", state, details: plain(details) });
    this.#call(this.#options.onState, state, details);
  }

  /** @param {((...args: any[]) => void) | undefined} callback @param {any[]} args */
  #call(callback, ...args) {
    try {
      callback?.(...args);
    } catch (error) {
      report(error);
    }
  }
}

/** The tabs of one user and tenant: one leads and holds the connection, the others follow. */
class Tabs {
  id = crypto.getRandomValues(new Uint32Array(3)).join("-");
  leading = false;
  #heardAt = Date.now();
  #asked = false;
  /** @type {AbortController | null} */ #queue = null;

  /**
   * @param {string} name @param {AbortSignal} signal
   * @param {{ lead: (reign: AbortSignal) => Promise<void>, follow: () => void, hear: (message: any) => void,
   *   silenceMs: number }} told
   */
  constructor(name, signal, told) {
    this.name = name;
    this.signal = signal;
    this.told = told;
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => {
      if (signal.aborted || !data || data.from === this.id) return;
      this.#heardAt = Date.now();
      this.#asked = false;
      told.hear(data);
    };
    signal.addEventListener("abort", () => this.channel.close(), { once: true });
  }

  /** @param {any} message */
  post(message) {
    if (!this.signal.aborted) this.channel.postMessage({ ...message, from: this.id });
  }

  /** Follow, and lead when it is this tab's turn; ends with the signal. Throws what `lead` throws. */
  async run() {
    const timer = setInterval(() => this.#look(), PATIENCE_MS);
    try {
      for (let steal = false; !this.signal.aborted; ) {
        this.told.follow();
        steal = await this.#reign(steal);
      }
    } finally {
      clearInterval(timer);
    }
  }

  /**
   * Wait for the lock and lead as long as it is ours.
   * @param {boolean} steal
   * @returns {Promise<boolean>} whether to take it next time from a tab that does not answer
   */
  async #reign(steal) {
    const queue = linked(this.signal);
    const reign = linked(this.signal);
    this.#queue = queue;
    let failure;
    try {
      const options = steal ? { steal: true } : { signal: queue.signal };
      await navigator.locks.request(this.name, options, async () => {
        this.leading = true;
        try {
          await this.told.lead(reign.signal);
        } catch (error) {
          failure = error ?? new Error("failed");
        }
      });
    } catch (error) {
      // Given up here to steal it, or stolen by a tab that this one did not answer.
      if (!(error instanceof DOMException && error.name === "AbortError")) failure = error;
    }
    this.leading = false;
    reign.abort();
    if (failure) throw failure;
    const impatient = queue.signal.aborted;
    queue.abort();
    return impatient;
  }

  #look() {
    if (this.leading || since(this.#heardAt) < this.told.silenceMs) return;
    if (this.#asked) this.#queue?.abort();
    else this.post({ kind: "ping" });
    this.#asked = !this.#asked;
  }
}

/** What a following tab missed, read over a connection of its own that ends when it is level with the others. */
class CatchUp {
  /** @type {StreamEvent[]} */ #waiting = [];
  #level;
  /**
   * @param {AbortSignal} signal @param {string} target
   * @param {{ last: () => string | null, take: (event: StreamEvent) => void,
   *   read: (signal: AbortSignal, onEvent: (event: StreamEvent) => void) => Promise<void>,
   *   pause: (error: GatewayError, signal: AbortSignal) => Promise<void> }} by
   */
  constructor(signal, target, by) {
    this.#level = linked(signal);
    this.target = target;
    this.by = by;
  }

  /** @param {StreamEvent} event */
  later(event) {
    if (this.#waiting.push(event) <= MAX_BEHIND) return;
    this.#waiting = []; // so much that the connection of its own brings it sooner
    this.target = event.id ?? this.target;
  }

  stop() {
    this.#level.abort();
  }

  /** @returns {Promise<StreamEvent[]>} what the others brought meanwhile */
  async run() {
    const { signal } = this.#level;
    while (!signal.aborted) {
      try {
        await this.by.read(signal, (event) => this.#take(event));
        if (!signal.aborted) await sleep(FIRST_DELAY_MS, signal);
      } catch (error) {
        if (!signal.aborted) await this.by.pause(GatewayError.of(error), signal);
      }
    }
    return this.#waiting;
  }

  /** @param {StreamEvent} event */
  #take(event) {
    if (event.type === "alert" || event.type === "gap") this.by.take(event);
    const last = this.by.last();
    if (last !== null && !isBehind(last, this.target)) this.#level.abort();
  }
}

/** Ends a connection on which nothing is heard for too long. */
class Watch {
  silent = false;
  #controller;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;

  /** @param {AbortSignal} signal @param {() => number} limitMs */
  constructor(signal, limitMs) {
    this.#controller = linked(signal);
    this.limitMs = limitMs;
    this.heard();
  }

  get signal() {
    return this.#controller.signal;
  }

  heard() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.silent = true;
      this.#controller.abort();
    }, this.limitMs());
  }

  end() {
    clearTimeout(this.#timer);
    this.#controller.abort();
  }
}

/** A socket to the training service that comes back by itself. */
export class TrainingSocket {
  /** @type {SocketOptions} */ #options;
  #access;
  #attempts = new Attempts();
  #pause = new Pause();
  /** @type {AbortController | null} */ #life = null;
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {(string | ArrayBuffer | ArrayBufferView | Blob)[]} */ #queue = [];
  #queued = 0;

  /** @param {AccessOptions & SocketOptions} options */
  constructor(options) {
    this.#options = checked(options, ["onMessage", "onOpen", "onClose", "onError"]);
    this.#access = new Access(options);
  }

  /** Whether what is sent goes out at once. */
  get isOpen() {
    return this.#socket?.readyState === 1;
  }

  /** Begin, or begin again after it has closed; harmless while it is open or comes back. */
  open() {
    if (this.#life) return;
    const life = new AbortController();
    this.#life = life;
    this.#attempts = new Attempts();
    this.#access.begin();
    listen(life.signal, () => this.#pause.end());
    this.#run(life.signal).then(
      () => this.#over(life),
      (error) => {
        if (this.#over(life)) this.#call(this.#options.onError, GatewayError.of(error));
      },
    );
  }

  /** @param {AbortController} life @returns {boolean} whether it was this life that is over */
  #over(life) {
    if (this.#life !== life) return false;
    life.abort();
    this.#life = null;
    this.#queue = [];
    this.#queued = 0;
    return true;
  }

  /**
   * Send now or, while the socket comes back, as soon as it is there.
   * @param {string | ArrayBuffer | ArrayBufferView | Blob} data
   * @returns {boolean} false if it was not taken: the socket is closed, or too much waits already
   * @throws {TypeError} for anything else, which a WebSocket would send as "[object Object]"
   */
  send(data) {
    const size = sizeOf(data);
    if (!this.#life) return false;
    if (this.#socket?.readyState === 1) {
      if (this.#socket.bufferedAmount > MAX_UNSENT_BYTES) return false;
      this.#socket.send(/** @type {any} */ (data));
      return true;
    }
    if (this.#queue.length >= MAX_QUEUED || this.#queued + size > MAX_QUEUED_BYTES) return false;
    this.#queue.push(data);
    this.#queued += size;
    return true;
  }

  /** End it; `onClose` follows once the other side has agreed. What still waited to be sent is dropped. */
  close() {
    const life = this.#life;
    if (life) this.#over(life);
  }

  /** @param {AbortSignal} signal */
  async #run(signal) {
    while (!signal.aborted) {
      let url;
      try {
        url = await this.#access.entry(TRAINING_PATH, signal, this.#attempts);
      } catch (error) {
        if (signal.aborted) return;
        const failed = GatewayError.of(error);
        const delay = this.#attempts.after(failed, this.#access.canRenew);
        await this.#pause.wait(delay, signal, failed.retryAfterS !== null || isStale(failed));
        continue;
      }
      if (signal.aborted) return;
      const { code, reason, lastedMs } = await this.#converse(url, signal);
      const stale = code === 1008 && reason === "token stale";
      this.#attempts.ended(stale ? WORKED_MS : lastedMs);
      const sentAway = code === 1008 && reason === "disconnected"; // by operators, and not for its token
      const refused = code === 1008 && !sentAway && !signal.aborted;
      const renewable = refused && this.#access.canRenew && this.#attempts.mayRenew();
      const willRetry = !signal.aborted && (renewable || sentAway || RETRIED_CLOSES.has(code));
      this.#call(this.#options.onClose, { code, reason, willRetry });
      if (!willRetry) return;
      const delay = renewable && !stale ? MIN_DELAY_MS : this.#attempts.delay(stale ? STALE_MS : null);
      await this.#pause.wait(delay, signal, stale || sentAway || code === 1013);
    }
  }

  /**
   * @param {URL} url @param {AbortSignal} signal
   * @returns {Promise<{ code: number, reason: string, lastedMs: number }>}
   */
  #converse(url, signal) {
    for (const [name, value] of new URLSearchParams(this.#options.query ?? {})) url.searchParams.append(name, value);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url, this.#options.protocols ?? []);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    let openedAt = 0;
    const leave = () => socket.close(1000);
    signal.addEventListener("abort", leave, { once: true });
    socket.onopen = () => {
      openedAt = Date.now();
      this.#flush(socket);
      this.#call(this.#options.onOpen);
    };
    socket.onmessage = ({ data }) => {
      if (!signal.aborted) this.#call(this.#options.onMessage, data);
    };
    return new Promise((resolve) => {
      const over = (/** @type {{ code: number, reason: string }} */ { code, reason }) => {
        signal.removeEventListener("abort", leave);
        if (this.#socket === socket) this.#socket = null;
        resolve({ code, reason, lastedMs: openedAt ? since(openedAt) : 0 });
      };
      socket.onclose = over;
      // Of a socket that the page's Content-Security-Policy forbids Chromium tells the error, and never the end.
      socket.onerror = () => setTimeout(over, FIRST_DELAY_MS, { code: 1006, reason: "" });
    });
  }

  /** @param {WebSocket} socket */
  #flush(socket) {
    const queue = this.#queue;
    this.#queue = [];
    this.#queued = 0;
    for (const data of queue) socket.send(/** @type {any} */ (data));
  }

  /** @param {((...args: any[]) => void) | undefined} callback @param {any[]} args */
  #call(callback, ...args) {
    try {
      callback?.(...args);
    } catch (error) {
      report(error);
    }
  }
}

/**
 * The options, if these of them are functions where they are given.
 * @template {object} T @param {T} options @param {string[]} callbacks @returns {T}
 */
function checked(options, callbacks) {
  if (typeof options !== "object" || options === null) throw new TypeError("Give an object with the options.");
  for (const name of callbacks) {
    const given = /** @type {any} */ (options)[name] ?? undefined;
    if (given !== undefined && typeof given !== "function") throw new TypeError(`${name} must be a function.`);
  }
  return options;
}

/** @param {Response} answer */
function isStream(answer) {
  return (answer.headers.get("Content-Type") ?? "").startsWith("text/event-stream");
}

/** @param {Response} answer */
function isProblem(answer) {
  return (answer.headers.get("Content-Type") ?? "").startsWith("application/problem+json");
}

/**
 * What a token says of itself, unverified: only to tell users apart.
 * @param {string} token
 */
function claimsOf(token) {
  try {
    const payload = atob((token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(payload, (letter) => letter.charCodeAt(0))));
  } catch {
    return null;
  }
}

/** @param {any} claims @returns {string | null} */
function userOf(claims) {
  return claims?.user_id ?? claims?.sub ?? null;
}

/**
 * A request with an end. Throws `GatewayError`.
 * @param {URL} url @param {RequestInit} init @param {AbortSignal} signal
 */
async function ask(url, init, signal) {
  const limit = new Watch(signal, () => ANSWER_MS);
  try {
    const answer = await fetch(url, /** @type {RequestInit} */ ({ ...STRAIGHT, ...init, signal: limit.signal }));
    const body = await answer.arrayBuffer();
    return new Response(body.byteLength ? body : null, answer);
  } catch (error) {
    throw GatewayError.of(limit.silent ? new Error("No answer in time.") : error);
  } finally {
    limit.end();
  }
}

/**
 * What the page gives. Throws if that takes too long, or nobody waits for it any more.
 * @template T @param {Promise<T> | T} given @param {AbortSignal} signal @returns {Promise<T>}
 */
async function promised(given, signal) {
  const limit = new Watch(signal, () => TOKEN_MS);
  try {
    return await Promise.race([given, ended(limit.signal, "getToken gave nothing in time.")]);
  } finally {
    limit.end();
  }
}

/** @param {AbortSignal} signal @param {string} why @returns {Promise<never>} fails when the signal comes */
function ended(signal, why) {
  return new Promise((_, fail) => {
    if (signal.aborted) fail(new Error(why));
    signal.addEventListener("abort", () => fail(new Error(why)), { once: true });
  });
}

/** @param {GatewayError} error @returns {boolean} whether the subscription has changed since the token was made */
function isStale(error) {
  return error.code === "token-stale";
}

/** @param {number} then @returns {number} milliseconds since then; without end where the clock was set back meanwhile */
function since(then) {
  const passed = Date.now() - then;
  return passed < 0 ? Infinity : passed;
}

/** @param {string} text @returns {any} undefined for what is no JSON */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** @param {string} id @returns {[number, number]} */
function placeOf(id) {
  const found = /^([0-9]+)-([0-9]+)$/.exec(id);
  return found ? [Number(found[1]), Number(found[2])] : [-1, -1];
}

/** @param {string} id @param {string} other @returns {boolean} whether `id` comes before `other` */
function isBehind(id, other) {
  const [epoch, offset] = placeOf(id);
  const [otherEpoch, otherOffset] = placeOf(other);
  return epoch < otherEpoch || (epoch === otherEpoch && offset < otherOffset);
}

/** @param {string} id @param {string} next @returns {boolean} whether nothing can stand between them */
function follows(id, next) {
  const [epoch, offset] = placeOf(id);
  const [nextEpoch, nextOffset] = placeOf(next);
  return epoch === nextEpoch && nextOffset === offset + 1;
}

/** @param {AbortSignal} signal @returns {AbortController} one that ends with it */
function linked(signal) {
  const controller = new AbortController();
  if (signal.aborted) controller.abort();
  const pass = () => controller.abort();
  signal.addEventListener("abort", pass, { once: true });
  controller.signal.addEventListener("abort", () => signal.removeEventListener("abort", pass), { once: true });
  return controller;
}

/** @param {number} ms @param {AbortSignal} signal */
function sleep(ms, signal) {
  return new Pause().wait(ms, signal, true);
}

/** @param {AbortSignal} signal @param {() => void} awake called when the network is back or the page is looked at */
function listen(signal, awake) {
  globalThis.addEventListener?.("online", awake, { signal });
  const looked = () => {
    if (document.visibilityState === "visible") awake();
  };
  globalThis.document?.addEventListener("visibilitychange", looked, { signal });
}

function canShare() {
  return Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel);
}

function defaultStorage() {
  try {
    return globalThis.sessionStorage ?? null;
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

/** @param {any} details @returns {any} what can be told to another tab */
function plain(details) {
  const { error, ...others } = details;
  if (!error) return others;
  const { code, status, message, problem, retryAfterS } = error;
  return { ...others, error: { code, status, detail: message, problem, retryAfterS } };
}

/** @param {any} details @returns {any} the same on the other side */
function restored(details) {
  return details?.error ? { ...details, error: new GatewayError(details.error) } : details;
}

/** @param {string | ArrayBuffer | ArrayBufferView | Blob} data */
function sizeOf(data) {
  if (typeof data === "string") return data.length;
  if (data instanceof Blob) return data.size;
  if (typeof data?.byteLength === "number") return data.byteLength;
  throw new TypeError("Send a string, an ArrayBuffer, a view of one, or a Blob.");
}

/** @param {unknown} error of a callback: shown as any uncaught one, and nothing else comes of it */
function report(error) {
  if (globalThis.reportError) globalThis.reportError(error);
  else console.error(error);
}
