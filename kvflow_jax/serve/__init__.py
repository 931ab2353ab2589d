"""The HTTP server: OpenAI's wire format over the engine; the only room with a web framework.

```
main thread: event loop of uvicorn                 engine thread
  app.py     routes        ─┐                        EngineThread
  schemas.py, chat.py,      ├─ Service ── submit ──────▶ steps
  completions.py  formats  ─┘     ▲                        │ on_output, per request
  stream.py  SSE  ◀── Generation ◀┴── Mailbox ◀────────────┘ one wake-up for many outputs
```
"""
