"""A second Python peer: aiohttp server and client, redis-py, the same policies in one process.

Run with `python aiohttp_stack.py PORT`. Environment as for seed_stack.py.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
import uuid
from datetime import datetime, timezone

import jwt
import prometheus_client as prom
import redis.asyncio as aioredis
import structlog
import uvloop
from aiohttp import ClientSession, TCPConnector, web

UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:18001")
PUBLIC_KEY = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).prepare_key(os.environ["JWT_PUBLIC_KEY"])
CAPACITY = int(os.environ.get("RATE_LIMIT_REQUESTS", "300"))
WINDOW = int(os.environ.get("RATE_LIMIT_WINDOW_SECONDS", "60"))
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}
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
return {allowed, math.floor(tokens), redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3])}
"""

structlog.configure(
    processors=[
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


class Gateway:
    def __init__(self):
        self.verified = {}

    async def start(self, app):
        self.http = ClientSession(connector=TCPConnector(limit=512), auto_decompress=False)
        self.redis = aioredis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
        self.bucket = self.redis.register_script(BUCKET)
        yield
        await self.http.close()
        await self.redis.aclose()

    def claims_of(self, token):
        held = self.verified.get(token)
        if held and held["exp"] > time.time():
            return held
        claims = jwt.decode(token, PUBLIC_KEY, algorithms=["RS256"], issuer="bakery-auth")
        claims["_until"] = datetime.fromisoformat(claims["subscription"]["valid_until"].replace("Z", "+00:00"))
        if len(self.verified) < 10_000:
            self.verified[token] = claims
        return claims

    async def handle(self, request):
        started = time.perf_counter()
        request_id = str(uuid.uuid4())
        service = "/api/v1/" + request.match_info["service"]
        log.info("request.start", request_id=request_id, method=request.method, path=request.path)
        status = 500
        try:
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            try:
                claims = self.claims_of(token)
            except jwt.PyJWTError as error:
                status = 401
                return web.json_response({"title": str(error)}, status=401)
            tenant = claims["tenant_id"]
            allowed, left, changed, read_only = await self.bucket(
                keys=[
                    "ratelimit:" + claims["user_id"],
                    f"tenant:{tenant}:subscription_changed_at",
                    f"tenant:{tenant}:read_only",
                ],
                args=[time.time(), CAPACITY, CAPACITY / WINDOW, WINDOW * 2000],
            )
            if not allowed:
                status = 429
                return web.json_response({"title": "Too Many Requests"}, status=429)
            if changed and claims["iat"] < float(changed):
                status = 401
                return web.json_response({"title": "stale token"}, status=401)
            if claims["_until"] < datetime.now(timezone.utc):
                status = 402
                return web.json_response({"title": "subscription expired"}, status=402)
            if read_only and request.method in WRITES:
                status = 403
                return web.json_response({"title": "read only"}, status=403)
            headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
            headers += [("x-request-id", request_id), ("x-user-id", claims["user_id"]), ("x-tenant-id", tenant)]
            async with self.http.request(
                request.method,
                UPSTREAM + request.path_qs,
                headers=headers,
                data=request.content if request.can_read_body else None,
                allow_redirects=False,
            ) as upstream:
                status = upstream.status
                response = web.StreamResponse(status=status)
                for key, value in upstream.headers.items():
                    if key.lower() not in HOP_BY_HOP:
                        response.headers.add(key, value)
                response.headers["x-request-id"] = request_id
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        finally:
            took = time.perf_counter() - started
            REQUESTS.labels(request.method, service, status).inc()
            DURATION.labels(request.method, service).observe(took)
            log.info(
                "request.end",
                request_id=request_id,
                method=request.method,
                path=request.path,
                status=status,
                duration_ms=round(took * 1000, 3),
            )


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    gateway = Gateway()
    app = web.Application()
    app.cleanup_ctx.append(gateway.start)
    app.router.add_route("*", "/api/v1/{service}/{path:.*}", gateway.handle)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None)
