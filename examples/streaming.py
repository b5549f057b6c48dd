"""Chunks as they are decided, and many callers at once with asyncio."""

import asyncio

from fader import Fader


async def main(fader: Fader) -> None:
    """Stream one answer while two others are made in the same batch."""
    others = asyncio.create_task(fader.abatch(["Name a fruit.", "Name a bird."], max_tokens=12))
    async for chunk in fader.astream("Count from one to five.", max_tokens=16):
        print(chunk.text, end="", flush=True)
    print("\n", [result.text.strip() for result in await others])


with Fader() as fader:
    asyncio.run(main(fader))
