"""The stack the gateway is measured against: FastAPI + HTTPX + redis-py, same policies.

One process, the libraries' own fast paths on (uvloop, httptools, hiredis, pooled and
streamed HTTPX). Run it with `uvicorn seed_stack:app --port 18200 --no-access-log`.

Environment: UPSTREAM (http://127.0.0.1:18001), REDIS_URL (redis://127.0.0.1:6379/0),
JWT_PUBLIC_KEY (PEM), RATE_LIMIT_REQUESTS (300), RATE_LIMIT_WINDOW_SECONDS (60).
"""

import hashlib
import json
import os
import time
import uuid
from contextlib import asynccontextmanager
from datetime import datetime, timezone

import httpx
import jwt
import prometheus_client as prom
import redis.asyncio as aioredis
import structlog
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse

UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:18001")
PUBLIC_KEY = os.environ["JWT_PUBLIC_KEY"]
CAPACITY = int(os.environ.get("RATE_LIMIT_REQUESTS", "300"))
WINDOW = int(os.environ.get("RATE_LIMIT_WINDOW_SECONDS", "60"))
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
WRITES = {"POST", "PUT", "PATCH", "DELETE"}

BUCKET = """
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local now, capacity, rate = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens = tonumber(held[1]) or capacity
local at = tonumber(held[2]) or now
tokens = math.min(capacity, tokens + (now - at) * rate)
local allowed = 0
if tokens >= 1 then tokens = tokens - 1; allowed = 1 end
redis.call('HSET', KEYS[1], 'tokens', tokens, 'at', now)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {allowed, math.floor(tokens)}
"""

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.JSONRenderer(),
    ],
    logger_factory=structlog.WriteLoggerFactory(file=open(os.environ.get("LOG_FILE", os.devnull), "w")),
    cache_logger_on_first_use=True,
)
log = structlog.get_logger()
REQUESTS = prom.Counter("gateway_requests", "requests", ["method", "path", "status_code"])
DURATION = prom.Histogram("gateway_request_duration_seconds", "duration", ["method", "path"])


@asynccontextmanager
async def lifespan(app):
    app.state.http = httpx.AsyncClient(
        timeout=30, limits=httpx.Limits(max_connections=512, max_keepalive_connections=512)
    )
    app.state.redis = aioredis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
    app.state.bucket = app.state.redis.register_script(BUCKET)
    yield
    await app.state.http.aclose()
    await app.state.redis.aclose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(
    CORSMiddleware,
    allow_origins=["http://localhost:3000"],
    allow_credentials=True,
    allow_methods=["*"],
    allow_headers=["*"],
)


async def claims_of(redis, token):
    key = "auth:token:" + hashlib.sha256(token.encode()).hexdigest()
    cached = await redis.get(key)
    if cached:
        return json.loads(cached)
    claims = jwt.decode(token, PUBLIC_KEY, algorithms=["RS256"], issuer="bakery-auth")
    await redis.set(key, json.dumps(claims), ex=max(1, min(900, int(claims["exp"] - time.time()))))
    return claims


@app.api_route("/api/v1/{service}/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
async def gateway(service: str, path: str, request: Request):
    started = time.perf_counter()
    request_id = str(uuid.uuid4())
    log.info("request.start", request_id=request_id, method=request.method, path=request.url.path)
    status = 500
    try:
        redis = request.app.state.redis
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        allowed, left = await request.app.state.bucket(
            keys=["ratelimit:" + hashlib.sha256(token.encode()).hexdigest()[:16]],
            args=[time.time(), CAPACITY, CAPACITY / WINDOW, WINDOW * 2000],
        )
        if not allowed:
            status = 429
            return JSONResponse({"title": "Too Many Requests"}, 429)
        try:
            claims = await claims_of(redis, token)
        except jwt.PyJWTError as error:
            status = 401
            return JSONResponse({"title": str(error)}, 401)
        tenant = claims["tenant_id"]
        changed, read_only = await redis.mget(f"tenant:{tenant}:subscription_changed_at", f"tenant:{tenant}:read_only")
        if changed and claims["iat"] < float(changed):
            status = 401
            return JSONResponse({"title": "stale token"}, 401)
        valid_until = datetime.fromisoformat(claims["subscription"]["valid_until"].replace("Z", "+00:00"))
        if valid_until < datetime.now(timezone.utc):
            status = 402
            return JSONResponse({"title": "subscription expired"}, 402)
        if read_only and request.method in WRITES:
            status = 403
            return JSONResponse({"title": "read only"}, 403)
        headers = [(k, v) for k, v in request.headers.items() if k not in HOP_BY_HOP and k != "host"]
        headers += [("x-request-id", request_id), ("x-user-id", claims["user_id"]), ("x-tenant-id", tenant)]
        upstream = await request.app.state.http.send(
            request.app.state.http.build_request(
                request.method,
                UPSTREAM + request.url.path + (f"?{request.url.query}" if request.url.query else ""),
                headers=headers,
                content=request.stream() if request.method in WRITES else None,
            ),
            stream=True,
        )
        status = upstream.status_code
        kept = {k: v for k, v in upstream.headers.items() if k not in HOP_BY_HOP}
        kept["x-request-id"] = request_id

        async def body():
            try:
                async for chunk in upstream.aiter_raw():
                    yield chunk
            finally:
                await upstream.aclose()

        return StreamingResponse(body(), status, kept)
    finally:
        took = time.perf_counter() - started
        REQUESTS.labels(request.method, f"/api/v1/{service}", status).inc()
        DURATION.labels(request.method, f"/api/v1/{service}").observe(took)
        log.info(
            "request.end",
            request_id=request_id,
            method=request.method,
            path=request.url.path,
            status=status,
            duration_ms=round(took * 1000, 3),
        )
