"""Makes `bakerygw` a command of twistd."""

from twisted.application.service import ServiceMaker

serviceMaker = ServiceMaker("bakerygw", "bakerygw.tap", "The API gateway: HTTP, SSE and WebSocket.", "bakerygw")
