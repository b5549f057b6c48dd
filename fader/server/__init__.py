"""The server: OpenAI's wire in front of a backend. Start it with `fader serve`."""
