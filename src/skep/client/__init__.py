"""The public API's client: calls as data (`calls`), and what carries them: `unix` for the CLI (stdlib only, quick to import).

Nothing here imports msgspec, aiohttp, http.client, typing or dataclasses: importing them costs more than a whole command of the CLI does.
"""
