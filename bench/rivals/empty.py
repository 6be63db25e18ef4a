"""The smallest ASGI app: what the server itself costs, before anything is answered."""

HEAD = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
BODY = {"type": "http.response.body", "body": b"{}"}


async def app(scope, receive, send):
    await receive()
    await send(HEAD)
    await send(BODY)
