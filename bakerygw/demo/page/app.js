/** The demo's page: signs in, follows alerts and a training run, spends requests, and writes a sale. */

import { AlertStream, GatewayError, TrainingSocket } from "/bakerygw.js";

const CUT_MS = 5_000;
const MAX_ALERTS = 200;
const EPOCHS = 60;
const LIMITS_EVERY_MS = 2_000;
const SIGNED_OUT = new Set(["token-missing", "token-invalid", "token-expired", "token-revoked"]);
const CHART = { left: 52, right: 550, top: 10, bottom: 180, highest: 1.1 };

/** @param {string} id @returns {any} */
const at = (id) => document.getElementById(id);

/**
 * An element with text; what comes from elsewhere is text and never markup.
 * @param {string} name @param {string} [text] @param {string} [kind]
 */
function made(name, text = "", kind = "") {
  const element = document.createElement(name);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

/** @param {unknown} error @returns {string} why; for what has no answer each browser has words of its own */
function told(error) {
  const { code, message } = GatewayError.of(error);
  if (SIGNED_OUT.has(code)) return "The session has ended; sign in again.";
  return code === "network" ? "The gateway does not answer." : message;
}

/** @param {GatewayError} error @param {string} [what] @returns {(string | HTMLElement)[]} what happened, and why */
function explained(error, what = "") {
  return error.status ? [made("strong", `${what}${error.status} ${error.code}: `), told(error)] : [made("strong", told(error))];
}

/** The buttons that lost the focus since they could not be used, and have it again as soon as they can. */
const unfocused = new WeakSet();

/** @param {any} button @param {boolean} usable */
function allow(button, usable) {
  const focused = document.activeElement;
  if (!usable && focused === button) unfocused.add(button);
  button.disabled = !usable;
  if (usable && unfocused.delete(button) && (focused === document.body || focused === button)) button.focus();
}

/** Who is signed in, and how that is shown to the gateway. */
class Session {
  /** @param {any} account @param {string} password */
  constructor(account, password) {
    this.account = account;
    this.password = password;
    this.tenantId = account.bakeries[0].id;
    this.tokens = /** @type {any} */ (null);
    this.endsAt = 0;
    /** @type {Promise<void> | null} */ this.renewing = null;
  }

  /** With cookies the gateway keeps the tokens, and the page only has to show that it writes itself. */
  get usesCookies() {
    return this.tokens?.access_token === undefined;
  }

  async enter() {
    await this.#fetchTokens("/api/v1/auth/login", { email: this.account.email, password: this.password });
  }

  /**
   * The access token; a new one where the last was refused or is about to end.
   * @param {{ renew: boolean }} about
   */
  async token({ renew }) {
    if (renew || Date.now() > this.endsAt - 30_000) {
      this.renewing ??= this.#renew().finally(() => {
        this.renewing = null;
      });
      await this.renewing;
    }
    return this.tokens.access_token;
  }

  async #renew() {
    try {
      await this.#fetchTokens("/api/v1/auth/refresh", { refresh_token: this.tokens.refresh_token });
    } catch (error) {
      if (!(error instanceof GatewayError) || error.temporary) throw error;
      await this.enter(); // a refresh token is good once; the demo knows the password
    }
  }

  /** @param {string} path @param {object} body */
  async #fetchTokens(path, body) {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), cache: "no-store" });
    if (!answer.ok) throw await GatewayError.from(answer);
    this.tokens = await answer.json();
    this.endsAt = Date.now() + Number(this.tokens.expires_in ?? 0) * 1000;
  }

  /** How the stream and the socket get in. */
  access() {
    const tenantId = this.tenantId;
    return this.usesCookies
      ? { useCookies: true, tenantId }
      : { getToken: (/** @type {any} */ about) => this.token(about), tenantId };
  }

  /**
   * A request to a service, whatever it answers.
   * @param {string} path @param {RequestInit} [init]
   */
  async ask(path, init = {}) {
    /** @type {Record<string, string>} */
    const headers = { "X-Tenant-ID": this.tenantId };
    if (init.body) headers["Content-Type"] = "application/json";
    if (!this.usesCookies) headers.Authorization = `Bearer ${await this.token({ renew: false })}`;
    else if (init.method) headers["X-CSRF-Token"] = this.tokens.csrf_token ?? "";
    return fetch(path, { ...init, headers, cache: "no-store" });
  }
}

/** Alerts as they come, and what a cut does to them. */
class Alerts {
  #list = at("alerts");
  #session;
  #stream;
  #cut = false;
  /** Alerts that come before this moment after a cut were missed during it. */
  #again = 0;
  #replayed = 0;
  #since = 0;
  #closed = false;
  #timer = 0;

  /** @param {Session} session @param {(info: any) => void} onTenantState @param {(error: any) => void} onError */
  constructor(session, onTenantState, onError) {
    this.#session = session;
    this.#stream = new AlertStream({
      ...session.access(),
      onAlert: (alert, { id }) => this.#show(alert, id),
      onGap: (info) => this.#gap(info),
      onState: (state, details) => this.#state(state, details),
      onTenantState,
      onTokenExpiring: () =>
        session.token({ renew: true }).then(
          () => this.#renewed(),
          (error) => GatewayError.of(error).temporary || onError(error), // the stream asks again when it ends
        ),
      onError: (error) => {
        at("quiet").textContent = "No alerts come, for the reason above.";
        at("state").dataset.state = "failed";
        onError(error);
      },
    });
    at("quiet").textContent = "The first one comes within seconds.";
    at("quiet").hidden = false;
    this.#catchingUp(false);
    allow(at("cut"), true);
    at("cut").onclick = () => this.cut();
    this.#stream.open();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#cut = false;
    this.#stream.close();
    this.#list.replaceChildren();
    at("resumed").hidden = true;
  }

  /** With the new token, unless the page has turned to something else or cut the stream meanwhile. */
  #renewed() {
    if (!this.#closed && !this.#cut) this.#stream.reconnect();
  }

  cut() {
    this.#cut = true;
    this.#since = Date.now();
    allow(at("cut"), false);
    this.#break("cut: nothing arrives");
    this.#stream.close();
    this.#timer = setTimeout(() => {
      this.#cut = false;
      this.#again = Date.now();
      this.#replayed = 0;
      this.#catchingUp(true);
      this.#stream.open();
    }, CUT_MS);
  }

  /** @param {string} state @param {any} details */
  #state(state, details) {
    const shown = at("state");
    shown.dataset.state = this.#cut ? "cut" : state;
    const next = new Date(Date.now() + (details.retryInMs ?? 0)).toLocaleTimeString();
    const why = details.error ? `: ${details.error.problem?.title ?? told(details.error)}` : "";
    const words = /** @type {Record<string, string>} */ ({
      connecting: "connecting",
      open: details.shared ? "live, through another tab" : "live",
      degraded: "alerts may be late",
      waiting: `next attempt at ${next}${why}`,
      closed: this.#cut ? `cut for ${CUT_MS / 1000} s` : "not connected",
    });
    shown.textContent = words[state] ?? state;
    allow(at("cut"), state === "open" || state === "degraded");
    if (state === "open" && this.#again) setTimeout(() => this.#resumed(), 400);
  }

  /** What is read aloud of a replay is how much it was. @param {boolean} busy */
  #catchingUp(busy) {
    at("log").ariaLive = busy ? "off" : "polite";
  }

  #resumed() {
    if (!this.#again || this.#closed) return;
    this.#again = 0;
    this.#catchingUp(false);
    const seconds = ((Date.now() - this.#since) / 1000).toFixed(0);
    const what = this.#replayed === 1 ? "1 alert was" : `${this.#replayed} alerts were`;
    this.#note(`Back after ${seconds} s. ${what} missed meanwhile and came now, in order, none twice.`, false);
  }

  /** @param {any} info */
  #gap(info) {
    this.#again = 0;
    this.#catchingUp(false);
    this.#break(`a gap (${info.reason}): the gateway can't tell what was missed`, "gap");
    this.#note("The gateway says that alerts may be missing here: a page should load anew what it shows.", true);
  }

  /** @param {string} text @param {boolean} gap */
  #note(text, gap) {
    const note = at("resumed");
    note.textContent = text;
    note.classList.toggle("gap", gap);
    note.hidden = false;
  }

  /** @param {string} text @param {string} [kind] */
  #break(text, kind = "") {
    this.#list.prepend(made("li", text, `break ${kind}`.trim()));
  }

  /** @param {any} alert @param {string} id */
  #show(alert, id) {
    at("quiet").hidden = true;
    const severity = ["info", "warning", "critical"].includes(alert.severity) ? alert.severity : "info";
    const row = made("li", "", this.#again ? "again fresh" : "fresh");
    const when = new Date(alert.timestamp);
    const time = /** @type {HTMLTimeElement} */ (made("time", Number.isNaN(+when) ? "" : when.toLocaleTimeString()));
    if (!Number.isNaN(+when)) time.dateTime = when.toISOString();
    const meta = made("span", [alert.service, id].filter(Boolean).join(" · "), "meta");
    if (this.#again) {
      this.#replayed += 1;
      meta.append(" · ", made("span", "missed, and caught up", "mark"));
    }
    row.append(made("span", severity, `severity ${severity}`), made("span", alert.message ?? "", "message"), time, meta);
    row.dataset.id = id;
    this.#list.prepend(row);
    while (this.#list.children.length > MAX_ALERTS) this.#list.lastElementChild.remove();
  }
}

/** One training run as a curve. */
class Training {
  #socket;
  #running = false;
  #closed = false;
  #epochs = EPOCHS;
  /** @type {[number, number][]} */ #curve = [];

  /** @param {Session} session @param {(error: any) => void} onError */
  constructor(session, onError) {
    this.#grid();
    this.#draw();
    this.#socket = new TrainingSocket({
      ...session.access(),
      onOpen: () => this.#say("no run", "open"),
      onMessage: (data) => this.#hear(JSON.parse(String(data))),
      onClose: ({ code, willRetry }) => {
        if (this.#closed) return;
        allow(at("train"), false);
        this.#say(willRetry ? `lost (${code}), connecting anew` : `closed (${code})`, willRetry ? "connecting" : "failed");
      },
      onError: (error) => {
        allow(at("train"), false);
        this.#say("not connected", "failed");
        onError(error);
      },
    });
    at("train").textContent = "Start a run";
    at("train").onclick = (/** @type {MouseEvent} */ { detail }) => {
      if (detail > 1) return; // a double click would take back what its first half has done
      allow(at("train"), false); // until the service has answered
      const action = this.#running ? "stop" : "start";
      this.#socket.send(JSON.stringify({ action, ...(this.#running ? {} : { model: "sales-forecast", epochs: EPOCHS }) }));
    };
    this.#say("connecting", "connecting");
    this.#socket.open();
  }

  close() {
    this.#closed = true;
    this.#socket.close();
    allow(at("train"), false);
  }

  /** @param {any} message */
  #hear(message) {
    allow(at("train"), true);
    if (message.type === "idle") this.#rest("no run");
    else if (message.type === "started") this.#begin(message, []);
    else if (message.type === "running") this.#begin(message, message.curve);
    else if (message.type === "progress") {
      this.#curve.push([message.loss, message.val_loss]);
      this.#draw(message.eta_s);
    } else if (message.type === "finished") {
      this.#rest(`done: forecasts are ${message.metrics.mean_error_percent} % off on average`);
    } else if (message.type === "stopped") this.#rest(`stopped at epoch ${message.epoch}`);
    else if (message.type === "error") this.#say(message.detail ?? "refused", "failed");
  }

  /** @param {any} message @param {[number, number][]} curve */
  #begin(message, curve) {
    this.#running = true;
    this.#epochs = message.epochs;
    this.#curve = [...curve];
    this.#say(`training ${message.model}`, "open");
    at("train").textContent = "Stop the run";
    this.#draw(message.eta_s ?? null);
  }

  /** @param {string} text */
  #rest(text) {
    this.#running = false;
    this.#say(text, "open");
    at("train").textContent = "Start a run";
    at("eta").textContent = "–";
  }

  /** @param {string} text @param {string} state */
  #say(text, state) {
    at("run").textContent = text;
    at("run").dataset.state = state;
  }

  #grid() {
    const grid = at("grid");
    grid.replaceChildren();
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      const y = this.#y(value);
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      for (const [name, its] of Object.entries({ x1: CHART.left, x2: CHART.right, y1: y, y2: y })) {
        line.setAttribute(name, String(its));
      }
      const label = document.createElementNS("http://www.w3.org/2000/svg", "text");
      label.setAttribute("x", String(CHART.left - 8));
      label.setAttribute("y", String(y + 4));
      label.setAttribute("text-anchor", "end");
      label.textContent = value.toFixed(2);
      grid.append(line, label);
    }
    const axis = document.createElementNS("http://www.w3.org/2000/svg", "text");
    axis.setAttribute("x", String(CHART.right));
    axis.setAttribute("y", String(CHART.bottom + 22));
    axis.setAttribute("text-anchor", "end");
    axis.textContent = "epochs";
    grid.append(axis);
  }

  /** @param {number} epoch */
  #x(epoch) {
    return CHART.left + ((CHART.right - CHART.left) * epoch) / this.#epochs;
  }

  /** @param {number} loss */
  #y(loss) {
    return CHART.bottom - ((CHART.bottom - CHART.top) * Math.min(loss, CHART.highest)) / CHART.highest;
  }

  /** @param {number | null} [etaS] */
  #draw(etaS = null) {
    const last = this.#curve.at(-1);
    for (const [which, line, dot, now] of /** @type {[0 | 1, string, string, string][]} */ ([
      [0, "loss", "loss-dot", "loss-now"],
      [1, "val-loss", "val-dot", "val-now"],
    ])) {
      const points = this.#curve.map((point, index) => `${this.#x(index + 1).toFixed(1)},${this.#y(point[which]).toFixed(1)}`);
      at(line).setAttribute("points", points.join(" "));
      at(dot).setAttribute("cx", String(last ? this.#x(this.#curve.length) : -9));
      at(dot).setAttribute("cy", String(last ? this.#y(last[which]) : -9));
      at(now).textContent = last ? last[which].toFixed(3) : "–";
    }
    at("epoch").textContent = this.#curve.length ? `${this.#curve.length} of ${this.#epochs}` : "–";
    at("eta").textContent = etaS === null ? "–" : `${Math.ceil(etaS)} s`;
  }
}

/** What is left of the requests that one may send. */
class Budget {
  #session;
  #timer;
  #closed = false;

  /** @param {Session} session */
  constructor(session) {
    this.#session = session;
    this.#show(0, 0, 0);
    for (const button of document.querySelectorAll(".spend")) {
      /** @type {HTMLButtonElement} */ (button).onclick = () => this.#spend(/** @type {any} */ (button));
    }
    this.#timer = setInterval(() => this.look(), LIMITS_EVERY_MS);
    at("sent").textContent = "";
    this.look();
  }

  close() {
    this.#closed = true;
    clearInterval(this.#timer);
  }

  /** Asking for it costs nothing. Whom the gateway does not let in at all has no budget to look at. */
  async look() {
    try {
      const answer = await this.#session.ask("/api/v1/limits");
      if (answer.status === 402 || answer.status === 403) clearInterval(this.#timer);
      if (!answer.ok) return;
      const { limits } = await answer.json();
      const row = limits.find((/** @type {any} */ it) => it.policy === "default") ?? limits[0];
      if (row) this.#show(row.limit, row.remaining, row.reset_seconds);
    } catch {
      // The next look is soon, and the stream tells when the gateway is away.
    }
  }

  /** @param {HTMLButtonElement} button */
  async #spend(button) {
    allow(button, false);
    const count = Number(button.dataset.count);
    let refused = 0;
    let stopped = 0;
    let wait = 0;
    const one = async () => {
      const answer = await this.#session.ask("/api/v1/inventory?limit=1");
      if (answer.status === 429) {
        refused += 1;
        wait = Math.max(wait, Number(answer.headers.get("Retry-After") ?? 0));
      } else if (!answer.ok) stopped = answer.status;
      const left = /r=(\d+)(?:;t=(\d+))?/.exec(answer.headers.get("RateLimit") ?? "");
      const limit = Number(answer.headers.get("X-RateLimit-Limit") ?? 0);
      if (left && limit) this.#show(limit, Number(left[1]), Number(left[2] ?? 0));
      await answer.body?.cancel();
    };
    try {
      for (let sent = 0; sent < count && !this.#closed; sent += 5) {
        await Promise.all(Array.from({ length: Math.min(5, count - sent) }, one));
      }
      if (stopped) this.#tell(`refused (${stopped})`);
      else if (refused) this.#tell(`${refused} of ${count} refused (429), again in ${wait} s`);
      else this.#tell(`${count} sent, all let pass`);
    } catch (error) {
      this.#tell(told(error));
    }
    allow(button, true);
  }

  /** @param {string} text */
  #tell(text) {
    if (!this.#closed) at("sent").textContent = text;
  }

  /** @param {number} limit 0 while it is not known @param {number} left @param {number} fullIn */
  #show(limit, left, fullIn) {
    if (this.#closed) return;
    const share = limit ? left / limit : 0;
    at("left").textContent = limit ? String(left) : "–";
    at("limit").textContent = limit ? ` of ${limit} left` : "";
    at("full").textContent = fullIn > 0 ? `full again in ${fullIn} s` : limit ? "full" : "";
    at("fill").style.transform = `scaleX(${share})`;
    const meter = at("meter");
    meter.setAttribute("aria-valuemax", String(limit));
    meter.setAttribute("aria-valuenow", String(left));
    meter.setAttribute("aria-valuetext", limit ? `${left} of ${limit} left` : "not known");
    meter.classList.toggle("low", share < 0.4 && left > 0);
    meter.classList.toggle("empty", limit > 0 && left === 0);
  }
}

/** The page as a whole. */
class Page {
  /** @type {Session | null} */ #session = null;
  /** @type {{ close(): void }[]} */ #parts = [];
  /** @type {any} */ #about;
  #entering = false;

  async begin() {
    try {
      const answer = await fetch("/demo/accounts.json", { cache: "no-store" });
      if (!answer.ok) throw await GatewayError.from(answer);
      this.#about = await answer.json();
    } catch (error) {
      this.#say(GatewayError.of(error));
      return;
    }
    for (const account of this.#about.accounts) at("accounts").append(this.#card(account));
    at("leave").onclick = () => this.#leave();
    at("bakery").onchange = () => this.#move(at("bakery").value);
    at("write").onclick = (/** @type {MouseEvent} */ { detail }) => {
      if (detail < 2) this.#write(); // a double click enters one sale
    };
    for (const button of document.querySelectorAll(".copy")) {
      const its = /** @type {HTMLButtonElement} */ (button);
      its.onclick = () => copy(its);
    }
  }

  /** @param {any} account */
  #card(account) {
    const item = made("li");
    const button = /** @type {HTMLButtonElement} */ (made("button"));
    button.type = "button";
    button.dataset.email = account.email;
    const bakery = account.bakeries[0];
    const place = made("span", `${account.role} of ${bakery.name}`, "bakery");
    const parts = [made("b", account.full_name), made("span", bakery.tier, "tier"), place, made("span", account.shows, "shows")];
    button.append(...parts.flatMap((part) => [part, " "]));
    button.onclick = () => this.#enter(account, button);
    item.append(button);
    return item;
  }

  /** @param {any} account @param {HTMLButtonElement} button */
  async #enter(account, button) {
    if (this.#entering) return; // one at a time
    this.#entering = true;
    button.disabled = true;
    this.#say(null);
    const session = new Session(account, this.#about.password);
    try {
      await session.enter();
    } catch (error) {
      this.#say(GatewayError.of(error));
      return;
    } finally {
      this.#entering = false;
      button.disabled = false;
    }
    this.#session = session;
    at("who-name").textContent = account.full_name;
    at("who-role").textContent = account.role;
    at("bakery").replaceChildren(...account.bakeries.map((/** @type {any} */ it) => new Option(it.name, it.id)));
    at("bakery").disabled = account.bakeries.length < 2;
    at("who").hidden = at("board").hidden = false;
    at("people").hidden = true;
    this.#start();
    at("main").focus();
  }

  #start() {
    const session = this.#session;
    if (!session) return;
    at("written").textContent = "A till would do this all day.";
    at("written").className = "written";
    const url = `${this.#about.admin_url}/api/tenants/${session.tenantId}/read-only`;
    const operator = `-H "Authorization: Bearer ${this.#about.admin_token}"`;
    at("hold-line").textContent =
      `curl -X PUT ${operator} -H 'Content-Type: application/json' -d '{"reason":"stock-taking"}' ${url}`;
    at("free-line").textContent = `curl -X DELETE ${operator} ${url}`;
    const failed = (/** @type {any} */ error) => this.#say(GatewayError.of(error));
    this.#parts = [
      new Alerts(session, (info) => this.#hold(info.read_only ?? null), failed),
      new Training(session, failed),
      new Budget(session),
    ];
  }

  #stop() {
    for (const part of this.#parts.splice(0)) part.close();
    this.#hold(null);
    this.#say(null);
  }

  /** @param {string} tenantId */
  #move(tenantId) {
    if (!this.#session) return;
    this.#stop();
    this.#session.tenantId = tenantId;
    this.#start();
  }

  #leave() {
    this.#stop();
    const session = this.#session;
    this.#session = null;
    at("who").hidden = at("board").hidden = true;
    at("people").hidden = false;
    at("accounts").querySelector("button")?.focus();
    const body = JSON.stringify({ refresh_token: session?.tokens?.refresh_token });
    session?.ask("/api/v1/auth/logout", { method: "POST", body }).catch(() => {});
  }

  async #write() {
    const session = this.#session;
    if (!session) return;
    const bakery = session.tenantId;
    const sale = { product: "Ensaimada", quantity: 1 + Math.floor(Math.random() * 12) };
    const shown = at("written");
    try {
      const answer = await session.ask("/api/v1/sales", { method: "POST", body: JSON.stringify(sale) });
      if (!answer.ok) throw await GatewayError.from(answer);
      if (this.#session !== session || session.tenantId !== bakery) return;
      shown.className = "written done";
      shown.replaceChildren(made("strong", "Entered: "), `${sale.quantity} × ${sale.product}.`);
    } catch (error) {
      if (this.#session !== session || session.tenantId !== bakery) return;
      const its = GatewayError.of(error);
      shown.className = "written refused";
      shown.replaceChildren(...explained(its, "Refused, "));
    }
  }

  /** @param {any} hold */
  #hold(hold) {
    const banner = at("hold");
    banner.hidden = hold === null;
    if (hold === null) return banner.replaceChildren();
    const style = /** @type {const} */ ({ dateStyle: "medium", timeStyle: "short" });
    const until = hold.until ? ` until ${new Date(hold.until).toLocaleString([], style)}` : "";
    const why = hold.reason ? `: ${hold.reason}` : "";
    return banner.replaceChildren(made("strong", "This bakery is read-only"), `${until}${why}. You can look at everything; entries are refused.`);
  }

  /** @param {GatewayError | null} error */
  #say(error) {
    const box = at("problem");
    box.hidden = error === null;
    if (error === null) return box.replaceChildren();
    const head = made("p");
    head.append(...explained(error));
    const request = error.requestId ? [made("p", `request ${error.requestId}`, "small")] : [];
    if (!this.#session || !SIGNED_OUT.has(error.code)) return box.replaceChildren(head, ...request);
    const again = /** @type {HTMLButtonElement} */ (made("button", "Sign in again"));
    again.type = "button";
    again.onclick = () => this.#leave();
    return box.replaceChildren(head, ...request, again);
  }
}

/** @param {HTMLButtonElement} button */
async function copy(button) {
  const line = at(button.dataset.from ?? "");
  try {
    await navigator.clipboard.writeText(line.textContent);
  } catch {
    getSelection()?.selectAllChildren(line); // the browser leaves the copying to the person
    return;
  }
  button.textContent = "Copied";
  setTimeout(() => {
    button.textContent = "Copy";
  }, 1_500);
}

new Page().begin();
