/** The behaviour of `/bakerygw.js`, told by tests that run in a browser. */

import { AlertStream, EventParser, GatewayError, TrainingSocket } from "/bakerygw.js";
import { FakeSocket, equal, ok, problem, settle, test, token, until } from "/stage.js";

const STREAM = "/api/v1/alerts/stream";
const TICKET = "/api/v1/alerts/ticket";
const SESSION = "/api/v1/auth/session";

/** A stream, what its page is told, and its end with the test. */
function tab({ later }, options = {}) {
  const told = { alerts: [], ids: [], gaps: [], states: [], details: [], tenants: [], expiring: [], errors: [] };
  const credentials = options.getToken || options.useCookies ? {} : { token: token("u1") };
  const stream = new AlertStream({
    shareTabs: false,
    storage: null,
    ...credentials,
    onAlert: (alert, { id }) => (told.alerts.push(alert.message), told.ids.push(id)),
    onGap: (info) => told.gaps.push(info),
    onState: (state, details) => (told.states.push(state), told.details.push(details)),
    onTenantState: (info) => told.tenants.push(info),
    onTokenExpiring: (info) => told.expiring.push(info),
    onError: (error) => told.errors.push(error),
    ...options,
  });
  later(() => stream.close());
  stream.open();
  return { stream, told };
}

function eventsOf(chunks) {
  const events = [];
  const parser = new EventParser((event) => events.push(event));
  for (const chunk of chunks) parser.push(chunk);
  return events;
}

const bytes = (text) => new TextEncoder().encode(text);

// the event stream

test("an event is the same wherever its bytes are cut", () => {
  const text = "\ufeffevent: alert\r\nid: 1-1\rdata: {\"m\":\ndata:\"pà 🥐\"}\r\n\r\n: no\r\rdata\r\rdata: y\n\n";
  const all = bytes(text);
  const expected = [
    { type: "alert", data: '{"m":\n"pà 🥐"}', id: "1-1" },
    { type: "message", data: "", id: null },
    { type: "message", data: "y", id: null },
  ];
  equal(eventsOf([all]), expected);
  equal(eventsOf([...all].map((it) => Uint8Array.of(it))), expected);
  for (let at = 0; at <= all.length; at++) equal(eventsOf([all.subarray(0, at), all.subarray(at)]), expected);
});

test("what the standard says to ignore is ignored", () => {
  const text = ": comment\nid: a\0b\nfoo: bar\ndata:  two\n\nevent: only\n\nid: 7\ndata: x\n\ndata: unfinished\n";
  equal(eventsOf([bytes(text)]), [
    { type: "message", data: " two", id: null },
    { type: "message", data: "x", id: "7" },
  ]);
});

test("a wait is taken from digits alone", () => {
  const waits = [];
  new EventParser(() => {}, (ms) => waits.push(ms)).push(bytes("retry: 1500\nretry: 2s\nretry:\nretry: -1\n\n"));
  equal(waits, [1500]);
});

test("an event without an end is refused", () => {
  const parser = new EventParser(() => {});
  let code = null;
  try {
    for (let part = 0; part < 300; part++) parser.push(bytes(part % 2 ? "x".repeat(10_000) : "\ndata: "));
  } catch (error) {
    code = error.code;
  }
  equal(code, "stream-invalid");
});

// alerts

test("alerts come in order with their ids", async (stage) => {
  const { stream, told } = tab(stage);
  await until(() => told.states.includes("open"));
  stage.gateway.publish("one");
  stage.gateway.publish("two");
  await until(() => told.alerts.length === 2);
  equal([told.alerts, told.ids, stream.lastEventId], [["one", "two"], ["1-1", "1-2"], "1-2"]);
  equal(told.states, ["connecting", "open"]);
});

test("a connection needs a ticket, and no address holds a token", async (stage) => {
  const { told } = tab(stage, { tenantId: "t2", token: token("u1") });
  await until(() => told.states.includes("open"));
  const [ticket, stream] = stage.gateway.requests;
  equal([ticket.method, ticket.path, stream.path], ["POST", TICKET, STREAM]);
  equal([ticket.headers.get("Authorization"), ticket.headers.get("X-Tenant-ID")], [`Bearer ${token("u1")}`, "t2"]);
  equal(stream.query, { ticket: "ticket-1" });
});

test("a stream that was cut goes on behind its last alert", async (stage) => {
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  stage.gateway.publish("one");
  await until(() => told.alerts.length === 1);
  stage.gateway.cut();
  await until(() => told.states.at(-1) === "waiting");
  stage.gateway.publish("two");
  await stage.clock.advance(1000);
  await until(() => told.states.at(-1) === "open");
  stage.gateway.publish("three");
  await until(() => told.alerts.length === 3);
  equal(stage.gateway.asked.map((it) => it.query.last_event_id), [undefined, "1-1"]);
  equal([told.alerts, stage.gateway.count(TICKET)], [["one", "two", "three"], 2]);
});

test("a place given at the beginning is resumed from, and the greeting does not move it", async (stage) => {
  stage.gateway.alerts.push("one", "two", "three");
  const { stream, told } = tab(stage, { lastEventId: "1-1" });
  await until(() => told.alerts.length === 2);
  equal([told.alerts, stream.lastEventId], [["two", "three"], "1-3"]);
});

test("an alert that comes twice is given once", async (stage) => {
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  stage.gateway.publish("one");
  stage.gateway.event("alert", { message: "one" }, "1-1");
  stage.gateway.publish("two");
  await until(() => told.alerts.length > 1);
  equal(told.alerts, ["one", "two"]);
});

test("a gap is told with both places, and the stream goes on behind it", async (stage) => {
  stage.gateway.epoch = 4;
  stage.gateway.alerts.push("old");
  const { stream, told } = tab(stage, { lastEventId: "3-17" });
  await until(() => told.gaps.length === 1);
  equal([told.gaps[0], stream.lastEventId], [{ reason: "epoch", lastEventId: "3-17" }, "4-1"]);
  stage.gateway.publish("new");
  await until(() => told.alerts.length === 1);
  equal(told.alerts, ["new"]);
});

test("a degraded stream is open again with the next greeting", async (stage) => {
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  stage.gateway.event("degraded", {});
  await until(() => told.states.at(-1) === "degraded");
  stage.gateway.publish("late");
  stage.gateway.event("hello", { epoch: 1, offset: 1, recovered: true, missed: 1 }, "1-1");
  await until(() => told.states.at(-1) === "open");
  equal([told.states, told.alerts], [["connecting", "open", "degraded", "open"], ["late"]]);
});

test("what the tenant and the token come to is told", async (stage) => {
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  stage.gateway.event("tenant-state", { read_only: true });
  stage.gateway.event("token-expiring", { in_seconds: 60 });
  await until(() => told.expiring.length === 1);
  equal([told.tenants, told.expiring], [[{ read_only: true }], [{ in_seconds: 60 }]]);
});

test("an exception in a callback breaks nothing", async (stage) => {
  const seen = [];
  const shown = [];
  const silence = (event) => (event.preventDefault(), shown.push(event.message));
  addEventListener("error", silence);
  stage.later(() => removeEventListener("error", silence));
  const { told } = tab(stage, {
    onAlert: ({ message }) => {
      seen.push(message);
      throw new Error("mine");
    },
  });
  await until(() => told.states.includes("open"));
  stage.gateway.publish("one");
  stage.gateway.publish("two");
  await until(() => seen.length === 2);
  equal([seen, told.states.at(-1), shown.length], [["one", "two"], "open", 2]);
});

test("a stream that is closed says nothing more and asks for nothing", async (stage) => {
  const { stream, told } = tab(stage);
  await until(() => told.states.includes("open"));
  stream.close();
  await settle();
  const asked = stage.gateway.requests.length;
  stage.gateway.publish("late");
  await stage.clock.advance(100_000);
  equal([told.states.at(-1), told.alerts, stage.gateway.streams.size], ["closed", [], 0]);
  equal([stage.gateway.requests.length, stream.state, told.errors], [asked, "closed", []]);
});

test("a stream that was closed in a callback gives nothing of what came with it", async (stage) => {
  const seen = [];
  const { stream, told } = tab(stage, { onAlert: ({ message }) => (seen.push(message), stream.close()) });
  await until(() => told.states.includes("open"));
  stage.gateway.say('event: alert\nid: 1-1\ndata: {"message":1}\n\nevent: alert\nid: 1-2\ndata: {"message":2}\n\n');
  await settle();
  equal([seen, stream.lastEventId], [[1], "1-1"]);
});

test("a stream that is closed on the way out stays closed when somebody comes back", async (stage) => {
  const { stream, told } = tab(stage);
  await until(() => told.states.includes("open"));
  const turn = (name) => dispatchEvent(new PageTransitionEvent(name, { persisted: true }));
  turn("pagehide");
  turn("pageshow");
  await until(() => stage.gateway.asked.length === 2 && told.states.at(-1) === "open");
  turn("pagehide");
  stream.close();
  turn("pageshow");
  await settle();
  equal([told.states.at(-1), stage.gateway.asked.length, stage.gateway.streams.size], ["closed", 2, 0]);
});

test("a page that is come back to shows nothing of whoever has signed in meanwhile", async (stage) => {
  let user = "u1";
  const { told } = tab(stage, { getToken: () => token(user) });
  await until(() => told.states.includes("open"));
  dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true }));
  user = "u2";
  dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
  await until(() => told.errors.length === 1);
  equal([told.errors[0].code, stage.gateway.asked.length], ["user-changed", 1]);
});

test("a page that is loaded again goes on where it was", async (stage) => {
  const storage = sessionStorage;
  const first = tab(stage, { storage });
  await until(() => first.told.states.includes("open"));
  stage.gateway.publish("one");
  await until(() => first.told.alerts.length === 1);
  first.stream.close();
  stage.gateway.publish("two");
  const second = tab(stage, { storage });
  await until(() => second.told.alerts.length === 1);
  equal(second.told.alerts, ["two"]);
  ok(!JSON.stringify(storage).includes("sign"), "a token was stored");
});

test("a session's cookie needs no ticket", async (stage) => {
  const { told } = tab(stage, { useCookies: true, tenantId: "t2" });
  await until(() => told.states.includes("open"));
  equal([stage.gateway.count(TICKET), stage.gateway.asked[0].query], [0, { tenant_id: "t2" }]);
  equal(stage.gateway.asked[0].credentials, "include");
});

// refusals

test("a refused token is replaced once", async (stage) => {
  const asked = [];
  stage.gateway.answers[TICKET].push(problem(401, "token-expired"));
  const { told } = tab(stage, { getToken: async (how) => (asked.push(how.renew), token("u1", "t1", asked.length)) });
  await until(() => told.states.includes("open"));
  equal([asked, told.errors.length, stage.gateway.count(TICKET)], [[false, true], 0, 2]);
});

test("another token is asked for until there is one", async (stage) => {
  const asked = [];
  const getToken = async ({ renew }) => {
    asked.push(renew);
    if (asked.length === 2) throw new TypeError("Failed to fetch"); // the service that renews it is away for a moment
    return renew ? token("u1", "t1", 2) : token("u1");
  };
  stage.gateway.answers[TICKET].push(problem(401, "token-expired"));
  const { told } = tab(stage, { getToken });
  await until(() => told.states.at(-1) === "waiting");
  await stage.clock.advance(3000);
  await until(() => told.states.at(-1) === "open");
  equal([asked, told.errors], [[false, true, true], []]);
});

test("a second refusal of the token ends the stream with the problem", async (stage) => {
  stage.gateway.answers[TICKET].push(problem(401, "token-expired"), problem(401, "token-revoked"));
  const { stream, told } = tab(stage, { getToken: async () => token("u1") });
  await until(() => told.errors.length === 1);
  await stage.clock.advance(100_000);
  const [error] = told.errors;
  ok(error instanceof GatewayError, "another error");
  equal([error.code, error.status, error.message, error.requestId], ["token-revoked", 401, "It is token-revoked.", "request-1"]);
  equal([stage.gateway.count(TICKET), stream.state, told.details.at(-1).error.code], [2, "closed", "token-revoked"]);
});

test("a token that can't be replaced is not tried again", async (stage) => {
  stage.gateway.answers[TICKET].push(problem(401, "token-expired"));
  const { told } = tab(stage);
  await until(() => told.errors.length === 1);
  equal(stage.gateway.count(TICKET), 1);
});

test("a ticket that is not taken is replaced by another one, once", async (stage) => {
  const refused = () => problem(401, "token-invalid", { instance: STREAM });
  stage.gateway.answers[STREAM].push(refused());
  const first = tab(stage);
  await until(() => first.told.states.includes("open"));
  stage.gateway.answers[STREAM].push(refused(), refused());
  const second = tab(stage);
  await until(() => second.told.errors.length === 1);
  equal([first.told.errors, stage.gateway.count(TICKET)], [[], 4]);
});

test("the sign-in page of a hotel is not taken for a stream", async (stage) => {
  stage.gateway.answers[STREAM].push(new Response("<p>Welcome!", { headers: { "Content-Type": "text/html" } }));
  const { told } = tab(stage);
  await until(() => told.states.at(-1) === "waiting");
  equal(told.details.at(-1).error.code, "stream-invalid");
});

test("what answers in the gateway's place is asked again later, wherever it answers", async (stage) => {
  const page = () => new Response("<p>Welcome!", { headers: { "Content-Type": "text/html" } });
  stage.gateway.answers[TICKET].push(page());
  stage.gateway.answers[SESSION].push(new Response(null, { status: 204 }));
  for (const [options, code] of [[{}, "http-200"], [{ useCookies: true }, "http-204"]]) {
    const { told } = tab(stage, options);
    await until(() => told.states.at(-1) === "waiting");
    equal(told.details.at(-1).error.code, code);
    await stage.clock.advance(2000);
    await until(() => told.states.at(-1) === "open");
    equal(told.errors, []);
  }
});

test("a page where nobody is signed in asks the gateway nothing", async (stage) => {
  const { told } = tab(stage, { getToken: async () => null });
  await until(() => told.errors.length === 1);
  equal([told.errors[0].code, stage.gateway.requests.length], ["token-missing", 0]);
});

test("a subscription that has ended and a tenant that is closed end the stream", async (stage) => {
  for (const [status, code] of [[402, "subscription-expired"], [403, "tenant-forbidden"]]) {
    stage.gateway.answers[STREAM].push(problem(status, code, { valid_until: "2026" }));
    const { told } = tab(stage);
    await until(() => told.errors.length === 1);
    equal([told.errors[0].code, told.errors[0].problem.valid_until, told.states.at(-1)], [code, "2026", "closed"]);
  }
});

test("a busy gateway is left alone for as long as it says, and up to half as long again", async (stage) => {
  stage.gateway.answers[STREAM].push(problem(429, "too-many-streams", { retry_after: 8 }));
  stage.gateway.answers[TICKET].push(problem(503, "state-unavailable", {}, { "Retry-After": "4" }));
  const { told } = tab(stage);
  await until(() => told.states.at(-1) === "waiting");
  equal([told.details.at(-1).retryInMs, told.details.at(-1).error.code], [5000, "state-unavailable"]);
  dispatchEvent(new Event("online"));
  await stage.clock.advance(4900);
  equal(stage.gateway.asked.length, 0);
  await stage.clock.advance(200);
  await until(() => told.states.at(-1) === "waiting");
  equal([told.details.at(-1).retryInMs, told.details.at(-1).error.code], [10_000, "too-many-streams"]);
  await stage.clock.advance(10_000);
  await until(() => told.states.at(-1) === "open");
});

test("a wait of no seconds is none that was asked for, and the waits double", async (stage) => {
  Math.random = () => 0.9;
  const none = () => problem(503, "service-unavailable", { retry_after: 0 }, { "Retry-After": "0" });
  stage.gateway.answers[TICKET].push(none(), none(), none());
  const { told } = tab(stage);
  const waits = () => told.details.filter((it) => it.retryInMs).map((it) => Math.round(it.retryInMs));
  for (let turn = 1; turn <= 3; turn++) {
    await until(() => waits().length === turn);
    await stage.clock.advance(told.details.at(-1).retryInMs);
  }
  await until(() => told.states.at(-1) === "open");
  stage.gateway.event("bye", { reason: "draining", retry: 0 });
  stage.gateway.end();
  await until(() => waits().length === 4);
  equal(waits(), [1400, 1800, 3600, 7200]);
});

test("without an answer the waits double, by chance, and end at thirty seconds", async (stage) => {
  Math.random = () => 0.9;
  stage.gateway.away = true;
  const { told } = tab(stage);
  for (let turn = 0; turn < 8; turn++) {
    await until(() => told.details.filter((it) => it.retryInMs).length === turn + 1);
    await stage.clock.advance(told.details.at(-1).retryInMs);
  }
  const waits = told.details.filter((it) => it.retryInMs).map((it) => Math.round(it.retryInMs));
  equal(waits.slice(0, 8), [1400, 1800, 3600, 7200, 14400, 27000, 27000, 27000]);
});

test("the stream's own wait is kept", async (stage) => {
  stage.gateway.retryMs = 4000;
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  stage.gateway.end();
  await until(() => told.states.at(-1) === "waiting");
  equal(told.details.at(-1).retryInMs, 4000);
});

test("a goodbye's wait is kept, and no network shortens it", async (stage) => {
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  stage.gateway.event("bye", { reason: "draining", retry: 6000 });
  stage.gateway.end();
  await until(() => told.states.at(-1) === "waiting");
  equal([told.details.at(-1).retryInMs, told.details.at(-1).reason], [7500, "draining"]);
  dispatchEvent(new Event("online"));
  await settle();
  equal(told.states.at(-1), "waiting");
});

test("a token that has ended is renewed at once", async (stage) => {
  const asked = [];
  const { told } = tab(stage, { getToken: async ({ renew }) => (asked.push(renew), token("u1")) });
  await until(() => told.states.includes("open"));
  stage.gateway.publish("one");
  stage.gateway.event("bye", { reason: "token-expired", retry: 5000 });
  stage.gateway.end();
  await until(() => stage.gateway.asked.length === 2);
  await until(() => told.states.at(-1) === "open");
  equal([asked, stage.gateway.asked[1].query.last_event_id], [[false, true], "1-1"]);
});

test("a token is renewed behind the second in which the subscription changed, and not with the network", async (stage) => {
  const asked = [];
  const { told } = tab(stage, { getToken: async ({ renew }) => (asked.push(renew), token("u1")) });
  for (const opened of [1, 2, 3]) {
    await until(() => stage.gateway.asked.length === opened && told.states.at(-1) === "open");
    stage.gateway.event("bye", { reason: "token-stale", retry: 1000 });
    stage.gateway.end();
    await until(() => told.states.at(-1) === "waiting");
    dispatchEvent(new Event("online"));
    await stage.clock.advance(1900);
    equal(asked.length, opened);
    await stage.clock.advance(1000);
  }
  await until(() => told.states.at(-1) === "open");
  equal([asked, told.errors], [[false, true, true, true], []]);
});

test("a token made in the second in which the subscription changed is replaced by a younger one", async (stage) => {
  const asked = [];
  const stale = () => problem(401, "token-stale");
  stage.gateway.answers[TICKET].push(stale(), stale());
  const { told } = tab(stage, { getToken: async ({ renew }) => (asked.push(renew), token("u1")) });
  await until(() => told.states.at(-1) === "waiting");
  equal([asked, told.details.at(-1).retryInMs], [[false, true], 2500]);
  await stage.clock.advance(2500);
  await until(() => told.states.at(-1) === "open");
  equal([asked, told.errors], [[false, true, true], []]);
  stage.gateway.answers[TICKET].push(stale(), stale(), stale());
  stage.gateway.cut();
  await stage.clock.advance(60_000);
  equal(told.errors.map((error) => error.code), ["token-stale"]);
});

test("a stream on which nothing is heard for two and a half heartbeats is left", async (stage) => {
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  for (let beat = 0; beat < 5; beat++) {
    await stage.clock.advance(15_000);
    stage.gateway.say(":\n\n");
    await settle();
  }
  equal([told.states, stage.gateway.asked.length], [["connecting", "open"], 1]);
  await stage.clock.advance(37_400);
  equal(told.states.at(-1), "open");
  await stage.clock.advance(200);
  await until(() => told.states.at(-1) === "waiting");
  equal([told.details.at(-1).error.code, stage.gateway.streams.size], ["silent", 0]);
});

test("the gateway says how often it gives a sign of life", async (stage) => {
  stage.gateway.heartbeatS = 60;
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  await stage.clock.advance(149_000);
  equal(told.states, ["connecting", "open"]);
  await stage.clock.advance(2_000);
  await until(() => told.details.some(({ error }) => error?.code === "silent"));
});

test("a wait ends when the network is back", async (stage) => {
  const { told } = tab(stage);
  await until(() => told.states.includes("open"));
  stage.gateway.cut();
  await until(() => told.states.at(-1) === "waiting");
  dispatchEvent(new Event("online"));
  await until(() => told.states.at(-1) === "open");
  equal(stage.gateway.asked.length, 2);
});

test("a stream can be asked to connect anew", async (stage) => {
  const { stream, told } = tab(stage);
  await until(() => told.states.includes("open"));
  stream.reconnect();
  await until(() => stage.gateway.asked.length === 2 && told.states.at(-1) === "open");
  equal([told.states, stage.gateway.streams.size], [["connecting", "open", "connecting", "open"], 1]);
});

test("another user's token is not taken for the first one's", async (stage) => {
  const users = ["u1", "u2", "u2"];
  const { told } = tab(stage, { getToken: async () => token(users.shift()) });
  await until(() => told.states.includes("open"));
  stage.gateway.cut();
  await until(() => told.states.at(-1) === "waiting");
  await stage.clock.advance(2000);
  await until(() => told.errors.length === 1);
  equal([told.errors[0].code, stage.gateway.count(TICKET)], ["user-changed", 1]);
});

test("a token for another tenant is not taken for the first one's, unless the page names the tenant", async (stage) => {
  for (const [tenantId, errors] of [[undefined, ["user-changed"]], ["t3", []]]) {
    const tenants = ["t1", "t2", "t2"];
    const { told } = tab(stage, { getToken: async () => token("u1", tenants.shift()), tenantId });
    await until(() => told.states.includes("open"));
    stage.gateway.cut();
    await until(() => told.states.at(-1) === "waiting");
    await stage.clock.advance(2000);
    await until(() => told.states.at(-1) === (errors.length ? "closed" : "open"));
    equal(told.errors.map((it) => it.code), errors);
  }
  equal(stage.gateway.count(TICKET), 3);
});

test("a cookie that is somebody else's by now opens nothing", async (stage) => {
  const { told } = tab(stage, { useCookies: true });
  await until(() => told.states.includes("open"));
  const other = () => Response.json({ user_id: "u2", tenant_id: "t1" });
  stage.gateway.answers[SESSION].push(other(), other());
  stage.gateway.cut();
  await until(() => told.states.at(-1) === "waiting");
  await stage.clock.advance(2000);
  await until(() => told.errors.length === 1);
  equal([told.errors[0].code, stage.gateway.asked.length], ["user-changed", 1]);
});

test("a stream that is opened for somebody else begins with what comes next", async (stage) => {
  const users = ["u1", "u2", "u2"];
  const { stream, told } = tab(stage, { getToken: async () => token(users.shift() ?? "u2") });
  await until(() => told.states.includes("open"));
  stage.gateway.publish("one");
  await until(() => told.alerts.length === 1);
  stage.gateway.cut();
  await until(() => told.states.at(-1) === "waiting");
  await stage.clock.advance(2000);
  await until(() => told.errors.length === 1);
  stream.open();
  await until(() => told.states.at(-1) === "open");
  equal(stage.gateway.asked.map((it) => it.query.last_event_id), [undefined, undefined]);
});

test("a token that does not come is asked for again, after a minute or when the page says so", async (stage) => {
  let asked = 0;
  const never = new Promise(() => {});
  const { stream, told } = tab(stage, { getToken: () => ([1, 3].includes(++asked) ? never : token("u1")) });
  await stage.clock.advance(59_000);
  equal([asked, told.states], [1, ["connecting"]]);
  await stage.clock.advance(1_000);
  await until(() => told.states.at(-1) === "waiting");
  equal(told.details.at(-1).error.code, "network");
  await stage.clock.advance(3_000);
  await until(() => told.states.at(-1) === "open");
  stage.gateway.cut();
  await until(() => told.states.at(-1) === "waiting");
  await stage.clock.advance(3_000);
  equal([asked, told.states.at(-1)], [3, "connecting"]);
  stream.reconnect();
  await until(() => told.states.at(-1) === "open");
});

test("a token is asked for anew where the last one was not used at once", async (stage) => {
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  let asked = 0;
  const second = tab(stage, { ...shared, getToken: async () => token("u1", "t1", ++asked) });
  await until(() => second.told.states.includes("open"));
  await stage.clock.advance(11_000);
  first.stream.close();
  await until(() => stage.gateway.asked.length === 2);
  equal(stage.gateway.requests.at(-2).headers.get("Authorization"), `Bearer ${token("u1", "t1", 2)}`);
});

test("what is no option is refused at once, and told as what it is", async () => {
  const said = (Made, ...args) => {
    try {
      new Made(...args);
    } catch (error) {
      return error instanceof TypeError ? error.message : String(error);
    }
    return null;
  };
  const wrong = [[], [{}], [{ getToken: "abc" }], [{ token: "t", onAlert: "show" }], [{ token: "t", baseUrl: "null" }],
    [{ token: "t", heartbeatSeconds: "often" }]];
  equal(wrong.map((args) => said(AlertStream, ...args)), ["Give an object with the options.",
    "Give token, getToken or useCookies.", "getToken must be a function.", "onAlert must be a function.",
    "Give baseUrl: the gateway's origin.", "heartbeatSeconds must be a number above 0."]);
  equal(said(TrainingSocket, { token: "t", onMessage: 1 }), "onMessage must be a function.");
  equal(said(AlertStream, { token: "t", onAlert: null, lastEventId: "" }), null);
});

// tabs

const shared = { shareTabs: true };

test("all tabs share one connection, and each gets every alert once", async (stage) => {
  const tabs = [tab(stage, shared), tab(stage, shared), tab(stage, shared)];
  await until(() => tabs.every(({ told }) => told.states.at(-1) === "open"));
  stage.gateway.publish("one");
  stage.gateway.event("tenant-state", { read_only: true });
  stage.gateway.publish("two");
  await until(() => tabs.every(({ told }) => told.alerts.length === 2));
  equal(tabs.map(({ told }) => told.alerts), Array(3).fill(["one", "two"]));
  equal(tabs.map(({ told }) => told.tenants.length), [1, 1, 1]);
  equal([stage.gateway.asked.length, stage.gateway.streams.size], [1, 1]);
  equal(tabs.map(({ told }) => told.details.at(-1).shared).sort(), [false, true, true]);
});

test("a tab that comes later learns what state all are in", async (stage) => {
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  stage.gateway.event("tenant-state", { read_only: true });
  stage.gateway.event("degraded", {});
  await until(() => first.told.states.at(-1) === "degraded");
  const second = tab(stage, shared);
  await until(() => second.told.states.at(-1) === "degraded");
  equal(second.told.tenants, [{ read_only: true }]);
});

test("when the tab that reads is closed, another one goes on without loss or repeat", async (stage) => {
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  const second = tab(stage, shared);
  await until(() => second.told.states.includes("open"));
  stage.gateway.publish("one");
  await until(() => second.told.alerts.length === 1);
  first.stream.close();
  stage.gateway.publish("two");
  await until(() => second.told.alerts.length === 2);
  stage.gateway.publish("three");
  await until(() => second.told.alerts.length === 3);
  equal([second.told.alerts, first.told.alerts], [["one", "two", "three"], ["one"]]);
  equal(stage.gateway.asked.map((it) => it.query.last_event_id), [undefined, "1-1"]);
});

test("a tab that is behind fetches what it missed by itself, and shares from then on", async (stage) => {
  stage.gateway.alerts.push("one", "two");
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  stage.gateway.publish("three");
  const second = tab(stage, { ...shared, lastEventId: "1-1" });
  await until(() => second.told.alerts.length === 2);
  await until(() => stage.gateway.streams.size === 1);
  stage.gateway.publish("four");
  await until(() => second.told.alerts.length === 3 && first.told.alerts.length === 2);
  equal([first.told.alerts, second.told.alerts], [["three", "four"], ["two", "three", "four"]]);
});

test("a tab that is behind is told of a gap, and the others are not", async (stage) => {
  stage.gateway.epoch = 2;
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  stage.gateway.publish("one");
  await until(() => first.told.alerts.length === 1);
  const second = tab(stage, { ...shared, lastEventId: "1-7" });
  await until(() => second.told.gaps.length === 1);
  stage.gateway.publish("two");
  await until(() => second.told.alerts.length === 1 && first.told.alerts.length === 2);
  equal([first.told.gaps, second.told.alerts, stage.gateway.streams.size], [[], ["two"], 1]);
});

test("a tab that was told of one alert too little fetches it", async (stage) => {
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  const second = tab(stage, shared);
  await until(() => second.told.states.includes("open"));
  const channel = new BroadcastChannel(`bakerygw:alerts:${location.origin}:u1:t1`);
  stage.later(() => channel.close());
  stage.gateway.alerts.push("one", "two", "three"); // which nobody is told
  const event = { type: "alert", id: "1-3", data: '{"message":"three"}' };
  channel.postMessage({ kind: "event", event, before: "1-2", from: "elsewhere" });
  await until(() => second.told.alerts.length === 3);
  equal(second.told.alerts, ["one", "two", "three"]);
});

test("a tab that shares may renew its token each time that it fetches something itself", async (stage) => {
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  const asked = [];
  const second = tab(stage, { ...shared, getToken: async ({ renew }) => (asked.push(renew), token("u1")) });
  await until(() => second.told.states.includes("open"));
  const channel = new BroadcastChannel(`bakerygw:alerts:${location.origin}:u1:t1`);
  stage.later(() => channel.close());
  for (const last of [2, 4]) {
    stage.gateway.alerts.push("so", "so"); // which nobody is told
    stage.gateway.answers[TICKET].push(problem(401, "token-expired"));
    channel.postMessage({ kind: "event", event: { type: "alert", id: `1-${last}`, data: '{"message":"so"}' }, from: "x" });
    await until(() => stage.gateway.answers[TICKET].length === 0);
    await settle();
    await stage.clock.advance(100);
    await until(() => second.told.errors.length || second.told.alerts.length === last);
    await until(() => stage.gateway.streams.size < 2);
  }
  equal([second.told.errors, asked.filter((renew) => renew).length], [[], 2]);
});

test("a tab that does not answer loses its place", async (stage) => {
  let stolen = false;
  const name = `bakerygw:alerts:${location.origin}:u1:t1`;
  const hung = navigator.locks.request(name, () => new Promise(() => {})).catch(() => (stolen = true));
  const { told } = tab(stage, shared);
  await settle();
  equal([told.states, stage.gateway.asked.length], [["connecting"], 0]);
  await stage.clock.advance(60_000);
  await until(() => told.states.at(-1) === "open");
  await hung;
  ok(stolen);
});

test("a tab that does not answer loses its place though the clock was set back", async (stage) => {
  const name = `bakerygw:alerts:${location.origin}:u1:t1`;
  const hung = navigator.locks.request(name, () => new Promise(() => {})).catch(() => {});
  const { told } = tab(stage, shared);
  await settle();
  const now = Date.now;
  Date.now = () => now() - 3_600_000;
  await stage.clock.advance(60_000);
  await until(() => told.states.at(-1) === "open");
  await hung;
});

test("a tab that answers keeps its place, however long nothing happens", async (stage) => {
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  const second = tab(stage, shared);
  await until(() => second.told.states.includes("open"));
  stage.gateway.away = true;
  stage.gateway.cut();
  await until(() => second.told.states.at(-1) === "waiting");
  await stage.clock.advance(200_000);
  equal([first.told.details.at(-1).shared, second.told.details.at(-1).shared], [false, true]);
});

test("a tab that is frozen does not answer, and so does not keep its place", async (stage) => {
  const { told } = tab(stage, shared);
  await until(() => told.states.includes("open"));
  const heard = [];
  const channel = new BroadcastChannel(`bakerygw:alerts:${location.origin}:u1:t1`);
  stage.later(() => channel.close());
  channel.onmessage = ({ data }) => heard.push(data);
  channel.postMessage({ kind: "ping", from: "elsewhere" });
  await settle(); // no timer runs
  equal(heard, []);
  await stage.clock.advance(1);
  await until(() => heard.length === 1);
  equal([heard[0].kind, heard[0].to, heard[0].state], ["welcome", "elsewhere", "open"]);
});

test("a tab that has lost its place says that another one holds the connection", async (stage) => {
  const { told } = tab(stage, shared);
  await until(() => told.states.includes("open"));
  const name = `bakerygw:alerts:${location.origin}:u1:t1`;
  const channel = new BroadcastChannel(name);
  stage.later(() => channel.close());
  channel.onmessage = ({ data }) => {
    if (data.kind !== "join") return;
    channel.postMessage({ kind: "welcome", from: "x", to: data.from, state: "open", details: {}, last: "1-0" });
  };
  await new Promise((held) => {
    const lock = new Promise((release) => stage.later(release));
    navigator.locks.request(name, { steal: true }, () => (held(), lock));
  });
  await until(() => told.details.at(-1).shared);
  equal([told.states, stage.gateway.streams.size], [["connecting", "open", "open"], 0]);
});

test("a tab whose token is refused leaves the place to one whose is not", async (stage) => {
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  const second = tab(stage, shared);
  await until(() => second.told.states.includes("open"));
  stage.gateway.publish("one");
  stage.gateway.answers[TICKET].push(problem(401, "token-expired"));
  stage.gateway.cut();
  await until(() => first.told.states.at(-1) === "waiting");
  await stage.clock.advance(3000);
  await until(() => first.told.errors.length === 1 && second.told.states.at(-1) === "open");
  stage.gateway.publish("two");
  await until(() => second.told.alerts.length === 2);
  equal([second.told.alerts, second.told.errors, second.told.details.at(-1).shared], [["one", "two"], [], false]);
});

test("tabs of different users and tenants share nothing", async (stage) => {
  const tabs = [
    tab(stage, { ...shared, token: token("u1") }),
    tab(stage, { ...shared, token: token("u2") }),
    tab(stage, { ...shared, token: token("u1"), tenantId: "t2" }),
  ];
  await until(() => tabs.every(({ told }) => told.states.at(-1) === "open"));
  equal(stage.gateway.streams.size, 3);
});

test("without locks each tab has its own connection", async (stage) => {
  Object.defineProperty(navigator, "locks", { value: undefined, configurable: true });
  stage.later(() => delete navigator.locks);
  const tabs = [tab(stage, shared), tab(stage, shared)];
  await until(() => tabs.every(({ told }) => told.states.at(-1) === "open"));
  stage.gateway.publish("one");
  await until(() => tabs.every(({ told }) => told.alerts.length === 1));
  equal(stage.gateway.streams.size, 2);
});

test("a page that may store nothing, and so not speak to other tabs, has its own connection", async (stage) => {
  const real = globalThis.BroadcastChannel;
  stage.later(() => (globalThis.BroadcastChannel = real));
  globalThis.BroadcastChannel = function () {
    throw new DOMException("The operation is insecure.", "SecurityError");
  };
  const { told } = tab(stage, shared);
  await until(() => told.states.at(-1) === "open");
  equal([told.details.at(-1).shared, told.errors], [false, []]);
});

test("any tab can ask to connect anew", async (stage) => {
  const first = tab(stage, shared);
  await until(() => first.told.states.includes("open"));
  const second = tab(stage, shared);
  await until(() => second.told.states.includes("open"));
  second.stream.reconnect();
  await until(() => stage.gateway.asked.length === 2 && stage.gateway.streams.size === 1);
});

// training

function socket({ later }, options = {}) {
  const told = { messages: [], opened: 0, closes: [], errors: [] };
  const it = new TrainingSocket({
    ...(options.getToken ? {} : { token: token("u1") }),
    onMessage: (data) => told.messages.push(data),
    onOpen: () => told.opened++,
    onClose: (info) => told.closes.push(info),
    onError: (error) => told.errors.push(error),
    ...options,
  });
  later(() => it.close());
  it.open();
  return { it, told };
}

async function opened(number = 1) {
  await until(() => FakeSocket.all.length === number);
  FakeSocket.last.opens();
}

test("a socket is opened by a ticket, with the page's own query", async (stage) => {
  const { told } = socket(stage, { query: { job: "7" }, protocols: ["progress.v1"] });
  await opened();
  const { url, protocols } = FakeSocket.last;
  equal([url.pathname, url.protocol, url.search], ["/api/v1/training/ws", "ws:", "?ticket=ticket-1&job=7"]);
  FakeSocket.last.onmessage({ data: "hello" });
  equal([protocols, told.opened, told.messages], [["progress.v1"], 1, ["hello"]]);
});

test("what is sent too early waits, and so much and no more", async (stage) => {
  const { it } = socket(stage);
  const taken = Array.from({ length: 300 }, (_, number) => it.send(`m${number}`));
  equal(taken.filter(Boolean).length, 256);
  await opened();
  equal([FakeSocket.last.sent.length, FakeSocket.last.sent[255], it.send("now")], [256, "m255", true]);
  FakeSocket.last.bufferedAmount = 5 << 20;
  equal(it.send("too much"), false);
});

test("a socket comes back where that helps, by its close code", async (stage) => {
  for (const [code, willRetry] of [[1001, true], [1006, true], [1011, true], [1012, true], [1013, true],
    [1000, false], [1005, false], [1007, false], [1008, false], [1009, false], [4000, false]]) {
    FakeSocket.all = [];
    const { it, told } = socket(stage);
    await opened();
    FakeSocket.last.closes(code, "why");
    await until(() => told.closes.length === 1);
    equal(told.closes, [{ code, reason: "why", willRetry }]);
    await stage.clock.advance(3000);
    equal([code, FakeSocket.all.length], [code, willRetry ? 2 : 1]);
    it.close();
    FakeSocket.last.closes(1000);
    await settle();
  }
});

test("a socket whose token has ended comes back once with another one", async (stage) => {
  const asked = [];
  const { told } = socket(stage, { getToken: async ({ renew }) => (asked.push(renew), token("u1")) });
  await opened();
  FakeSocket.last.closes(1008, "token-expired");
  await settle();
  await stage.clock.advance(1000);
  await opened(2);
  FakeSocket.last.closes(1008, "policy");
  await until(() => told.closes.length === 2);
  equal([asked, told.closes.map((it) => it.willRetry)], [[false, true], [true, false]]);
});

test("a socket's token is renewed behind the second in which the subscription changed", async (stage) => {
  const asked = [];
  const { told } = socket(stage, { getToken: async ({ renew }) => (asked.push(renew), token("u1")) });
  for (const times of [1, 2]) {
    await opened(times);
    FakeSocket.last.closes(1008, "token stale");
    await settle();
    await stage.clock.advance(1900);
    equal(asked.length, times);
    await stage.clock.advance(1000);
  }
  await opened(3);
  equal([asked, told.closes.map((it) => it.willRetry)], [[false, true, true], [true, true]]);
});

test("a socket that operators have ended comes back later with the same token", async (stage) => {
  const asked = [];
  const { told } = socket(stage, { getToken: async ({ renew }) => (asked.push(renew), token("u1")) });
  await opened();
  FakeSocket.last.closes(1008, "disconnected");
  await until(() => told.closes.length === 1);
  dispatchEvent(new Event("online"));
  await stage.clock.advance(900);
  equal([asked.length, told.closes[0].willRetry], [1, true]);
  await stage.clock.advance(600);
  await opened(2);
  equal(asked, [false, false]);
});

test("a socket of which the browser tells an error and no end has ended", async (stage) => {
  const { told } = socket(stage);
  await until(() => FakeSocket.all.length === 1);
  FakeSocket.last.onerror();
  await stage.clock.advance(1000);
  equal(told.closes, [{ code: 1006, reason: "", willRetry: true }]);
  await stage.clock.advance(2000);
  await until(() => FakeSocket.all.length === 2);
});

test("a socket that fails again and again waits longer and longer", async (stage) => {
  Math.random = () => 0.9;
  const { told } = socket(stage);
  const times = [];
  for (let turn = 1; turn <= 4; turn++) {
    await until(() => FakeSocket.all.length === turn);
    times.push(stage.clock.now);
    FakeSocket.last.closes(1006);
    await until(() => told.closes.length === turn);
    await stage.clock.advance(30_000 * (turn > 4));
    for (let ms = 0; FakeSocket.all.length === turn && ms < 10_000; ms += 100) await stage.clock.advance(100);
  }
  const waits = times.slice(1).map((time, at) => time - times[at]);
  equal(waits, [1400, 1800, 3600]);
});

test("a socket that is closed says so once and stays closed", async (stage) => {
  const { it, told } = socket(stage);
  await opened();
  it.close();
  equal([FakeSocket.last.closedWith, it.send("late")], [1000, false]);
  FakeSocket.last.closes(1000);
  await until(() => told.closes.length === 1);
  await stage.clock.advance(60_000);
  equal([told.closes[0].willRetry, FakeSocket.all.length], [false, 1]);
});

test("a refused ticket ends the socket with the problem", async (stage) => {
  stage.gateway.answers[TICKET].push(problem(403, "tenant-forbidden"));
  const { told } = socket(stage);
  await until(() => told.errors.length === 1);
  equal([told.errors[0].code, FakeSocket.all.length], ["tenant-forbidden", 0]);
});

test("a socket whose session has ended says so, and does not try on", async (stage) => {
  const over = () => problem(401, "token-missing");
  const { told } = socket(stage, { useCookies: true, getToken: undefined, token: undefined });
  await opened();
  stage.gateway.answers[SESSION].push(over(), over());
  FakeSocket.last.closes(1006);
  await until(() => told.closes.length === 1);
  await stage.clock.advance(60_000);
  equal([told.errors.map((it) => it.code), FakeSocket.all.length], [["token-missing"], 1]);
});

test("a socket of one user is not opened anew with the token of another", async (stage) => {
  const users = ["u1", "u2", "u2"];
  const { it, told } = socket(stage, { getToken: async () => token(users.shift() ?? "u2") });
  await opened();
  FakeSocket.last.closes(1006);
  await until(() => told.closes.length === 1);
  await stage.clock.advance(3000);
  await until(() => told.errors.length === 1);
  equal([told.errors[0].code, FakeSocket.all.length], ["user-changed", 1]);
  it.open();
  await until(() => FakeSocket.all.length === 2);
});

test("what a socket can't send is refused as that, open or not", async (stage) => {
  const { it } = socket(stage);
  const refused = (data) => {
    try {
      return it.send(data);
    } catch (error) {
      return error instanceof TypeError;
    }
  };
  equal([{ action: "start" }, 7, null, undefined].map(refused), [true, true, true, true]);
  await opened();
  equal([refused({ action: "start" }), FakeSocket.last.sent], [true, []]);
  equal([it.send(""), it.send(new Uint8Array(2)), it.send(new Blob(["x"]))], [true, true, true]);
});
